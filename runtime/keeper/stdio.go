//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime/wire"
)

// stdio is what stands behind a container's standard streams: FIFOs in its
// folder, or the master of its terminal.
//
// The container's end of an output is opened for reading and writing, so that
// a dead keeper is no broken pipe to it.
type stdio struct {
	dir     string
	log     *logFile
	clients fanout
	scratch *pipePool
	journal *journalFile // nil without one: output may be logged twice then
	pumps   []*pump      // complete before the container is parked
	changed func()       // called when the input has ended: who holds it must let it go

	mu     sync.Mutex
	stdin  *os.File // the writing end of the input; nil without one
	master *os.File // of the terminal; nil without one
}

const drainPatience = 500 * time.Millisecond

func newStdio(dir string, log *logFile, scratch *pipePool, changed func()) *stdio {
	return &stdio{dir: dir, log: log, scratch: scratch, changed: changed}
}

// pipes makes the FIFOs. The ends returned belong to the container: they are
// closed once it runs, also after an error.
func (s *stdio) pipes(stdin, once bool) (ends streams, err error) {
	for _, out := range []struct {
		name string
		end  **os.File
	}{{"stdout", &ends.stdout}, {"stderr", &ends.stderr}} {
		if err := makeFIFO(s.path(out.name)); err != nil {
			return ends, err
		}
		if err := s.openPump(out.name); err != nil {
			return ends, err
		}
		if *out.end, err = openFIFO(s.path(out.name), unix.O_RDWR); err != nil {
			return ends, err
		}
	}
	if !stdin {
		return ends, nil
	}
	if err := makeFIFO(s.path("stdin")); err != nil {
		return ends, err
	}
	if err := s.openStdin(); err != nil {
		return ends, err
	}
	// Only an input that must end some day is opened for reading alone: its
	// end then also comes with the keeper's.
	flags := unix.O_RDWR
	if once {
		flags = unix.O_RDONLY
	}
	ends.stdin, err = openFIFO(s.path("stdin"), flags)
	return ends, err
}

func (s *stdio) path(name string) string { return filepath.Join(s.dir, name) }

func makeFIFO(path string) error {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make fifo %s: %w", path, err)
	}
	return nil
}

// openFIFO opens with unix.Open: os.OpenFile would make the description nonblocking for the container, too.
func openFIFO(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open fifo %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (s *stdio) openPump(name string) error {
	source, err := openFIFO(s.path(name), unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	s.addPump(name, source, false)
	return nil
}

func (s *stdio) addPump(name string, source *os.File, tty bool) {
	s.pumps = append(s.pumps, &pump{
		name: name, source: source, tty: tty, log: s.log,
		clients: &s.clients, scratch: s.scratch, done: make(chan struct{}),
	})
}

func (s *stdio) openStdin() error {
	// Read-write, so that opening does not wait for the container and the
	// pipe outlives a container that closes its end.
	f, err := openFIFO(s.path("stdin"), unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.stdin = f
	s.mu.Unlock()
	return nil
}

// useTerminal takes the terminal's master as input and output.
func (s *stdio) useTerminal(master *os.File) {
	s.mu.Lock()
	s.master = master
	s.mu.Unlock()
	s.addPump("stdout", master, true)
}

// start begins to copy, where an earlier keeper has ended.
func (s *stdio) start() error {
	var errs []error
	if len(s.pumps) == 2 && s.log.path != "" {
		var err error
		s.journal, err = openJournal(s.path("journal"))
		errs = append(errs, err)
	}
	for i, p := range s.pumps {
		if !p.tty {
			p.journal = s.journal.journalOf(i)
			errs = append(errs, p.journal.settle(s.log.file, p.source, s.scratch))
		}
	}
	for _, p := range s.pumps {
		go p.run()
	}
	return errors.Join(errs...)
}

// input is a duplicate of what a client writes input to; nil without one.
func (s *stdio) input() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.master != nil:
		return duplicate(s.master)
	case s.stdin != nil:
		// A fresh description, without O_RDWR: the client's must be a writer only, and blocking.
		return openFIFO(s.path("stdin"), unix.O_WRONLY)
	}
	return nil, nil
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := wire.Duplicate(f)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// closeStdin is the end of the input for the container.
func (s *stdio) closeStdin() {
	s.mu.Lock()
	had := s.stdin != nil
	if had {
		_ = s.stdin.Close()
		s.stdin = nil
		_ = os.Remove(s.path("stdin"))
	}
	s.mu.Unlock()
	if had {
		s.changed()
	}
}

func (s *stdio) resize(width, height uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.master == nil {
		return errors.New("it has no terminal")
	}
	return setSize(s.master, width, height)
}

func setSize(master *os.File, width, height uint16) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(fd uintptr) {
		result = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	return errors.Join(err, result)
}

// drain copies what the ended container has left and closes everything.
func (s *stdio) drain() {
	for _, p := range s.pumps {
		p.stop(drainPatience)
	}
	s.closeStdin()
	s.mu.Lock()
	s.master = nil // its pump has closed it
	s.mu.Unlock()
	s.log.close()
	s.journal.close()
}

// abandon closes streams that never carried anything.
func (s *stdio) abandon() {
	for _, p := range s.pumps {
		_ = p.source.Close()
	}
	s.pumps = nil
	s.closeStdin()
	s.log.close()
}

// streams are the files that a process gets; nil is /dev/null.
type streams struct {
	stdin, stdout, stderr *os.File
}

// all are those that there are.
func (s streams) all() []*os.File {
	return slices.DeleteFunc([]*os.File{s.stdin, s.stdout, s.stderr}, func(f *os.File) bool { return f == nil })
}

func (s streams) close() {
	for _, f := range s.all() {
		_ = f.Close()
	}
}
