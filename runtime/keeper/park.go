//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pausa-run/pausa/runtime"
)

// park brings a container's init to the point where it waits to become the command.
func (k *Keeper) park(c *container) {
	if c.request.Restore != nil { // nothing of it may run before its start
		close(c.parked)
		return
	}
	err := k.startInit(c)
	defer k.holdChanged(c)
	defer close(c.parked)
	if err == nil {
		k.enterPodMemory(c)
		go k.watch(c)
		return
	}
	c.mu.Lock()
	c.parkError = err
	c.mu.Unlock()
	c.io.abandon()
	k.log.Warn("container's init did not start", "container", c.id, "err", err)
}

func (k *Keeper) startInit(c *container) error {
	k.adapt(c.request.Spec)
	c.systemd = systemdPath(c.request.Spec.Linux.CgroupsPath)
	if c.request.Program != nil {
		return k.startProgram(c)
	}
	return k.startLibrary(c)
}

// withStreams gives start the container's ends of its streams, or takes the
// master of its terminal from it.
func (k *Keeper) withStreams(c *container, start func(streams) (master *os.File, err error)) error {
	if c.request.Spec.Process.Terminal {
		master, err := start(streams{})
		if err == nil {
			c.io.useTerminal(master)
		}
		return err
	}
	ends, err := c.io.pipes(c.request.Stdin, c.request.StdinOnce)
	defer ends.close() // they are the container's; a nil one is none
	if err != nil {
		return err
	}
	if err := k.giveTo(c.request.PodID, ends); err != nil {
		return err
	}
	_, err = start(ends)
	return err
}

// giveTo makes the root of a pod's user namespace the owner of a container's
// streams: nobody in there could open /dev/stdout otherwise.
func (k *Keeper) giveTo(podID string, ends streams) error {
	p, err := k.pod(podID)
	if err != nil {
		return err
	}
	spec := p.snapshot().Spec
	if len(spec.UIDMaps) == 0 {
		return nil
	}
	uid, uidOK := hostID(spec.UIDMaps, 0)
	gid, gidOK := hostID(spec.GIDMaps, 0)
	if !uidOK || !gidOK {
		return errors.New("the pod's user namespace has no root")
	}
	for _, f := range ends.all() {
		if err := f.Chown(uid, gid); err != nil {
			return fmt.Errorf("give streams to the user namespace: %w", err)
		}
	}
	return nil
}

// hostID is the host's number of an id in a user namespace.
func hostID(maps []runtime.IDMap, id uint32) (int, bool) {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return int(m.HostID + id - m.ContainerID), true
		}
	}
	return 0, false
}

// parkedInit records the init. An error means that it is the caller's to end.
func (k *Keeper) parkedInit(c *container, e engine, groups map[string]string, pid int) error {
	proc, err := openProcess(pid, 0)
	if err != nil {
		return err
	}
	template := c.request.Spec.Process
	c.mu.Lock()
	defer c.mu.Unlock()
	c.engine, c.proc, c.cgroups = e, proc, groups
	c.limited = limited(c.request.Spec)
	c.process, c.request.Spec = template, nil
	c.state.Pid, c.state.StartTime = pid, proc.startTime
	if err := c.save(); err != nil {
		c.engine, c.proc = nil, nil
		_ = proc.fd.Close()
		return err
	}
	if err := c.io.start(); err != nil { // the container needs no journal
		k.log.Warn("keep a journal of output; after a crash some may be logged twice", "container", c.id, "err", err)
	}
	return nil
}

func limited(spec *specs.Spec) bool {
	r := spec.Linux.Resources
	return r != nil && r.Memory != nil && r.Memory.Limit != nil && *r.Memory.Limit > 0
}

// adapt cuts a spec down to what this host and this keeper can do.
func (k *Keeper) adapt(spec *specs.Spec) {
	spec.Annotations = withoutOrders(spec.Annotations)
	k.limits.clamp(spec.Process)
	k.limits.clampGroup(spec.Linux.Resources)
	if slices.Contains(spec.Linux.MaskedPaths, "/proc/interrupts") {
		// These tell the same, for each processor; only the host knows how many there are.
		spec.Linux.MaskedPaths = append(spec.Linux.MaskedPaths, k.throttle...)
	}
	if !k.unified {
		spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
			return n.Type == specs.CgroupNamespace
		})
	}
}

// failStart records that a container never came to run its command.
func (k *Keeper) failStart(c *container, reason error) {
	k.finish(c, runtime.Exit{ID: c.id, Code: 128, StartError: reason.Error()})
	close(c.cleaned)
}
