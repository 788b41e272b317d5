//go:build cgo

package keeper

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// memoryEvents is what the memory controller has counted for a cgroup.
type memoryEvents struct {
	kills uint64 // processes killed in it, and with cgroup v2 in all groups below it
	// full is how often its own limit was reached and nothing could be freed. Cgroup
	// v1 counts what could be freed, too, so there peak tells it.
	full uint64
	ok   bool // the group is there
}

// memoryEvents reads the counts of a cgroup; unified says which version it is of.
func readMemoryEvents(folder string, unified bool) memoryEvents {
	var e memoryEvents
	if folder == "" {
		return e
	}
	if unified {
		data, err := os.ReadFile(filepath.Join(folder, "memory.events"))
		local, _ := os.ReadFile(filepath.Join(folder, "memory.events.local"))
		return memoryEvents{kills: keyed(data, "oom_kill"), full: keyed(local, "oom"), ok: err == nil}
	}
	data, err := os.ReadFile(filepath.Join(folder, "memory.oom_control"))
	e.kills, e.ok = keyed(data, "oom_kill"), err == nil
	file := func(name string) uint64 {
		data, _ := os.ReadFile(filepath.Join(folder, name))
		return number(data)
	}
	// One page less than the limit is as full as it gets.
	limit, peak := file("memory.limit_in_bytes"), file("memory.max_usage_in_bytes")
	if limit > 0 && peak+uint64(os.Getpagesize()) >= limit {
		e.full = file("memory.failcnt")
	}
	return e
}

// podMemory is what is known of the group that holds a pod's containers.
type podMemory struct {
	containers int
	full       uint64 // when its first container came
	// kills are those in it that are some container's, ended or not.
	kills uint64
}

// memoryFolders are the groups of the container and its pod.
func (c *container) memoryFolders() (own, pod string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	own = c.cgroupFolder("memory")
	if own == "" {
		return "", ""
	}
	return own, filepath.Dir(own)
}

// enterPodMemory notes what a pod's group had counted before its first container came.
func (k *Keeper) enterPodMemory(c *container) {
	own, folder := c.memoryFolders()
	if folder == "" {
		return
	}
	if !c.unified() && c.systemd {
		events, err := listenForOOM(own)
		if err != nil {
			k.log.Warn("a kill for want of memory may be missed", "container", c.id, "err", err)
		}
		c.oomEvents = events
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.podMemory[folder]
	if p == nil {
		e := readMemoryEvents(folder, c.unified())
		p = &podMemory{full: e.full, kills: e.kills}
		k.podMemory[folder] = p
		if c.unified() { // one that was adopted has its own from before
			p.kills -= min(p.kills, readMemoryEvents(own, true).kills)
		}
	}
	p.containers++
}

// judgeMemory finds out whether the container ended for want of memory, and
// whose, while its cgroup is there. Systemd takes the group of a scope away as
// soon as its last process has ended, which may be before us: then what the
// pod's group has counted beyond the kills of its other containers is this one's.
func (k *Keeper) judgeMemory(c *container, exit *runtime.Exit) {
	own, folder := c.memoryFolders()
	if c.oomEvents != nil {
		defer c.oomEvents.Close()
	}
	if own == "" {
		return
	}
	events := readMemoryEvents(own, c.unified())
	above := readMemoryEvents(folder, c.unified())
	if !events.ok && c.oomEvents != nil && oomSignalled(c.oomEvents) {
		events = memoryEvents{kills: 1, full: 1} // how many it does not tell
	}
	gone := !events.ok && events.kills == 0 && c.unified() && above.ok
	var beside uint64
	if gone {
		beside = k.killsBeside(c, folder)
	}
	k.mu.Lock()
	p := k.podMemory[folder]
	if p == nil {
		p = &podMemory{full: above.full, kills: above.kills}
	}
	if gone {
		events.kills = above.kills - min(above.kills, p.kills+beside)
	}
	p.kills += events.kills
	podFull := above.full > p.full
	if p.containers--; p.containers <= 0 {
		delete(k.podMemory, folder)
	}
	k.mu.Unlock()

	exit.OOMKills = events.kills
	switch {
	case events.kills == 0:
		return
	case events.full > 0:
		exit.OOMLimit = runtime.OOMContainer
	case podFull:
		exit.OOMLimit = runtime.OOMPod
	case gone && c.limited:
		exit.OOMLimit = runtime.OOMContainer
	default:
		exit.OOMLimit = runtime.OOMHost
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// One that was told to end, and had lost a child long before, ended because it was told.
	exit.OOMKilled = exit.Code != 0 && (!c.told || events.kills > c.killsWhenTold)
}

// listenForOOM asks cgroup v1 to count in an eventfd when the group is out of
// memory: there no group above counts what has happened in one that is gone.
func listenForOOM(folder string) (_ *os.File, err error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	events := os.NewFile(uintptr(fd), "oom events")
	defer func() {
		if err != nil {
			_ = events.Close()
		}
	}()
	control, err := os.Open(filepath.Join(folder, "memory.oom_control"))
	if err != nil {
		return nil, err
	}
	defer control.Close()
	line := fmt.Sprintf("%d %d", fd, control.Fd())
	return events, os.WriteFile(filepath.Join(folder, "cgroup.event_control"), []byte(line), 0)
}

// signalPatience is for the kernel to tell that a group has gone, which it does in the background.
const signalPatience = time.Second

// oomSignalled reads the eventfd of a group that is gone. Its end is an event of
// its own, so that a second one is an end of memory.
func oomSignalled(events *os.File) bool {
	raw, err := events.SyscallConn()
	if err != nil {
		return false
	}
	var count uint64
	for deadline := time.Now().Add(signalPatience); count < 2 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var buf [8]byte
		n := 0
		_ = raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf[:]) })
		if n == len(buf) {
			count += binary.NativeEndian.Uint64(buf[:])
			if count == 1 { // there is no more to come than what comes soon
				deadline = time.Now().Add(signalPatience / 10)
			}
		}
	}
	return count >= 2
}

// killsBeside are the kills of the other running containers in a pod's group.
func (k *Keeper) killsBeside(c *container, folder string) uint64 {
	var sum uint64
	for _, other := range k.allContainers() {
		if other == c {
			continue
		}
		if own, its := other.memoryFolders(); its == folder {
			sum += readMemoryEvents(own, true).kills
		}
	}
	return sum
}

// noteTold remembers how many processes had been killed for want of memory when
// the container got a signal.
func (c *container) noteTold() {
	own, _ := c.memoryFolders()
	kills := readMemoryEvents(own, c.unified()).kills
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.told {
		c.told, c.killsWhenTold = true, kills
	}
}
