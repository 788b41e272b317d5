//go:build cgo

package keeper

import (
	"fmt"
	"net"
	"os"
	"time"

	"github.com/pausa-run/pausa/runtime/wire"
)

// heldPatience bounds the reading of what the starter has held.
const heldPatience = 30 * time.Second

// Held is what somebody has held for containers over an earlier keeper's death, by id and name.
type Held map[string]map[string]*os.File

// ReceiveHeld reads what comes over the socket fd until its end.
func ReceiveHeld(fd int) (Held, error) {
	f := os.NewFile(uintptr(fd), "held")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("open socket of held files: %w", err)
	}
	defer conn.Close()
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("descriptor %d is no unix socket", fd)
	}
	_ = c.SetReadDeadline(time.Now().Add(heldPatience))
	held := Held{}
	for {
		var message wire.Held
		files, err := wire.Conn{UnixConn: c}.Receive(&message)
		if err != nil {
			return held, nil //nolint:nilerr // the end, or the starter's: what has come is of use
		}
		if len(files) != len(message.Names) {
			wire.CloseAll(files)
			continue
		}
		held[message.ID] = map[string]*os.File{}
		for i, name := range message.Names {
			held[message.ID][name] = files[i]
		}
	}
}

// take gives one file away.
func (h Held) take(id, name string) *os.File {
	f := h[id][name]
	delete(h[id], name)
	return f
}

// close lets go of what no container has taken.
func (h Held) close() {
	for _, files := range h {
		for _, f := range files {
			_ = f.Close()
		}
	}
}

// holdBacklog is how many changes a slow holder may fall behind before its stream ends.
const holdBacklog = 4096

// holdChanged tells those that hold files that a container has others now.
func (k *Keeper) holdChanged(c *container) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for ch := range k.holders {
		select {
		case ch <- c:
		default: // it would miss one: better that it begins again
			delete(k.holders, ch)
			close(ch)
		}
	}
}

// streamHeld gives a client duplicates of all containers' files, and goes on with every change.
func (k *Keeper) streamHeld(c *call) error {
	ch := make(chan *container, holdBacklog)
	k.mu.Lock()
	k.holders[ch] = struct{}{}
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.holders, ch)
		k.mu.Unlock()
	}()
	for _, container := range k.allContainers() {
		select {
		case <-container.parked:
			if err := c.sendHeld(container); err != nil {
				return err
			}
		default: // it will be told
		}
	}
	if err := c.conn.Send(wire.Held{}); err != nil {
		return err
	}
	gone := c.hungUp()
	for {
		select {
		case container, ok := <-ch:
			if !ok {
				return errDone
			}
			if err := c.sendHeld(container); err != nil {
				return err
			}
		case <-gone:
			return errDone
		}
	}
}

func (c *call) sendHeld(of *container) error {
	names, fds := of.toHold()
	defer wire.CloseFDs(fds)
	return c.conn.SendFDs(wire.Held{ID: of.id, Names: names}, fds)
}

// toHold duplicates what must outlive the keeper; nothing when the container has ended.
func (c *container) toHold() (names []string, fds []int) {
	add := func(name string, f *os.File) {
		if f == nil {
			return
		}
		if fd, err := wire.Duplicate(f); err == nil { // else it is closed already
			names, fds = append(names, name), append(fds, fd)
		}
	}
	c.mu.Lock()
	proc, ended := c.proc, c.state.Exit != nil
	c.mu.Unlock()
	if ended || proc == nil {
		return nil, nil
	}
	add(wire.HeldProcess, proc.fd)
	for _, p := range c.io.pumps {
		if p.tty {
			add(wire.HeldTerminal, p.source)
		} else {
			add(p.name, p.source)
		}
	}
	c.io.mu.Lock()
	defer c.io.mu.Unlock()
	add(wire.HeldStdin, c.io.stdin)
	return names, fds
}
