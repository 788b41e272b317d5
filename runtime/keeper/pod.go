//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
	"github.com/pausa-run/pausa/runtime/pause"
)

// nobody is the id that pause takes: it owns nothing on the host.
const nobody = 65535

// killPatience bounds the wait for a process that was killed; one that the kernel cannot end is named after it.
const killPatience = 10 * time.Second

// pod is one pause process.
type pod struct {
	mu    sync.Mutex
	state runtime.PodState
	proc  *process
	done  chan struct{} // closed when pause has ended
}

func (p *pod) snapshot() runtime.PodState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// startPod starts pause in new namespaces and sets the pod's sysctls in them: all of it or nothing.
func (k *Keeper) startPod(spec runtime.PodSpec) (state runtime.PodState, err error) {
	if err := checkPod(spec); err != nil {
		return state, err
	}
	p := &pod{state: runtime.PodState{ID: spec.ID, Spec: spec}, done: make(chan struct{})}
	k.mu.Lock()
	if _, taken := k.pods[spec.ID]; taken {
		k.mu.Unlock()
		return state, fmt.Errorf("pod %q: %w", spec.ID, runtime.ErrExists)
	}
	k.pods[spec.ID] = p
	p.mu.Lock() // whoever asks for the pod waits until it is whole or gone
	k.mu.Unlock()
	defer p.mu.Unlock()
	if err = k.launch(p, spec); err != nil {
		k.mu.Lock()
		delete(k.pods, spec.ID)
		k.mu.Unlock()
		return state, fmt.Errorf("start pod %q: %w", spec.ID, err)
	}
	go k.watchPod(p)
	return p.state, nil
}

func checkPod(spec runtime.PodSpec) error {
	if !runtime.ValidID(spec.ID) {
		return fmt.Errorf("pod id %q: use 1 to 128 letters, digits, '.', '_' or '-', and begin with a letter or digit", spec.ID)
	}
	if len(spec.Hostname) > 64 || strings.ContainsRune(spec.Hostname, 0) {
		return fmt.Errorf("pod %q: hostname %q: at most 64 characters are allowed", spec.ID, spec.Hostname)
	}
	if (len(spec.UIDMaps) == 0) != (len(spec.GIDMaps) == 0) {
		return fmt.Errorf("pod %q: a user namespace needs maps of both users and groups", spec.ID)
	}
	return checkSysctls(spec)
}

func (k *Keeper) launch(p *pod, spec runtime.PodSpec) (err error) {
	proc, err := k.spawnPause(spec)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = proc.signal(unix.SIGKILL)
			proc.wait()
		}
	}()
	if err := setSysctls(proc.pid, spec.Sysctls); err != nil {
		return err
	}
	k.limits.protect(proc.pid)
	p.proc = proc
	p.state.Pid, p.state.StartTime, p.state.StartedAt = proc.pid, proc.startTime, time.Now()
	return writeRecord(k.podRecord(spec.ID), p.state)
}

func (k *Keeper) podRecord(id string) string { return filepath.Join(k.dir, "pods", id+".json") }

// pauseImage puts the program into a sealed memory file: the run directory may be mounted noexec.
func pauseImage() (*os.File, error) {
	program, err := pause.Program()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("pause", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make memory file for pause: %w", err)
	}
	f := os.NewFile(uintptr(fd), "pause")
	if _, err := f.Write(program); err != nil {
		return nil, errors.Join(fmt.Errorf("write pause: %w", err), f.Close())
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal pause: %w", err), f.Close())
	}
	return f, nil
}

// emptyRoot is a mount that hangs nowhere: an empty read-only folder.
func emptyRoot() (*os.File, error) {
	return detachedTmpfs(map[string]string{"nr_inodes": "2", "mode": "555"},
		unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// spawnPause clones pause into its namespaces and waits until it has hardened itself.
func (k *Keeper) spawnPause(spec runtime.PodSpec) (*process, error) {
	root, err := k.pauseRoot()
	if err != nil {
		return nil, err
	}
	fds := make([]int, 2)
	if err := unix.Pipe2(fds, unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make ready pipe: %w", err)
	}
	ready := os.NewFile(uintptr(fds[0]), "ready")
	defer ready.Close()
	pidfd := -1
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = unix.Close(fds[1])
		return nil, fmt.Errorf("open /dev/null: %w", err)
	}
	argv := []string{"pause", podHostname(spec), fmt.Sprint(pauseID(spec))}
	pid, err := syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", k.image.Fd()), argv, &syscall.ProcAttr{
		Files: []uintptr{uintptr(null), uintptr(null), uintptr(null), root.Fd(), uintptr(fds[1])},
		Sys:   podAttributes(spec, &pidfd),
	})
	_ = unix.Close(fds[1])
	_ = unix.Close(null)
	if err != nil {
		return nil, fmt.Errorf("clone pause: %w", err)
	}
	_ = unix.SetNonblock(pidfd, true)
	proc, err := newProcess(pid, pidfd, 0)
	if err != nil {
		return nil, err
	}
	if err := readReady(ready); err != nil {
		_ = proc.signal(unix.SIGKILL)
		proc.wait()
		return nil, err
	}
	return proc, nil
}

