//go:build cgo

package keeper

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// hangUpPatience is the time between SIGHUP and SIGKILL for an exec whose client has gone.
	hangUpPatience = 3 * time.Second
	// groupPrefix begins the names of execs' cgroups.
	groupPrefix = "exec-"
	// emptyTries bounds the moving of what an exec has left behind: it may fork faster than we look.
	emptyTries = 20
)

// makeGroup makes a cgroup below the container's for the processes of this
// exec, which is the only way to find those that have left their session and
// their parents. In cgroup v1 one hierarchy is enough, and the freezer is one
// that limits and counts nothing. Without a group the exec runs all the same.
func (e *execution) makeGroup() {
	base := e.c.cgroups[e.groupController()]
	if base == "" {
		return
	}
	if folder, err := os.MkdirTemp(base, groupPrefix); err == nil {
		e.group = folder
	}
}

func (e *execution) groupController() string {
	if e.c.unified() {
		return ""
	}
	return "freezer"
}

// subgroup says for libcontainer where to put the process.
func (e *execution) subgroup() map[string]string {
	if e.group == "" {
		return nil
	}
	return map[string]string{e.groupController(): filepath.Base(e.group)}
}

// enterGroup puts a process into the group that runs already. What it has
// started before is found by its session and parents.
func (e *execution) enterGroup(pid int) {
	e.late = true
	if e.group == "" {
		return
	}
	for _, p := range append(e.c.tree(pid), pid) {
		_ = os.WriteFile(filepath.Join(e.group, "cgroup.procs"), []byte(strconv.Itoa(p)), 0)
	}
}

// leaveGroup gives the cgroup back once the exec's own process has ended. What
// it has left behind goes on as the container's.
func (e *execution) leaveGroup() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.group == "" || e.stopping {
		return
	}
	dropGroup(e.group)
	e.group = ""
}

func dropGroup(folder string) {
	procs := filepath.Join(filepath.Dir(folder), "cgroup.procs")
	for range emptyTries {
		if err := unix.Rmdir(folder); err == nil {
			return
		}
		for _, pid := range groupPids(folder) {
			_ = os.WriteFile(procs, []byte(strconv.Itoa(pid)), 0)
		}
	}
}

// stop ends an exec that nobody waits for any more, and returns when no process
// of it is left: at once, or with SIGHUP and some time to tidy up.
func (e *execution) stop(atOnce bool) {
	e.mu.Lock()
	e.stopping = true
	group := e.group
	e.mu.Unlock()
	members := e.members(group)
	if !atOnce {
		send(members, unix.SIGHUP)
		deadline := time.Now().Add(hangUpPatience)
		for wait := time.Millisecond; len(members) > 0 && time.Now().Before(deadline); wait = min(2*wait, 50*time.Millisecond) {
			time.Sleep(wait)
			members = e.members(group)
		}
	}
	for deadline := time.Now().Add(killPatience); len(members) > 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		send(members, unix.SIGKILL)
		members = e.members(group)
	}
	_ = e.proc.signal(unix.SIGKILL)
	within(e.done, killPatience)
	if group != "" {
		dropGroup(group)
	}
}

// members are the exec's processes that run: those of its group, and where it
// has none, or came late to it, those of its leader's session and their descendants.
func (e *execution) members(group string) []int {
	var members []int
	if group != "" {
		members = groupPids(group)
	}
	if group == "" || e.late {
		members = append(members, e.c.tree(e.proc.pid)...)
	}
	return members
}

func send(pids []int, sig unix.Signal) {
	for _, pid := range pids {
		_ = unix.Kill(pid, sig)
	}
}

// groupPids are the processes of a cgroup alone.
func groupPids(folder string) []int {
	data, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// tree is the processes of the container that belong to the session of leader
// or descend from it. The leader itself may have ended.
func (c *container) tree(leader int) []int {
	parents, members := map[int]int{}, map[int]bool{}
	for _, pid := range c.pids() {
		parent, session := lineage(pid)
		parents[pid] = parent
		if pid == leader || session == leader {
			members[pid] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for pid, parent := range parents {
			if !members[pid] && members[parent] {
				members[pid], grown = true, true
			}
		}
	}
	pids := make([]int, 0, len(members))
	for pid := range members {
		pids = append(pids, pid)
	}
	return pids
}

// lineage reads the parent and session of a process, as the host numbers them.
func lineage(pid int) (parent, session int) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The name in brackets may contain anything; the fields begin behind it.
	_, rest, ok := strings.Cut(string(data[max(0, strings.LastIndexByte(string(data), ')')):]), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 4 {
		return 0, 0
	}
	parent, _ = strconv.Atoi(fields[1])
	session, _ = strconv.Atoi(fields[3])
	return parent, session
}
