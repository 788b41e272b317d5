//go:build cgo

package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// watch waits for the end of a container's init and brings the container to its end.
func (k *Keeper) watch(c *container) {
	end := c.proc.wait()
	finished := time.Now()
	exit := runtime.Exit{ID: c.id, Code: end.code, Signal: end.signal, FinishedAt: finished, Unknown: !end.known}
	if !end.known {
		exit.Code = 255
	}
	// Both must be read or done before the cgroup goes.
	k.judgeMemory(c, &exit)
	c.killLeft()
	c.io.drain()
	c.mu.Lock()
	if c.releaseError != nil {
		exit.Code, exit.Signal, exit.StartError = 128, 0, c.releaseError.Error()
	}
	c.mu.Unlock()
	k.finish(c, exit)
	k.groups.mu.Lock()
	k.groups.forget(slices.Collect(maps.Values(c.cgroups))...)
	k.groups.mu.Unlock()
	if err := c.destroy(); err != nil {
		k.log.Error("destroy ended container; its removal tries again", "container", c.id, "err", err)
	}
	k.tidy.Reset(tidyDelay)
	close(c.cleaned)
}

// finish writes the exit to disk, and only then tells of it.
func (k *Keeper) finish(c *container, exit runtime.Exit) {
	if exit.FinishedAt.IsZero() {
		exit.FinishedAt = time.Now()
	}
	if err := writeRecord(c.file("exit.json"), exit); err != nil {
		k.log.Error("record exit", "container", c.id, "err", err)
	}
	c.mu.Lock()
	c.state.Status, c.state.Exit = runtime.Exited, &exit
	c.mu.Unlock()
	close(c.done)
	k.holdChanged(c)
	k.tell(exit)
}

// exitBacklog is how many exits a slow listener may fall behind before its stream ends.
const exitBacklog = 4096

func (k *Keeper) subscribe() chan runtime.Exit {
	ch := make(chan runtime.Exit, exitBacklog)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.exits[ch] = struct{}{}
	return ch
}

func (k *Keeper) unsubscribe(ch chan runtime.Exit) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.exits[ch]; ok {
		delete(k.exits, ch)
		close(ch)
	}
}

func (k *Keeper) tell(exit runtime.Exit) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for ch := range k.exits {
		select {
		case ch <- exit:
		default: // it would miss one: better that it starts again
			delete(k.exits, ch)
			close(ch)
		}
	}
}

// cgroupFolder is the folder of the controller: in cgroup v2 there is one for
// all. A hybrid host has the unified hierarchy beside the controllers.
func (c *container) cgroupFolder(controller string) string {
	if path, ok := c.cgroups[controller]; ok {
		return path
	}
	return c.cgroups[""]
}

// unified says that the container's memory controller is that of cgroup v2.
func (c *container) unified() bool { return c.cgroups["memory"] == "" && c.cgroups[""] != "" }

// keyed finds the number behind a key in a file of "key number" lines; 0 without one.
func keyed(data []byte, key string) uint64 {
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte(key+" ")); ok {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(rest)), 10, 64)
			return n
		}
	}
	return 0
}

// pids are all processes of the container's cgroup and those below it.
func (c *container) pids() []int {
	folder := c.cgroupFolder("pids")
	if folder == "" {
		folder = c.cgroupFolder("devices")
	}
	if folder == "" {
		return nil
	}
	var pids []int
	_ = filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // a group that goes while we look has no processes
		}
		data, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, field := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

func (c *container) signalAll(sig syscall.Signal) error {
	var errs []error
	for _, pid := range c.pids() {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("signal process %d of container %q: %w", pid, c.id, err))
		}
	}
	return errors.Join(errs...)
}

// killLeft ends what a container leaves behind in a PID namespace that is not its own.
func (c *container) killLeft() {
	for deadline := time.Now().Add(killPatience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		pids := c.pids()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}
