//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// engine is what one container was made with: libcontainer in this process, or
// the program of a runtime handler. Processes, streams and exits are the
// keeper's in both cases.
type engine interface {
	// release lets the parked init become the command.
	release() error
	// exec starts the process p for e; with a terminal its master comes back.
	exec(p *specs.Process, streams streams, e *execution) (pid int, master *os.File, err error)
	// signal sends a signal to the container's first process.
	signal(init *process, sig unix.Signal) error
	// update changes the limits that are set in r.
	update(r *specs.LinuxResources) error
	// destroy gives back what is left of an ended container; doing it twice does nothing.
	destroy() error
}

// library is a container made with libcontainer.
type library struct{ lc *libcontainer.Container }

func (k *Keeper) lcRoot() string { return k.dir + "/lc" }

// createLibrary makes the container with libcontainer, without a process.
func (k *Keeper) createLibrary(c *container) (*libcontainer.Container, error) {
	config, err := k.config(c.request.Spec)
	if err != nil {
		return nil, err
	}
	config.Labels = append(config.Labels, criuLabel+"="+c.file(criuConfig))
	return libcontainer.Create(k.lcRoot(), c.id, config)
}

// startLibrary makes the container and its parked init with libcontainer.
func (k *Keeper) startLibrary(c *container) (err error) {
	spec := c.request.Spec
	lc, err := k.createLibrary(c)
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
	err = k.withStreams(c, func(s streams) (*os.File, error) { return startProcess(lc, process, s, spec.Process.Terminal) })
	if err != nil {
		return err
	}
	pid, err := process.Pid()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			killAndReap(pid)
		}
	}()
	state, err := lc.State()
	if err == nil && spec.Linux.Seccomp != nil {
		err = checkFiltered(pid)
	}
	if err != nil {
		return err
	}
	return k.parkedInit(c, library{lc}, state.CgroupPaths, pid)
}

// startProcess starts a process, on a terminal whose master comes back, or with streams.
func startProcess(lc *libcontainer.Container, process *libcontainer.Process, s streams, terminal bool) (*os.File, error) {
	if !terminal {
		setStreams(process, s)
		return nil, lc.Start(process)
	}
	console, err := newConsole()
	if err != nil {
		return nil, err
	}
	defer console.close()
	process.ConsoleSocket = console.child
	if err := lc.Start(process); err != nil {
		return nil, err
	}
	master, err := console.master()
	if err != nil {
		if pid, pidErr := process.Pid(); pidErr == nil {
			killAndReap(pid)
		}
	}
	return master, err
}

// setStreams leaves a nil stream out: a nil *os.File in an interface would not be nil.
func setStreams(process *libcontainer.Process, s streams) {
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

func (l library) release() error { return l.lc.Exec() }

func (l library) exec(p *specs.Process, s streams, e *execution) (int, *os.File, error) {
	process := ociProcess(p)
	process.SubCgroupPaths = e.subgroup()
	master, err := startProcess(l.lc, process, s, p.Terminal)
	if err != nil {
		return 0, nil, err
	}
	pid, err := process.Pid()
	return pid, master, err
}

func (l library) signal(init *process, sig unix.Signal) error { return init.signal(sig) }

func (l library) update(r *specs.LinuxResources) error {
	config := l.lc.Config()
	group, resources := *config.Cgroups, *config.Cgroups.Resources
	group.Resources, config.Cgroups = &resources, &group
	merge(&resources, r)
	resources.MemoryCheckBeforeUpdate = true // on v2 a limit below what is used would kill
	if err := l.lc.Set(config); !errors.Is(err, libcontainer.ErrNotRunning) {
		return err
	}
	return runtime.ErrState
}

func (l library) destroy() error { return l.lc.Destroy() }

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

func (k *Keeper) config(spec *specs.Spec) (*configs.Config, error) {
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       "pausa",
		UseSystemdCgroup: systemdPath(spec.Linux.CgroupsPath),
		Spec:             spec,
	})
	if err != nil {
		return nil, err
	}
	config.Seccomp = k.filters.intern(config.Seccomp)
	return config, nil
}

// systemdPath says that a cgroup path is "slice:prefix:name", for systemd to make.
func systemdPath(path string) bool { return strings.Count(path, ":") == 2 }

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

// killAndReap ends a process of ours that nobody else knows of.
func killAndReap(pid int) {
	_ = unix.Kill(pid, unix.SIGKILL)
	_, _ = unix.Wait4(pid, nil, 0, nil)
}
