//go:build cgo

package keeper

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pumpSize is how much output is taken at once, in bytes: what a pipe holds.
	pumpSize = 64 << 10
	// partialPatience is how long the beginning of a line waits for its end.
	partialPatience = time.Second
	// lastTurns bounds what is still copied when an output is closed that somebody else writes to.
	lastTurns = 32
)

// pumpBuffers are shared by all streams: an idle container has none.
var pumpBuffers = sync.Pool{New: func() any { return new([pumpSize]byte) }}

// pump copies one output of a container to its log and to attached clients.
//
// Output from a FIFO is looked at (tee) before it is logged and taken out only
// afterwards, so that a keeper that is killed loses nothing; the beginning of a
// line waits in the FIFO, not in memory. A terminal's output cannot be looked
// at: its unfinished line is kept in rest.
type pump struct {
	name    string // "stdout" or "stderr"
	source  *os.File
	tty     bool
	log     *logFile
	clients *fanout
	scratch *pipePool
	journal *journal // nil for a terminal
	done    chan struct{}

	stopping atomic.Bool
	waiting  int    // bytes at the FIFO's head that clients have, and the log has not
	rest     []byte // of a terminal
}

type turn int

const (
	idle turn = iota // nothing new
	moved
	ended
)

func (p *pump) run() {
	defer close(p.done)
	raw, err := p.source.SyscallConn()
	if err != nil {
		return
	}
	for last := lastTurns; last > 0; {
		state := idle
		err := raw.Read(func(fd uintptr) bool {
			state = p.turn(int(fd), false)
			return state != idle
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = raw.Control(func(fd uintptr) { state = p.turn(int(fd), true) })
			if state == idle {
				return // told to stop, and nothing is left
			}
			if p.stopping.Load() {
				last--
			}
		case err != nil:
			return
		}
		if state == ended {
			return
		}
		p.setDeadline()
	}
}

func (p *pump) setDeadline() {
	var at time.Time
	if p.waiting > 0 || len(p.rest) > 0 {
		at = time.Now().Add(partialPatience)
	}
	_ = p.source.SetReadDeadline(at)
	if p.stopping.Load() {
		_ = p.source.SetReadDeadline(time.Unix(1, 0))
	}
}

// turn moves what is there. With flush it takes an unfinished line, too.
func (p *pump) turn(fd int, flush bool) turn {
	buf := pumpBuffers.Get().(*[pumpSize]byte)
	defer pumpBuffers.Put(buf)
	if p.tty {
		return p.turnTerminal(fd, buf[:], flush)
	}
	return p.turnFIFO(fd, buf[:], flush)
}

func (p *pump) turnFIFO(fd int, buf []byte, flush bool) turn {
	n, err := p.scratch.peek(fd, buf)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return idle
	case err != nil || n == 0:
		return ended
	case n == p.waiting && !flush:
		return p.atEnd(fd)
	}
	p.clients.write(p.name, buf[min(p.waiting, n):n])
	taken := p.log.write(p.name, buf[:n], flush, p.journal)
	discard(fd, buf[:taken])
	p.journal.end()
	p.waiting = n - taken
	return moved
}

// atEnd tells an unfinished line that nobody can finish from one that is still being written.
func (p *pump) atEnd(fd int) turn {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); err == nil && n > 0 && poll[0].Revents&unix.POLLHUP != 0 {
		return p.turn(fd, true)
	}
	return idle
}

func (p *pump) turnTerminal(fd int, buf []byte, flush bool) turn {
	n, err := unix.Read(fd, buf)
	switch {
	case errors.Is(err, unix.EAGAIN) && !flush:
		return idle
	case err != nil || n == 0:
		n = 0
	}
	p.clients.write(p.name, buf[:n])
	p.rest = append(p.rest, buf[:n]...)
	nothing := len(p.rest) == 0
	taken := p.log.write(p.name, p.rest, flush || n == 0, nil)
	p.rest = append([]byte(nil), p.rest[taken:]...)
	switch {
	case n > 0:
		return moved
	case flush && errors.Is(err, unix.EAGAIN):
		if nothing {
			return idle
		}
		return moved
	}
	return ended
}

// stop ends the copying: at once when everything has been copied, else after patience.
func (p *pump) stop(patience time.Duration) {
	if !within(p.done, patience) {
		// Somebody holds the other end. What is there is copied, then it ends.
		p.stopping.Store(true)
		_ = p.source.SetReadDeadline(time.Unix(1, 0))
		<-p.done
	}
	_ = p.source.Close()
}

func discard(fd int, buf []byte) {
	for len(buf) > 0 {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		buf = buf[n:]
	}
}

// pipePool holds pipes through which a FIFO's content is looked at.
type pipePool struct {
	mu   sync.Mutex
	free [][2]int
}

const keptPipes = 4

// peek copies the head of a FIFO into buf and leaves it where it is.
func (pool *pipePool) peek(fifo int, buf []byte) (int, error) {
	pipe, err := pool.get()
	if err != nil {
		return 0, err
	}
	n, err := unix.Tee(fifo, pipe[1], len(buf), unix.SPLICE_F_NONBLOCK)
	if err != nil || n == 0 {
		pool.put(pipe)
		return 0, err
	}
	got := 0
	for got < int(n) {
		m, err := unix.Read(pipe[0], buf[got:n])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || m <= 0 {
			closePipe(pipe)
			return got, err
		}
		got += m
	}
	pool.put(pipe)
	return got, nil
}

func (pool *pipePool) get() (pipe [2]int, err error) {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if n := len(pool.free); n > 0 {
		pipe = pool.free[n-1]
		pool.free = pool.free[:n-1]
		return pipe, nil
	}
	fds := make([]int, 2)
	err = unix.Pipe2(fds, unix.O_CLOEXEC|unix.O_NONBLOCK)
	return [2]int(fds), err
}

func (pool *pipePool) put(pipe [2]int) {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if len(pool.free) < keptPipes {
		pool.free = append(pool.free, pipe)
		return
	}
	closePipe(pipe)
}

func closePipe(pipe [2]int) {
	_ = unix.Close(pipe[0])
	_ = unix.Close(pipe[1])
}

// fanout sends output to attached clients. One that does not read loses bytes; nobody waits for it.
type fanout struct {
	mu      sync.Mutex
	clients map[*client]struct{}
}

// client is one attached client's pipes; a nil file takes nothing.
type client struct {
	stdout, stderr *os.File
	gone           chan struct{} // closed when a pipe has no reader any more
	once           sync.Once
}

func (f *fanout) add(c *client) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clients == nil {
		f.clients = map[*client]struct{}{}
	}
	f.clients[c] = struct{}{}
}

func (f *fanout) remove(c *client) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.clients, c)
}

func (f *fanout) write(stream string, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.clients {
		file := c.stdout
		if stream == "stderr" {
			file = c.stderr
		}
		if file != nil && len(data) > 0 {
			c.write(file, data)
		}
	}
}

func (c *client) write(file *os.File, data []byte) {
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if _, err := unix.Write(int(fd), data); errors.Is(err, unix.EPIPE) {
			c.once.Do(func() { close(c.gone) })
		}
	})
}
