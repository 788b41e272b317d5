//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// record is what a container's folder says of it. The spec is there only until
// its init is parked: from then on libcontainer has its own record.
type record struct {
	Spec  runtime.ContainerSpec  `json:"spec"`
	State runtime.ContainerState `json:"state"`
	// Process is the template for execs.
	Process *specs.Process `json:"process,omitempty"`
	// Cgroups are its groups by controller, "" is cgroup v2's.
	Cgroups map[string]string `json:"cgroups,omitempty"`
	Systemd bool              `json:"systemd,omitempty"` // systemd made them
}

// container is one container. Its life: recorded, parked (an init waits to
// become the command), released, ended; each is a channel or a field below.
type container struct {
	id      string
	dir     string
	request runtime.ContainerSpec // without the spec, once parked
	process *specs.Process
	parked  chan struct{} // closed when parking has ended, well or not
	done    chan struct{} // closed when the exit is recorded
	cleaned chan struct{} // closed when the cgroup is gone, after done

	mu        sync.Mutex // guards what follows
	state     runtime.ContainerState
	parkError error
	releasing bool
	// releaseError is why the parked init did not become the command.
	releaseError error
	engine       engine // nil once all is given back
	cgroups      map[string]string
	systemd      bool // systemd made its cgroups
	proc         *process
	io           *stdio
	execs        map[string]*execution
	// What its end is judged by: a signal of ours, and the kills for want of memory before it.
	told          bool
	killsWhenTold uint64
	limited       bool     // it has a memory limit of its own
	oomEvents     *os.File // counts ends of memory, with systemd on cgroup v1; nil elsewhere
}

func (c *container) snapshot() runtime.ContainerState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *container) file(name string) string { return filepath.Join(c.dir, name) }

// createContainer records the request and parks the init behind the caller's back.
func (k *Keeper) createContainer(spec runtime.ContainerSpec) error {
	if err := k.checkContainer(spec); err != nil {
		return err
	}
	now := time.Now()
	c := k.newContainer(spec.ID, runtime.ContainerState{ID: spec.ID, PodID: spec.PodID, Status: runtime.Created, CreatedAt: now})
	c.request = spec
	k.mu.Lock()
	if _, taken := k.containers[spec.ID]; taken {
		k.mu.Unlock()
		return fmt.Errorf("container %q: %w", spec.ID, runtime.ErrExists)
	}
	k.containers[spec.ID] = c
	k.mu.Unlock()
	if err := k.prepare(c); err != nil {
		k.forget(c)
		return fmt.Errorf("create container %q: %w", spec.ID, err)
	}
	go k.park(c)
	return nil
}

func (k *Keeper) newContainer(id string, state runtime.ContainerState) *container {
	return &container{
		id:      id,
		dir:     filepath.Join(k.dir, "containers", id),
		state:   state,
		parked:  make(chan struct{}),
		done:    make(chan struct{}),
		cleaned: make(chan struct{}),
	}
}

func (k *Keeper) checkContainer(spec runtime.ContainerSpec) error {
	s := spec.Spec
	switch {
	case !runtime.ValidID(spec.ID):
		return fmt.Errorf("container id %q: use 1 to 128 letters, digits, '.', '_' or '-', and begin with a letter or digit", spec.ID)
	case s == nil || s.Process == nil || s.Root == nil || s.Linux == nil:
		return fmt.Errorf("container %q: its spec lacks process, root or linux", spec.ID)
	case len(s.Process.Args) == 0:
		return fmt.Errorf("container %q: no command", spec.ID)
	case s.Linux.CgroupsPath == "":
		return fmt.Errorf("container %q: no cgroup path", spec.ID)
	}
	if spec.Restore != nil {
		if err := checkRestore(spec); err != nil {
			return fmt.Errorf("container %q: restore: %w", spec.ID, err)
		}
	}
	if spec.Program != nil {
		if err := spec.Program.Check(); err != nil {
			return fmt.Errorf("container %q: %w", spec.ID, err)
		}
	}
	p, err := k.pod(spec.PodID)
	if err != nil {
		return fmt.Errorf("container %q: %w", spec.ID, err)
	}
	if p.snapshot().Exited {
		return fmt.Errorf("container %q: the pause of pod %q has ended: remove the pod and start it again: %w", spec.ID, spec.PodID, runtime.ErrState)
	}
	if st, err := os.Stat(s.Root.Path); err != nil || !st.IsDir() {
		return fmt.Errorf("container %q: root %s is not a folder: %w", spec.ID, s.Root.Path, errors.Join(err, unix.ENOTDIR))
	}
	return nil
}

// prepare makes what can fail for reasons that the caller should hear at once.
func (k *Keeper) prepare(c *container) error {
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	log, err := openLog(c.request.LogPath)
	if err != nil {
		return err
	}
	c.io = newStdio(c.dir, log, &k.scratch, func() { k.holdChanged(c) })
	return c.save()
}

