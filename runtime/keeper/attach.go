//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// attachment is one client's connection to a container's streams.
type attachment struct {
	c      *container
	client *client
	input  *os.File // for the client to write to; nil without input
}

// attach connects pipes to a container's outputs. They are closed by detach.
func (k *Keeper) attach(id string, stdin bool, stdout, stderr *os.File) (*attachment, error) {
	c, err := k.container(id)
	if err != nil {
		return nil, err
	}
	<-c.parked
	if s := c.snapshot(); s.Status == runtime.Exited || s.Pid == 0 {
		return nil, fmt.Errorf("attach to container %q: it has ended: %w", id, runtime.ErrState)
	}
	a := &attachment{c: c, client: &client{stdout: stdout, stderr: stderr, gone: make(chan struct{})}}
	for _, f := range []*os.File{stdout, stderr} {
		if f != nil {
			if err := setNonblock(f); err != nil {
				return nil, fmt.Errorf("attach to container %q: %w", id, err)
			}
		}
	}
	if stdin {
		if a.input, err = c.io.input(); err != nil {
			return nil, fmt.Errorf("attach to container %q: %w", id, err)
		}
		if a.input == nil {
			return nil, fmt.Errorf("attach to container %q: it was made without an input", id)
		}
	}
	c.io.clients.add(a.client)
	return a, nil
}

func setNonblock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(fd uintptr) { result = unix.SetNonblock(int(fd), true) })
	return errors.Join(err, result)
}

// detach ends it. The first client that leaves ends the input of a container made with StdinOnce.
func (a *attachment) detach(hadInput bool) {
	a.c.io.clients.remove(a.client)
	for _, f := range []*os.File{a.client.stdout, a.client.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
	if hadInput && a.c.request.StdinOnce {
		a.c.io.closeStdin()
	}
}
