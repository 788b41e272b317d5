//go:build cgo

package keeper

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// bundleVersion is the version of the OCI specification that bundles name. What
// is in them that is newer, a program can do or not, whatever the version;
// but some take no newer one.
const bundleVersion = "1.0.2"

// programPatience bounds one call of a program.
const programPatience = 2 * time.Minute

// program is a container made with the program of a runtime handler. Its init,
// and the processes of execs, become children of the keeper when the program
// has ended, since that is their subreaper.
type program struct {
	runtime.Program
	id      string
	dir     string // the container's folder
	root    string // the program's state
	systemd bool   // systemd makes the cgroups
	cgroups map[string]string
	nulls   *nulls

	using sync.Mutex // held by calls that must not meet: the end of a start removes a file of what a delete removes whole
}

func (k *Keeper) program(c *container) *program {
	p := &program{
		Program: *c.request.Program, id: c.id, dir: c.dir,
		root: c.request.Program.Root, systemd: c.systemd, cgroups: c.cgroups, nulls: &k.nulls,
	}
	if p.root == "" {
		p.root = filepath.Join(k.dir, "oci", p.Name)
	}
	return p
}

// startProgram has the program make the container and its parked init.
func (k *Keeper) startProgram(c *container) (err error) {
	spec := c.request.Spec
	c.systemd = systemdPath(spec.Linux.CgroupsPath)
	p := k.program(c)
	if !c.systemd { // what half a container may leave
		if p.cgroups, err = groupsAt(spec.Linux.CgroupsPath, k.unified); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(p.root, 0o700); err != nil {
		return fmt.Errorf("make folder of runtime handler %s: %w", p.Name, err)
	}
	if err := os.MkdirAll(p.bundle(), 0o700); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	bundled := *spec
	bundled.Version = bundleVersion
	if pod, err := k.pod(c.request.PodID); err == nil { // joining its namespace is not enough for a sandbox with a kernel of its own
		bundled.Hostname = podHostname(pod.snapshot().Spec)
	}
	if err := writeRecord(filepath.Join(p.bundle(), "config.json"), bundled); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.destroy())
		}
	}()
	var pid int
	err = k.withStreams(c, func(s streams) (master *os.File, err error) {
		pid, master, err = p.spawn(s, spec.Process.Terminal, "create", "--bundle", p.bundle())
		return master, err
	})
	if err != nil {
		return err
	}
	if p.cgroups, err = groupsOf(pid, c.id, k.unified); err != nil {
		return err
	}
	return k.parkedInit(c, p, p.cgroups, pid)
}

func (p *program) bundle() string { return filepath.Join(p.dir, "bundle") }

// spawn runs a command that leaves a process behind: its pid, and the master of its terminal.
func (p *program) spawn(s streams, terminal bool, command ...string) (pid int, master *os.File, err error) {
	pidFile, err := p.scratch("pid-")
	if err != nil {
		return 0, nil, err
	}
	defer os.Remove(pidFile)
	command = append(command, "--pid-file", pidFile)
	var console *consoleSocket
	if terminal {
		if console, err = listenConsole(p.bundle()); err != nil {
			return 0, nil, err
		}
		defer console.close()
		command = append(command, "--console-socket", console.name)
	}
	null, err := p.nulls.open()
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	whole := streams{cmp.Or(s.stdin, null), cmp.Or(s.stdout, null), cmp.Or(s.stderr, null)}
	if err := p.call(&whole, nil, append(command, p.id)...); err != nil {
		return 0, nil, err
	}
	data, err := os.ReadFile(pidFile)
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
	}
	if err != nil {
		return 0, nil, fmt.Errorf("%s gave no pid: %w", p.Path, err)
	}
	if terminal {
		master, err = console.master()
	}
	return pid, master, err
}

// scratch makes an empty file for the program, in the container's folder.
func (p *program) scratch(prefix string) (string, error) {
	err := os.MkdirAll(p.bundle(), 0o700) // an earlier keeper may have ended before it made it
	if err != nil {
		return "", fmt.Errorf("make bundle: %w", err)
	}
	f, err := os.CreateTemp(p.bundle(), prefix)
	if err != nil {
		return "", fmt.Errorf("make file for runtime handler %s: %w", p.Name, err)
	}
	return f.Name(), f.Close()
}

// call runs the program in the bundle's folder. What it says of an error is the
// last line of its log, or what it has written to its standard error.
// With streams, all three are a process's that stays.
func (p *program) call(s *streams, stdin io.Reader, command ...string) error {
	log, err := p.scratch("log-")
	if err != nil {
		return err
	}
	defer os.Remove(log)
	args := append([]string{}, p.Args...)
	args = append(args, "--root", p.root, "--log", log, "--log-format", "json")
	if p.systemd {
		args = append(args, "--systemd-cgroup")
	}
	ctx, cancel := context.WithTimeout(context.Background(), programPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.Path, append(args, command...)...)
	cmd.Dir, cmd.Env = p.bundle(), []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdin = stdin
	var said bytes.Buffer
	if s == nil {
		cmd.Stderr, cmd.WaitDelay = &said, time.Second
	} else {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = s.stdin, s.stdout, s.stderr
	}
	if err := runToEnd(cmd); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("it did not end within %s", programPatience)
		}
		return fmt.Errorf("%s %s: %w", p.Path, command[0], explain(err, log, said.String()))
	}
	return nil
}

// runToEnd runs cmd, which dies with the keeper: half a container that nobody
// waits for would be in the way of the next keeper.
func runToEnd(cmd *exec.Cmd) error {
	goruntime.LockOSThread() // what the kernel calls the parent is the thread
	defer goruntime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd.Run()
}

