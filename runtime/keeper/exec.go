//go:build cgo

package keeper

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runc/libcontainer"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// execution is one exec that runs.
type execution struct {
	c      *container
	id     string
	proc   *process
	master *os.File // of its terminal; nil without one
	end    ending
	done   chan struct{}

	mu       sync.Mutex // guards what follows
	group    string     // the cgroup of its processes alone; "" without one
	stopping bool       // whoever stops it needs the group, and gives it back
}

// execStreams are the files that the client passes for the process; nil is /dev/null.
type execStreams struct {
	stdin, stdout, stderr *os.File
}

// exec starts one more process in a running container. The streams are the caller's to close afterwards.
func (k *Keeper) exec(spec runtime.ExecSpec, streams execStreams) (*execution, error) {
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
	if c.state.Status != runtime.Running || c.lc == nil {
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

func (c *container) startExec(spec runtime.ExecSpec, streams execStreams) (*execution, error) {
	c.mu.Lock()
	lc, template := c.lc, *c.process
	c.mu.Unlock()
	if lc == nil {
		return nil, fmt.Errorf("it has ended: %w", runtime.ErrState)
	}
	template.Args, template.ConsoleSize = spec.Args, nil
	template.Env = mergeEnv(template.Env, spec.Env)
	if spec.Terminal {
		template.ConsoleSize = &specs.Box{Width: uint(spec.Width), Height: uint(spec.Height)}
	}
	e := &execution{c: c, id: spec.ExecID, done: make(chan struct{})}
	process := ociProcess(&template)
	process.SubCgroupPaths = e.makeGroup()
	var tty *console
	if spec.Terminal {
		var err error
		if tty, err = newConsole(); err != nil {
			return nil, err
		}
		defer tty.close()
		process.ConsoleSocket = tty.child
	} else {
		setStreams(process, streams)
	}
	if err := lc.Start(process); err != nil {
		e.leaveGroup()
		return nil, err
	}
	pid, err := process.Pid()
	if err == nil {
		e.proc, err = openProcess(pid, 0)
	}
	if err == nil && tty != nil {
		e.master, err = tty.master()
	}
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
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

// setStreams leaves a nil stream out: a nil *os.File in an interface would not be nil.
func setStreams(process *libcontainer.Process, s execStreams) {
	if s.stdin != nil {
		process.Stdin = s.stdin
	}
	if s.stdout != nil {
		process.Stdout = s.stdout
	}
	if s.stderr != nil {
		process.Stderr = s.stderr
	}
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
