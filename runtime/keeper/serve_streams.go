//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pausa-run/pausa/runtime"
	"github.com/pausa-run/pausa/runtime/wire"
)

// hungUp is closed when the client closes its end. It may only be used when
// the client sends nothing more on this connection: what it says is not read.
func (c *call) hungUp() <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, c.conn.UnixConn)
	}()
	return gone
}

// errDone ends a connection that a stream has used up.
var errDone = errors.New("stream has ended")

func (k *Keeper) streamExits(c *call) error {
	ch := k.subscribe()
	defer k.unsubscribe(ch)
	if err := c.reply(nil, nil); err != nil {
		return err
	}
	gone := c.hungUp()
	for {
		select {
		case exit, ok := <-ch:
			if !ok {
				return errDone
			}
			if err := c.reply(exit, nil); err != nil {
				return err
			}
		case <-gone:
			return errDone
		}
	}
}

func (k *Keeper) serveWait(c *call) error {
	var q wire.ID
	if err := c.decode(&q); err != nil {
		return c.reply(nil, err)
	}
	container, err := k.container(q.ID)
	if err != nil {
		return c.reply(nil, err)
	}
	select {
	case <-container.done:
		return c.reply(*container.snapshot().Exit, nil)
	default:
	}
	gone := c.hungUp()
	select {
	case <-container.done:
		_ = c.reply(*container.snapshot().Exit, nil)
	case <-gone:
	}
	return errDone
}

// listen hears the end of the input, and is closed when the client closes its end.
func (a *attachment) listen(conn wire.Conn) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			var said wire.Request
			files, err := conn.Receive(&said)
			wire.CloseAll(files)
			if err != nil {
				return
			}
			if said.Method == wire.CloseInput && a.c.request.StdinOnce {
				a.c.io.closeStdin()
			}
		}
	}()
	return gone
}

// streams takes the passed files in the order stdin, stdout, stderr.
func (c *call) streams(which wire.Streams) (s streams, err error) {
	rest := c.files
	take := func(there bool, to **os.File) {
		if there && len(rest) > 0 {
			*to, rest = rest[0], rest[1:]
		} else if there {
			err = errors.New("fewer files came with the request than it names")
		}
	}
	take(which.Stdin, &s.stdin)
	take(which.Stdout, &s.stdout)
	take(which.Stderr, &s.stderr)
	return s, err
}

func (k *Keeper) serveExec(c *call) error {
	var q runtime.ExecRequest
	err := c.decode(&q)
	var files streams
	if err == nil {
		files, err = c.streams(q.Streams)
	}
	if err != nil {
		return c.reply(nil, err)
	}
	e, err := k.exec(q.ExecSpec, files)
	wire.CloseAll(c.files) // the process has its own; readers must see its end
	c.files = nil
	if err != nil {
		return c.reply(nil, err)
	}
	var passed []*os.File
	if e.master != nil {
		passed = append(passed, e.master)
	}
	if err := c.reply(wire.Started{Pid: e.proc.pid}, nil, passed...); err != nil {
		e.stop(false)
		return err
	}
	if e.master != nil && q.ExecID == "" {
		_ = e.master.Close() // nobody can name it for a resize: the client's is the only one
	}
	select {
	case <-e.done:
	case atOnce := <-waitsNoMore(c.conn):
		e.stop(atOnce)
	}
	_ = c.reply(wire.ExecExit{Code: e.end.code}, nil)
	return errDone
}

// waitsNoMore hears that the client waits no more, by a word or by its leaving, and
// whether the process is to be killed at once.
func waitsNoMore(conn wire.Conn) <-chan bool {
	atOnce := make(chan bool, 1)
	go func() {
		var said wire.Request
		files, err := conn.Receive(&said)
		wire.CloseAll(files)
		atOnce <- err == nil && said.Method == wire.KillExec
	}()
	return atOnce
}

func (k *Keeper) serveAttach(c *call) error {
	var q runtime.AttachRequest
	err := c.decode(&q)
	var files streams
	if err == nil {
		files, err = c.streams(wire.Streams{Stdout: q.Streams.Stdout, Stderr: q.Streams.Stderr})
	}
	if err != nil {
		return c.reply(nil, err)
	}
	a, err := k.attach(q.ID, q.Streams.Stdin, files.stdout, files.stderr)
	if err != nil {
		return c.reply(nil, err)
	}
	c.files = nil // detach closes them
	defer a.detach(q.Streams.Stdin)
	var passed []*os.File
	if a.input != nil {
		passed = append(passed, a.input)
		defer a.input.Close()
	}
	attached := wire.Attached{Terminal: a.c.process.Terminal, StdinOnce: a.c.request.StdinOnce}
	if err := c.reply(attached, nil, passed...); err != nil {
		return fmt.Errorf("answer attach: %w", err)
	}
	if a.input != nil {
		_ = a.input.Close()
	}
	gone := a.listen(c.conn)
	select {
	case <-a.c.done:
		a.detach(q.Streams.Stdin) // before the reply: the client reads up to the end
		_ = c.reply(nil, nil)
	case <-gone:
	case <-a.client.gone:
	}
	return errDone
}