// pauseRoot makes the root that all pauses share at first use.
func (k *Keeper) pauseRoot() (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.root == nil {
		root, err := emptyRoot()
		if err != nil {
			return nil, err
		}
		k.root = root
	}
	return k.root, nil
}

func readReady(ready io.Reader) error {
	said, err := io.ReadAll(io.LimitReader(ready, 2))
	if err != nil {
		return fmt.Errorf("wait for pause: %w", err)
	}
	switch {
	case len(said) == 1 && said[0] == 0:
		return nil
	case len(said) == 0:
		return errors.New("wait for pause: it ended before it was ready")
	}
	return fmt.Errorf("wait for pause: it could not do step %d of its start (see runtime/pause/src/pause.c)", said[len(said)-1])
}

func podHostname(spec runtime.PodSpec) string {
	if spec.HostNetwork {
		return "" // it keeps the host's name
	}
	return spec.Hostname
}

// pauseID is nobody, or the root of a user namespace that does not know nobody.
func pauseID(spec runtime.PodSpec) int {
	_, user := hostID(spec.UIDMaps, nobody)
	_, group := hostID(spec.GIDMaps, nobody)
	if len(spec.UIDMaps) == 0 || user && group {
		return nobody
	}
	return 0
}

func podAttributes(spec runtime.PodSpec, pidfd *int) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{PidFD: pidfd}
	if !spec.HostNetwork {
		attr.Cloneflags |= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	}
	if !spec.HostIPC {
		attr.Cloneflags |= unix.CLONE_NEWIPC
	}
	if spec.SharePID {
		attr.Cloneflags |= unix.CLONE_NEWPID
	}
	if len(spec.UIDMaps) > 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings, attr.GidMappings = sysMaps(spec.UIDMaps), sysMaps(spec.GIDMaps)
		attr.GidMappingsEnableSetgroups = true
		attr.Credential = &syscall.Credential{} // its root: the keeper's own user is not mapped, and would lose all capabilities
	}
	return attr
}

func sysMaps(maps []runtime.IDMap) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(maps))
	for i, m := range maps {
		out[i] = syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)}
	}
	return out
}

func (k *Keeper) watchPod(p *pod) {
	p.proc.wait()
	p.mu.Lock()
	p.state.Exited = true
	p.mu.Unlock()
	close(p.done)
}

// removePod kills pause and forgets it. A nil error means that it is gone, not that this call did it.
func (k *Keeper) removePod(id string) error {
	p, err := k.pod(id)
	if err != nil {
		return nil
	}
	p.mu.Lock()
	proc := p.proc
	p.mu.Unlock()
	if proc != nil {
		if err := proc.signal(unix.SIGKILL); err != nil {
			return fmt.Errorf("kill pause of pod %q: %w", id, err)
		}
		if !within(p.done, killPatience) {
			return fmt.Errorf("remove pod %q: %s", id, unkillable(proc.pid))
		}
	}
	k.mu.Lock()
	if k.pods[id] == p {
		delete(k.pods, id)
	}
	k.mu.Unlock()
	if err := os.Remove(k.podRecord(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove record of pod %q: %w", id, err)
	}
	return nil
}

func (k *Keeper) podStates() []runtime.PodState {
	k.mu.Lock()
	list := make([]*pod, 0, len(k.pods))
	for _, p := range k.pods {
		list = append(list, p)
	}
	k.mu.Unlock()
	states := make([]runtime.PodState, 0, len(list))
	for _, p := range list {
		if s := p.snapshot(); s.Pid != 0 {
			states = append(states, s)
		}
	}
	return states
}

func within(done <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// unkillable says where in the kernel a process hangs that SIGKILL does not end.
func unkillable(pid int) string {
	where, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	return fmt.Sprintf("process %d does not end after SIGKILL (it waits in the kernel at %q)", pid, where)
}
