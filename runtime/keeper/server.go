//go:build cgo

package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
	"github.com/pausa-run/pausa/runtime/wire"
)

// Listen makes the socket, for root alone.
func (k *Keeper) Listen() (*net.UnixListener, error) {
	path := filepath.Join(k.dir, "keeper.sock")
	// The lock is ours, so a socket that is there is a dead keeper's.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	// The folder is 0700, so nobody gets in between the two calls.
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), listener.Close())
	}
	return listener, nil
}

// Serve answers clients until ctx ends.
func (k *Keeper) Serve(ctx context.Context, listener *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	go k.reapOrphans(ctx)
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		if err := checkPeer(conn); err != nil {
			k.log.Warn("refused a client", "err", err)
			_ = conn.Close()
			continue
		}
		go k.serve(wire.Conn{UnixConn: conn})
	}
}

// checkPeer lets root in, and the keeper's own user.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, credErr); err != nil {
		return fmt.Errorf("read peer's credentials: %w", err)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not use the keeper", cred.Uid)
	}
	return nil
}

// call is one request, and the connection for what does not end with one reply.
type call struct {
	conn  wire.Conn
	body  json.RawMessage
	files []*os.File
}

func (c *call) decode(v any) error {
	if err := json.Unmarshal(c.body, v); err != nil {
		return fmt.Errorf("decode request: %w", err)
	}
	return nil
}

// reply sends one reply.
func (c *call) reply(body any, err error, files ...*os.File) error {
	var r wire.Reply
	if err != nil {
		r.Error, r.Kind = err.Error(), runtime.ErrorKind(err)
	} else if body != nil {
		var encodeErr error
		if r.Body, encodeErr = json.Marshal(body); encodeErr != nil {
			return encodeErr
		}
	}
	return c.conn.Send(r, files...)
}

func (k *Keeper) serve(conn wire.Conn) {
	defer conn.Close()
	for {
		var request wire.Request
		files, err := conn.Receive(&request)
		if err != nil {
			return
		}
		c := &call{conn: conn, body: request.Body, files: files}
		err = k.answer(request.Method, c)
		wire.CloseAll(c.files)
		if err != nil {
			return
		}
	}
}

// answer runs one call. An error means that the connection is of no use any more.
func (k *Keeper) answer(method string, c *call) error {
	switch method {
	case wire.Exits:
		return k.streamExits(c)
	case wire.Hold:
		return k.streamHeld(c)
	case wire.ContainerExec:
		return k.serveExec(c)
	case wire.ContainerAttach:
		return k.serveAttach(c)
	case wire.ContainerWait:
		return k.serveWait(c)
	case wire.ContainerCheckpoint:
		return k.serveCheckpoint(c)
	case wire.FilesPut:
		return c.reply(nil, k.putFiles(c))
	case wire.FilesGet:
		return k.serveFiles(c)
	}
	return c.reply(k.simple(method, c))
}

// simple answers the calls that have one reply.
func (k *Keeper) simple(method string, c *call) (any, error) {
	switch method {
	case wire.Hello:
		return k.info, nil
	case wire.PodList:
		return k.podStates(), nil
	case wire.ContainerList:
		return k.containerStates(), nil
	case wire.PodStart:
		return with(c, k.startPod)
	case wire.ContainerCreate:
		return nil, withOnly(c, k.createContainer)
	case wire.ContainerSignal:
		return nil, withOnly(c, func(s wire.Signal) error { return k.signalContainer(s.ID, syscall.Signal(s.Signal), s.All) })
	case wire.ContainerStats:
		return with(c, func(q wire.IDs) ([]runtime.Stats, error) { return k.stats(q) })
	case wire.ContainerUpdate:
		return nil, withOnly(c, k.update)
	case wire.GroupLimit:
		return nil, withOnly(c, k.limitGroup)
	case wire.ContainerResize:
		return nil, withOnly(c, func(r wire.Resize) error { return k.resize(r.ID, r.ExecID, r.Width, r.Height) })
	}
	return k.byID(method, c)
}

// byID answers the calls whose request is an id.
func (k *Keeper) byID(method string, c *call) (any, error) {
	var q wire.ID
	if err := c.decode(&q); err != nil {
		return nil, err
	}
	switch method {
	case wire.PodRemove:
		return nil, k.removePod(q.ID)
	case wire.SliceRemove:
		return nil, removeSlice(q.ID)
	case wire.ContainerStart:
		return k.startContainer(q.ID)
	case wire.ContainerRemove:
		return nil, k.removeContainer(q.ID)
	case wire.ContainerGet:
		container, err := k.container(q.ID)
		if err != nil {
			return nil, err
		}
		return container.snapshot(), nil
	case wire.LogReopen:
		container, err := k.container(q.ID)
		if err != nil {
			return nil, err
		}
		return nil, container.reopenLog()
	}
	return nil, fmt.Errorf("the keeper knows no call %q: daemon and keeper are of different versions", method)
}

func with[Q, R any](c *call, f func(Q) (R, error)) (any, error) {
	var q Q
	if err := c.decode(&q); err != nil {
		return nil, err
	}
	return f(q)
}

func withOnly[Q any](c *call, f func(Q) error) error {
	var q Q
	if err := c.decode(&q); err != nil {
		return err
	}
	return f(q)
}

// reopenLog goes on in a new file; an ended container has nothing more to log.
func (c *container) reopenLog() error {
	if c.snapshot().Status == runtime.Exited {
		return nil
	}
	if err := c.io.log.reopen(); err != nil {
		return fmt.Errorf("reopen log of container %q: %w", c.id, err)
	}
	return nil
}
