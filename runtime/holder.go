package runtime

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime/wire"
)

// Holder keeps duplicates of what a keeper holds for its containers: the
// readers of their output, inputs, terminals and pidfds. They outlive a keeper
// that is killed, and Launch gives them to the next one: no terminal hangs up,
// no input ends, and neither output nor an exit code is lost. One Holder is for
// all keepers of a run directory.
type Holder struct {
	mu     sync.Mutex // guards what follows
	held   map[string]heldFiles
	stop   context.CancelFunc // ends the listening to a keeper
	closed bool
}

// heldFiles are the descriptors of one container, by name.
type heldFiles map[string]int

func (f heldFiles) close() {
	for _, fd := range f {
		_ = unix.Close(fd)
	}
}

// NewHolder makes a Holder that holds nothing so far.
func NewHolder() *Holder { return &Holder{held: map[string]heldFiles{}} }

// Close lets everything go. The keeper's own are not touched.
func (h *Holder) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.stop != nil {
		h.stop()
	}
	for _, f := range h.held {
		f.close()
	}
	h.held = map[string]heldFiles{}
}

// Holds says whether something of the container is held.
func (h *Holder) Holds(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.held[id]
	return ok
}

// syncPatience bounds the wait for the files of all containers of a keeper.
const syncPatience = 30 * time.Second

// follow takes what the keeper behind client has, and goes on with every change until it goes.
func (h *Holder) follow(client *Client) error {
	ctx, cancel := context.WithCancel(context.Background())
	h.mu.Lock()
	if h.stop != nil {
		h.stop()
	}
	h.stop = cancel
	h.mu.Unlock()
	s, err := h.sync(ctx, client)
	if err != nil {
		cancel()
		return fmt.Errorf("hold the containers' files: %w", err)
	}
	go func() {
		defer cancel()
		for err == nil {
			h.changes(s)
			s.close()
			s, err = h.sync(ctx, client) // the keeper ends the stream of who is too slow
		}
	}()
	return nil
}

// sync replaces what is held by what the keeper has.
func (h *Holder) sync(ctx context.Context, client *Client) (*stream, error) {
	s, err := client.open(ctx, wire.Hold, nil)
	if err != nil {
		return nil, err
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(syncPatience))
	fresh := map[string]heldFiles{}
	for {
		id, files, err := s.receiveHeld()
		if err != nil {
			for _, f := range fresh {
				f.close()
			}
			s.close()
			return nil, s.explain(err)
		}
		if id == "" {
			break
		}
		replace(fresh, id, files)
	}
	_ = s.conn.SetReadDeadline(time.Time{})
	h.mu.Lock()
	old := h.held
	if h.closed {
		old, fresh = fresh, map[string]heldFiles{}
	}
	h.held = fresh
	h.mu.Unlock()
	for _, f := range old {
		f.close()
	}
	return s, nil
}

func (h *Holder) changes(s *stream) {
	for {
		id, files, err := s.receiveHeld()
		if err != nil {
			return
		}
		h.mu.Lock()
		if h.closed {
			files.close()
		} else {
			replace(h.held, id, files)
		}
		h.mu.Unlock()
	}
}

func replace(held map[string]heldFiles, id string, files heldFiles) {
	held[id].close()
	if len(files) == 0 {
		delete(held, id)
		return
	}
	held[id] = files
}

func (s *stream) receiveHeld() (id string, files heldFiles, err error) {
	var held wire.Held
	fds, err := s.conn.ReceiveFDs(&held)
	if err != nil {
		return "", nil, err
	}
	if len(fds) != len(held.Names) {
		wire.CloseFDs(fds)
		return "", nil, fmt.Errorf("%d files came for %d names", len(fds), len(held.Names))
	}
	files = heldFiles{}
	for i, name := range held.Names {
		files[name] = fds[i]
	}
	return held.ID, files, nil
}

// passOn makes the socket over which a new keeper gets what is held. The
// sending begins with send, when the keeper reads.
func (h *Holder) passOn() (theirs *os.File, send func(), err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket for held files: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "held")
	ours := os.NewFile(uintptr(fds[0]), "held")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("make socket for held files: %w", err)
	}
	return theirs, func() { h.send(wire.Conn{UnixConn: conn.(*net.UnixConn)}) }, nil
}

func (h *Holder) send(conn wire.Conn) {
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(syncPatience))
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, files := range h.held {
		message := wire.Held{ID: id}
		fds := make([]int, 0, len(files))
		for name, fd := range files {
			message.Names, fds = append(message.Names, name), append(fds, fd)
		}
		if conn.SendFDs(message, fds) != nil {
			return // the keeper has ended, and says why elsewhere
		}
	}
}
