//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
	"github.com/pausa-run/pausa/runtime/wire"
)

// adopt takes over what an earlier keeper of this run directory has left. A
// record that cannot be understood is set aside and named in the log.
func (k *Keeper) adopt(held Held) {
	entries, _ := os.ReadDir(filepath.Join(k.dir, "pods"))
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		if err := k.adoptPod(id); err != nil {
			k.log.Error("adopt pod", "pod", id, "err", err)
		}
	}
	entries, _ = os.ReadDir(filepath.Join(k.dir, "containers"))
	for _, e := range entries {
		if err := k.adoptContainer(e.Name(), held); err != nil {
			k.log.Error("adopt container", "container", e.Name(), "err", err)
		}
	}
}

func (k *Keeper) adoptPod(id string) error {
	p := &pod{done: make(chan struct{})}
	if err := readRecord(k.podRecord(id), &p.state); err != nil {
		return err
	}
	k.pods[id] = p
	proc, err := openProcess(p.state.Pid, p.state.StartTime)
	if err != nil {
		p.state.Exited = true
		close(p.done)
		return nil //nolint:nilerr // it has ended meanwhile
	}
	p.proc = proc
	go k.watchPod(p)
	return nil
}

func (k *Keeper) adoptContainer(id string, held Held) error {
	var r record
	path := filepath.Join(k.dir, "containers", id)
	if err := readRecord(filepath.Join(path, "container.json"), &r); err != nil {
		if errors.Is(err, os.ErrNotExist) { // the keeper ended while it made the folder
			return os.RemoveAll(path)
		}
		return err
	}
	c := k.newContainer(id, r.State)
	c.request, c.process, c.cgroups, c.systemd = r.Spec, r.Process, r.Cgroups, r.Systemd
	k.containers[id] = c
	var exit runtime.Exit
	if err := readRecord(c.file("exit.json"), &exit); err == nil {
		return k.adoptEnded(c, exit)
	}
	log, err := openLog(c.request.LogPath)
	if err != nil { // the container must not stop for it
		k.log.Error("open log of adopted container", "container", id, "err", err)
		log = &logFile{path: c.request.LogPath}
	}
	c.io = newStdio(c.dir, log, &k.scratch, func() { k.holdChanged(c) })
	if c.state.Pid == 0 {
		return k.parkAgain(c)
	}
	return k.adoptRunning(c, held)
}

// adoptEnded knows the exit; what may be left is the cgroup.
func (k *Keeper) adoptEnded(c *container, exit runtime.Exit) error {
	c.state.Status, c.state.Exit = runtime.Exited, &exit
	c.releasing = true // or removing it would end it a second time
	c.io = newStdio(c.dir, &logFile{}, &k.scratch, func() {})
	close(c.parked)
	close(c.done)
	close(c.cleaned)
	engine, err := k.load(c)
	if p, ok := engine.(*program); err != nil || engine == nil || ok && p.forgotten() {
		return err
	}
	return engine.destroy()
}

// load finds what a container of an earlier keeper was made with; nil when that has forgotten it.
func (k *Keeper) load(c *container) (engine, error) {
	if c.request.Program != nil {
		return k.program(c), nil
	}
	lc, err := libcontainer.Load(k.lcRoot(), c.id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return library{lc}, nil
}

// parkAgain starts an init anew: the earlier keeper ended before it had one.
func (k *Keeper) parkAgain(c *container) error {
	if c.request.Program != nil {
		if err := k.program(c).destroy(); err != nil {
			return err
		}
		go k.park(c)
		return nil
	}
	if c.request.Restore != nil {
		if err := k.undoRestore(c); err != nil {
			return fmt.Errorf("undo a half-made restore: %w", err)
		}
	}
	if lc, err := libcontainer.Load(k.lcRoot(), c.id); err == nil {
		_ = lc.Signal(unix.SIGKILL)
		if err := lc.Destroy(); err != nil {
			k.log.Error("destroy half-made container", "container", c.id, "err", err)
		}
	}
	if err := os.RemoveAll(filepath.Join(k.lcRoot(), c.id)); err != nil {
		return fmt.Errorf("remove half-made container: %w", err)
	}
	go func() {
		k.clearGroups(c)
		k.park(c)
	}()
	return nil
}

// clearGroups ends what the earlier keeper was about to make an init of: a
// group that is not empty is refused, and one that nobody knows of would stay.
func (k *Keeper) clearGroups(c *container) {
	path := c.request.Spec.Linux.CgroupsPath
	if systemdPath(path) {
		return // systemd removes a scope that is empty
	}
	groups, err := groupsAt(path, k.unified)
	if err == nil {
		half := &container{id: c.id, cgroups: groups}
		half.killLeft()
		err = cgroups.RemovePaths(groups)
	}
	if err != nil {
		k.log.Error("remove the cgroups of a half-made container", "container", c.id, "err", err)
	}
}

func (k *Keeper) adoptRunning(c *container, held Held) error {
	var err error
	if c.engine, err = k.load(c); err != nil || c.engine == nil {
		k.log.Error("load adopted container; exec and update will not work", "container", c.id, "err", err)
	}
	c.openAdopted(held)
	close(c.parked)
	if err := c.io.start(); err != nil {
		k.log.Error("go on with the output of an adopted container; some may be logged twice", "container", c.id, "err", err)
	}
	c.proc = c.adoptProcess(held)
	k.enterPodMemory(c)
	go k.watch(c)
	if c.state.Status == runtime.Running {
		go k.releaseAgain(c)
	}
	return nil
}

// releaseAgain lets an init go that the earlier keeper had called running, but
// was killed before it could release it. Opening the fifo is the release.
func (k *Keeper) releaseAgain(c *container) {
	if p, ok := c.engine.(*program); ok {
		if p.created() {
			if err := p.release(); err != nil {
				k.log.Error("start adopted container", "container", c.id, "err", err)
			}
		}
		return
	}
	f, err := os.OpenFile(filepath.Join(k.lcRoot(), c.id, "exec.fifo"), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return // the usual case: it was released long ago
	}
	defer f.Close()
	_ = f.SetReadDeadline(time.Now().Add(killPatience))
	if _, err := f.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		_ = os.Remove(f.Name())
	}
}

// adoptProcess prefers the pidfd that was held: it tells the exit code also of
// a process that has ended while there was no keeper.
func (c *container) adoptProcess(held Held) *process {
	if fd := held.take(c.id, wire.HeldProcess); fd != nil {
		return &process{pid: c.state.Pid, startTime: c.state.StartTime, fd: fd}
	}
	proc, err := openProcess(c.state.Pid, c.state.StartTime)
	if err != nil {
		return &process{pid: c.state.Pid}
	}
	return proc
}

// openAdopted takes the held files, and opens the FIFOs again that nobody has
// held. A terminal whose master nobody has held died with the earlier keeper.
func (c *container) openAdopted(held Held) {
	if c.process != nil && c.process.Terminal {
		if master := held.take(c.id, wire.HeldTerminal); master != nil {
			c.io.useTerminal(master)
		}
		return
	}
	for _, name := range []string{wire.HeldStdout, wire.HeldStderr} {
		if source := held.take(c.id, name); source != nil {
			c.io.addPump(name, source, false)
			continue
		}
		_ = c.io.openPump(name)
	}
	if !c.request.Stdin {
		return
	}
	// One that is gone has been closed for good.
	if _, err := os.Stat(c.io.path("stdin")); err != nil {
		return
	}
	if stdin := held.take(c.id, wire.HeldStdin); stdin != nil {
		c.io.stdin = stdin
		return
	}
	_ = c.io.openStdin()
}
