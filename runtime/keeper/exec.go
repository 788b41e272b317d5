//go:build cgo

package keeper

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pausa-run/pausa/runtime"
)

// execution is one exec that runs.
type execution struct {
	c      *container
	id     string
	proc   *process
	master *os.File // of its terminal; nil without one
	late   bool     // it ran before it came to its cgroup
	end    ending
	done   chan struct{}

	mu       sync.Mutex // guards what follows
	group    string     // the cgroup of its processes alone; "" without one
	stopping bool       // whoever stops it needs the group, and gives it back
}

// exec starts one more process in a running container. The streams are the caller's to close afterwards.
func (k *Keeper) exec(spec runtime.ExecSpec, streams streams) (*execution, error) {
	c, err := k.container(spec.ContainerID)
	if err != nil {
		return nil, err
	}
	if len(spec.Args) == 0 || spec.Args[0] == "" {
		return nil, fmt.Errorf("exec in container %q: no command", c.id)
	}
	if err := c.reserve(spec.ExecID); err != nil {
		return nil, err
	}
	e, err := c.startExec(spec, streams)
	if err != nil {
		c.release(spec.ExecID)
		return nil, fmt.Errorf("exec in container %q: %w", c.id, err)
	}
	go func() {
		e.end = e.proc.wait()
		c.release(spec.ExecID)
		k.tidy.Reset(tidyDelay)
		close(e.done)
		e.leaveGroup()
	}()
	return e, nil
}

// reserve takes the exec's id, and checks that the container runs.
func (c *container) reserve(execID string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Status != runtime.Running || c.engine == nil {
		return fmt.Errorf("exec in container %q: it is %s: %w", c.id, c.state.Status, runtime.ErrState)
	}
	if execID == "" {
		return nil
	}
	if _, taken := c.execs[execID]; taken {
		return fmt.Errorf("exec %q in container %q: %w", execID, c.id, runtime.ErrExists)
	}
	if c.execs == nil {
		c.execs = map[string]*execution{}
	}
	c.execs[execID] = nil
	return nil
}

func (c *container) release(execID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.execs[execID]; e != nil && e.master != nil {
		_ = e.master.Close()
	}
	delete(c.execs, execID)
}

func (c *container) startExec(spec runtime.ExecSpec, streams streams) (*execution, error) {
	c.mu.Lock()
	engine, template := c.engine, *c.process
	c.mu.Unlock()
	if engine == nil {
		return nil, fmt.Errorf("it has ended: %w", runtime.ErrState)
	}
	template.Args, template.ConsoleSize, template.Terminal = spec.Args, nil, spec.Terminal
	template.Env = mergeEnv(template.Env, spec.Env)
	if spec.Terminal {
		template.ConsoleSize = &specs.Box{Width: uint(spec.Width), Height: uint(spec.Height)}
	}
	e := &execution{c: c, id: spec.ExecID, done: make(chan struct{})}
	e.makeGroup()
	pid, master, err := engine.exec(&template, streams, e)
	if err != nil {
		e.leaveGroup()
		return nil, err
	}
	e.master = master
	if e.proc, err = openProcess(pid, 0); err != nil {
		killAndReap(pid)
		e.leaveGroup()
		return nil, err
	}
	c.mu.Lock()
	if spec.ExecID != "" {
		c.execs[spec.ExecID] = e
	}
	c.mu.Unlock()
	return e, nil
}

// mergeEnv puts more over base, variable by variable.
func mergeEnv(base, more []string) []string {
	out := slices.Clone(base)
	for _, e := range more {
		name, _, _ := strings.Cut(e, "=")
		out = slices.DeleteFunc(out, func(b string) bool { return strings.HasPrefix(b, name+"=") })
		out = append(out, e)
	}
	return out
}

func (k *Keeper) resize(id, execID string, width, height uint16) error {
	c, err := k.container(id)
	if err != nil {
		return err
	}
	if execID == "" {
		<-c.parked
		if err := c.io.resize(width, height); err != nil {
			return fmt.Errorf("resize terminal of container %q: %w", id, err)
		}
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.execs[execID]
	if e == nil {
		return fmt.Errorf("exec %q in container %q: %w", execID, id, runtime.ErrNotFound)
	}
	if e.master == nil {
		return fmt.Errorf("resize exec %q in container %q: it has no terminal", execID, id)
	}
	return setSize(e.master, width, height)
}
