//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// park brings a container's init to the point where it waits to become the command.
func (k *Keeper) park(c *container) {
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

func (k *Keeper) startInit(c *container) (err error) {
	spec := c.request.Spec
	k.adapt(spec)
	config, err := k.config(spec)
	if err != nil {
		return err
	}
	lc, err := libcontainer.Create(k.lcRoot(), c.id, config)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lc.Destroy())
		}
	}()
	process := ociProcess(spec.Process)
	process.Init = true
	if err := c.startProcess(lc, process, config); err != nil {
		return err
	}
	pid, err := process.Pid()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}()
	return k.parkedInit(c, lc, pid)
}

func (k *Keeper) lcRoot() string { return k.dir + "/lc" }

// startProcess starts init with its streams connected.
func (c *container) startProcess(lc *libcontainer.Container, process *libcontainer.Process, config *configs.Config) error {
	if c.request.Spec.Process.Terminal {
		console, err := newConsole()
		if err != nil {
			return err
		}
		defer console.close()
		process.ConsoleSocket = console.child
		if err := lc.Start(process); err != nil {
			return err
		}
		master, err := console.master()
		if err != nil {
			return err
		}
		c.io.useTerminal(master)
		return nil
	}
	ends, err := c.io.pipes(process, c.request.Stdin, c.request.StdinOnce)
	if err != nil {
		return err
	}
	defer closeAll(ends)
	if err := giveTo(config, ends); err != nil {
		return err
	}
	return lc.Start(process)
}

// giveTo makes the root of a container's user namespace the owner of its
// streams: nobody in there could open /dev/stdout otherwise.
func giveTo(config *configs.Config, ends []*os.File) error {
	if !config.Namespaces.Contains(configs.NEWUSER) {
		return nil
	}
	uid, err := config.HostRootUID()
	if err != nil {
		return fmt.Errorf("find root of the user namespace: %w", err)
	}
	gid, err := config.HostRootGID()
	if err != nil {
		return fmt.Errorf("find root of the user namespace: %w", err)
	}
	for _, f := range ends {
		if err := f.Chown(uid, gid); err != nil {
			return fmt.Errorf("give streams to the user namespace: %w", err)
		}
	}
	return nil
}

// parkedInit records the init. One that should have a seccomp filter and has none is never let go.
func (k *Keeper) parkedInit(c *container, lc *libcontainer.Container, pid int) error {
	proc, err := openProcess(pid, 0)
	if err != nil {
		return err
	}
	state, err := lc.State()
	if err == nil && c.request.Spec.Linux.Seccomp != nil {
		err = checkFiltered(pid)
	}
	if err != nil {
		_ = proc.fd.Close()
		return err
	}
	template := c.request.Spec.Process
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lc, c.proc, c.cgroups = lc, proc, state.CgroupPaths
	c.limited = limited(c.request.Spec)
	c.process, c.request.Spec = template, nil
	c.state.Pid, c.state.StartTime = pid, proc.startTime
	if err := c.save(); err != nil {
		c.lc, c.proc = nil, nil
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

// checkFiltered looks at the kernel's word, not at what was asked for.
func checkFiltered(pid int) error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return fmt.Errorf("check seccomp filter: %w", err)
	}
	if !strings.Contains(string(status), "\nSeccomp:\t2\n") {
		return errors.New("check seccomp filter: the kernel has none for this process")
	}
	return nil
}

// adapt cuts a spec down to what this host and this keeper can do.
func (k *Keeper) adapt(spec *specs.Spec) {
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

func (k *Keeper) config(spec *specs.Spec) (*configs.Config, error) {
	spec.Annotations = withoutUnitProperties(spec.Annotations)
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       "pausa",
		UseSystemdCgroup: strings.Count(spec.Linux.CgroupsPath, ":") == 2,
		Spec:             spec,
	})
	if err != nil {
		return nil, err
	}
	config.Seccomp = k.filters.intern(config.Seccomp)
	return config, nil
}

// initLogLevel is logrus's for warnings: without one an init reports each of its steps.
const initLogLevel = "3"

// ociProcess turns the OCI form of a process into libcontainer's.
func ociProcess(p *specs.Process) *libcontainer.Process {
	out := &libcontainer.Process{
		Args: p.Args,
		Env:  p.Env,
		Cwd:  p.Cwd,
		UID:  int(p.User.UID),
		GID:  int(p.User.GID),

		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
		Label:           p.SelinuxLabel,
		LogLevel:        initLogLevel,
	}
	for _, g := range p.User.AdditionalGids {
		out.AdditionalGroups = append(out.AdditionalGroups, int(g))
	}
	if c := p.Capabilities; c != nil {
		out.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		if number, ok := rlimitNumber(r.Type); ok {
			out.Rlimits = append(out.Rlimits, configs.Rlimit{Type: number, Soft: r.Soft, Hard: r.Hard})
		}
	}
	if p.ConsoleSize != nil {
		out.ConsoleWidth, out.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	return out
}

// failStart records that a container never came to run its command.
func (k *Keeper) failStart(c *container, reason error) {
	k.finish(c, runtime.Exit{ID: c.id, Code: 128, StartError: reason.Error()})
	close(c.cleaned)
}
