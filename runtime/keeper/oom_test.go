//go:build cgo

package keeper_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// hog fills the memory that it may have; it is no child of a shell that could say 137 for it.
const hog = "exec tail /dev/zero"

func TestOOMKillIsReported(t *testing.T) {
	h := newHost(t)
	_, exit := h.runOnce(h.pod(), sh(hog), memory(16<<20))
	if !exit.OOMKilled || exit.Code != 137 || exit.OOMKills != 1 || exit.OOMLimit != runtime.OOMContainer {
		t.Errorf("exit %+v", exit)
	}
	if m := exit.OOMMessage(); m != "the container's memory limit was reached: the kernel killed 1 process" {
		t.Errorf("message %q", m)
	}
}

// Many short lives at once: the count must be read before the cgroup goes.
func TestOOMKillsOfManyAreReported(t *testing.T) {
	h := newHost(t)
	pod := h.pod()
	const count = 20
	var ids []string
	for range count {
		id := h.container(pod, sh(hog), memory(24<<20))
		h.start(id)
		ids = append(ids, id)
	}
	for _, id := range ids {
		if exit := h.wait(id); !exit.OOMKilled || exit.Code != 137 || exit.OOMLimit != runtime.OOMContainer {
			t.Errorf("exit %+v", exit)
		}
	}
}

// A child that is killed is counted; whether it ends the container is the init's to say.
func TestOOMKillOfChild(t *testing.T) {
	h := newHost(t)
	pod := h.pod()
	_, exit := h.runOnce(pod, sh("tail /dev/zero & wait $!; exit 5"), memory(16<<20))
	if !exit.OOMKilled || exit.Code != 5 || exit.OOMKills != 1 {
		t.Errorf("init that fails because of its child: %+v", exit)
	}
	_, exit = h.runOnce(pod, sh("tail /dev/zero & wait $!; exit 0"), memory(16<<20))
	if exit.OOMKilled || exit.Code != 0 || exit.OOMKills != 1 {
		t.Errorf("init that ends well all the same: %+v", exit)
	}
}

// An exec that is killed does not end the container, nor is it the reason when that is stopped later.
func TestOOMKillOfExec(t *testing.T) {
	h := newHost(t)
	id := h.container(h.pod(), []string{"sleep", "1000"}, memory(16<<20))
	h.start(id)
	if _, _, code := h.exec(id, "", "tail", "/dev/zero"); code != 137 {
		t.Errorf("exec ended with %d, want 137", code)
	}
	stats, err := h.client.DetailedStats(ctx(t), id)
	if err != nil || len(stats) != 1 || stats[0].Details.OOMKills != 1 {
		t.Errorf("stats %+v, %v: want one kill", stats, err)
	}
	if err := h.client.Signal(ctx(t), id, unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if exit := h.wait(id); exit.OOMKilled || exit.Code != 137 || exit.OOMKills != 1 {
		t.Errorf("exit %+v: it was stopped", exit)
	}
}

// The limit of the group above is the pod's.
func TestOOMOfPod(t *testing.T) {
	h := newHost(t)
	group := cgroupParent + "/pod-" + strings.ToLower(t.Name())
	folder := "/sys/fs/cgroup/memory" + group
	limit := "memory.limit_in_bytes"
	if exists("/sys/fs/cgroup/cgroup.controllers") {
		folder, limit = "/sys/fs/cgroup"+group, "memory.max"
	}
	inPod := func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) { c.CgroupPath = group + "/" + c.ID }
	pod := h.pod()
	idle := h.container(pod, []string{"sleep", "1000"}, inPod) // the group is there as long as it
	h.start(idle)
	if err := os.WriteFile(filepath.Join(folder, limit), []byte("16777216"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, exit := h.runOnce(pod, sh(hog), inPod, memory(64<<20))
	if !exit.OOMKilled || exit.OOMLimit != runtime.OOMPod || exit.OOMMessage() == "" {
		t.Errorf("exit %+v, want killed at the pod's limit", exit)
	}
	if err := h.client.RemoveContainer(ctx(t), idle); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeGroup(t, group) })
}

// removeGroup removes a cgroup in every hierarchy, once its last process has gone.
func removeGroup(t *testing.T, group string) {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + group)
	for _, dir := range append(dirs, "/sys/fs/cgroup"+group) {
		for deadline := time.Now().Add(10 * time.Second); exists(dir); time.Sleep(5 * time.Millisecond) {
			if err := os.Remove(dir); err != nil && time.Now().After(deadline) {
				t.Errorf("remove %s: %v", dir, err)
				break
			}
		}
	}
}