// explain puts the program's own words in the place of its exit status.
func explain(err error, log, said string) error {
	var status *exec.ExitError
	if !errors.As(err, &status) {
		return err
	}
	data, _ := os.ReadFile(log)
	last := strings.TrimSpace(said)
	for line := range bytes.Lines(data) {
		var entry struct{ Msg, Level string }
		if json.Unmarshal(line, &entry) == nil && entry.Msg != "" && entry.Level != "debug" && entry.Level != "info" {
			last = entry.Msg
		}
	}
	if last == "" {
		return err
	}
	return fmt.Errorf("%s (%w)", last, err)
}

func (p *program) release() error {
	p.using.Lock()
	defer p.using.Unlock()
	return p.call(nil, nil, "start", p.id)
}

func (p *program) exec(process *specs.Process, s streams, e *execution) (int, *os.File, error) {
	file, err := p.scratch("process-")
	if err != nil {
		return 0, nil, err
	}
	defer os.Remove(file)
	if err := writeRecord(file, process); err != nil {
		return 0, nil, err
	}
	command := []string{"exec", "--detach", "--process", file}
	early := false
	for controller, group := range e.subgroup() {
		if controller != "" {
			group = controller + ":" + group
		}
		early = p.ExecGroups == runtime.AnyExecGroups || controller == "" && p.ExecGroups == runtime.UnifiedExecGroups
		if early {
			command = append(command, "--cgroup", group)
		}
	}
	pid, master, err := p.spawn(s, process.Terminal, command...)
	if err == nil && !early {
		e.enterGroup(pid)
	}
	return pid, master, err
}

// signal leaves all but SIGKILL to the program: the process that we know may stand for a machine of its own.
func (p *program) signal(init *process, sig unix.Signal) error {
	if sig == unix.SIGKILL || sig == 0 {
		return init.signal(sig)
	}
	err := p.call(nil, nil, "kill", p.id, strconv.Itoa(int(sig)))
	if err != nil && init.ended() {
		return nil
	}
	return err
}

func (p *program) update(r *specs.LinuxResources) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode resources: %w", err)
	}
	return p.call(nil, bytes.NewReader(data), "update", "--resources", "-", p.id)
}

// destroy has the program forget the container. What it leaves, or would leave
// because it is gone itself, is removed here.
func (p *program) destroy() error {
	p.using.Lock()
	defer p.using.Unlock()
	err := p.call(nil, nil, "delete", "--force", p.id)
	if err != nil {
		err = errors.Join(err, os.RemoveAll(filepath.Join(p.root, p.id)))
	}
	left := cgroups.RemovePaths(p.cgroups)
	if left == nil {
		return nil // no process of it is left: it is of no use to try again
	}
	return errors.Join(err, left)
}

// created says that the program holds an init that waits for its start.
func (p *program) created() bool {
	var out bytes.Buffer
	cmd := exec.Command(p.Path, append(append([]string{}, p.Args...), "--root", p.root, "state", p.id)...)
	cmd.Stdout = &out
	var state specs.State
	return runToEnd(cmd) == nil && json.Unmarshal(out.Bytes(), &state) == nil && state.Status == specs.StateCreated
}

// forgotten says that the program has no state of the container and nothing is left of its cgroups.
func (p *program) forgotten() bool {
	if state, _ := filepath.Glob(filepath.Join(p.root, p.id+"*")); len(state) > 0 {
		return false
	}
	for _, folder := range p.cgroups {
		if cgroups.PathExists(folder) {
			return false
		}
	}
	return true
}

// groupsAt are the cgroups of a path, in all hierarchies, whether they are there or not.
func groupsAt(path string, unified bool) (map[string]string, error) {
	roots, err := hierarchies(unified)
	if err != nil {
		return nil, err
	}
	if !unified {
		delete(roots, "") // nothing of it is here in a hybrid host's
	}
	for controller, root := range roots {
		roots[controller] = filepath.Join(root, path)
	}
	return roots, nil
}

// hierarchies are the roots of the cgroup hierarchies, by controller; "" is cgroup v2's.
func hierarchies(unified bool) (map[string]string, error) {
	if unified {
		return map[string]string{"": "/sys/fs/cgroup"}, nil
	}
	mounts, err := cgroups.GetCgroupMounts(true)
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	roots := map[string]string{}
	for _, m := range mounts {
		for _, controller := range m.Subsystems {
			roots[controller] = m.Mountpoint
		}
	}
	if cgroups.IsCgroup2HybridMode() {
		roots[""] = "/sys/fs/cgroup/unified"
	}
	return roots, nil
}

// groupsOf finds the cgroups of a container by its process, by controller; ""
// is that of cgroup v2. One that does not bear the container's id is not its
// own: all that is in it would be killed and the group removed.
func groupsOf(pid int, id string, unified bool) (map[string]string, error) {
	of, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	groups := map[string]string{}
	add := func(controller, mountpoint, root, path string) {
		rest, below := strings.CutPrefix(path, strings.TrimSuffix(root, "/"))
		if below && strings.Contains(filepath.Base(rest), id) {
			groups[controller] = filepath.Join(mountpoint, rest)
		}
	}
	if unified {
		add("", "/sys/fs/cgroup", "/", of[""])
		return groups, nil
	}
	mounts, err := cgroups.GetCgroupMounts(true)
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	for _, m := range mounts {
		for _, controller := range m.Subsystems {
			path, ok := of[controller]
			if !ok {
				path = of["name="+controller]
			}
			add(controller, m.Mountpoint, m.Root, path)
		}
	}
	return groups, nil
}