func (c *container) save() error {
	return writeRecord(c.file("container.json"), record{Spec: c.request, State: c.state, Process: c.process, Cgroups: c.cgroups, Systemd: c.systemd})
}

func (k *Keeper) forget(c *container) {
	k.mu.Lock()
	if k.containers[c.id] == c {
		delete(k.containers, c.id)
	}
	k.mu.Unlock()
	if c.io != nil {
		c.io.log.close()
	}
	if err := os.RemoveAll(c.dir); err != nil {
		k.log.Error("remove container's folder", "container", c.id, "err", err)
	}
}

// startContainer releases the parked init. When there is none because the
// command cannot be run, the container has exited with 128 and the reason.
func (k *Keeper) startContainer(id string) (runtime.ContainerState, error) {
	c, err := k.container(id)
	if err != nil {
		return runtime.ContainerState{}, err
	}
	<-c.parked
	if err := c.claimRelease(); err != nil {
		return c.snapshot(), err
	}
	if c.request.Restore != nil {
		return k.startRestored(c)
	}
	if c.parkError != nil {
		k.failStart(c, c.parkError)
		return c.snapshot(), fmt.Errorf("start container %q: %w", id, c.parkError)
	}
	c.mu.Lock()
	c.state.Status, c.state.StartedAt = runtime.Running, time.Now()
	err = c.save()
	engine := c.engine
	c.mu.Unlock()
	if err == nil {
		err = engine.release()
	}
	if err != nil {
		c.mu.Lock()
		c.releaseError = err
		c.mu.Unlock()
		err = fmt.Errorf("start container %q: %w", id, err)
		_ = c.proc.signal(unix.SIGKILL)
		<-c.done
		return c.snapshot(), err
	}
	return c.snapshot(), nil
}

// claimRelease lets exactly one call start the container.
func (c *container) claimRelease() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.releasing || c.state.Status != runtime.Created {
		return fmt.Errorf("start container %q: it is %s: %w", c.id, c.state.Status, runtime.ErrState)
	}
	c.releasing = true
	return nil
}

// signalContainer sends a signal to the init or to every process; nil when the container has ended.
func (k *Keeper) signalContainer(id string, sig syscall.Signal, all bool) error {
	c, err := k.container(id)
	if err != nil {
		return err
	}
	if sig < 0 || sig > 64 {
		return fmt.Errorf("signal container %q: there is no signal %d", id, sig)
	}
	<-c.parked
	c.mu.Lock()
	proc, engine := c.proc, c.engine
	if c.state.Status == runtime.Exited {
		proc = nil
	}
	c.mu.Unlock()
	if proc == nil || engine == nil { // it has ended, or its init did not start
		if c.parkError != nil && sig == unix.SIGKILL && c.claimRelease() == nil {
			k.failStart(c, c.parkError) // nobody has asked for its start, and who kills it waits for its end
		}
		return k.endUnrestored(c, sig)
	}
	c.noteTold()
	if all {
		return c.signalAll(sig)
	}
	if err := engine.signal(proc, sig); err != nil {
		return fmt.Errorf("signal container %q: %w", id, err)
	}
	return nil
}

// removeContainer kills what is left and forgets the container. A nil error
// means that it is gone, not that this call did it.
func (k *Keeper) removeContainer(id string) error {
	c, err := k.container(id)
	if err != nil {
		return nil
	}
	<-c.parked
	c.mu.Lock()
	proc, claimed := c.proc, c.releasing || c.state.Status == runtime.Exited
	c.releasing = true // nobody starts it any more
	c.mu.Unlock()
	if proc == nil {
		if !claimed { // whoever waits for its end has waited long enough
			k.failStart(c, c.unstarted())
		}
		<-c.done
		k.forget(c)
		return nil
	}
	if err := proc.signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill container %q: %w", id, err)
	}
	if !within(c.cleaned, killPatience) {
		return fmt.Errorf("remove container %q: %s", id, unkillable(proc.pid))
	}
	if err := c.destroy(); err != nil {
		return fmt.Errorf("remove container %q: %w", id, err)
	}
	k.forget(c)
	return nil
}

// destroy gives the cgroup and the engine's record back; doing it twice does nothing.
func (c *container) destroy() error {
	c.mu.Lock()
	engine := c.engine
	c.mu.Unlock()
	if engine == nil {
		return nil
	}
	if err := engine.destroy(); err != nil {
		return err
	}
	c.mu.Lock()
	c.engine = nil
	c.mu.Unlock()
	return nil
}

func (k *Keeper) containerStates() []runtime.ContainerState {
	list := k.allContainers()
	states := make([]runtime.ContainerState, len(list))
	for i, c := range list {
		states[i] = c.snapshot()
	}
	return states
}

func (k *Keeper) allContainers() []*container {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := make([]*container, 0, len(k.containers))
	for _, c := range k.containers {
		list = append(list, c)
	}
	return list
}
