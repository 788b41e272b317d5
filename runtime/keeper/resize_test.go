//go:build cgo

package keeper_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/runtime"
)

// Limits go up and down in any order, each with the ones that depend on it.
func TestUpdateInAnyOrder(t *testing.T) {
	h := newHost(t)
	id := h.sleeper(memory(64 << 20))
	for _, r := range []runtime.Resources{
		{MemoryLimit: 96 << 20, MemorySwap: 96 << 20},
		{MemoryLimit: 32 << 20, MemorySwap: 32 << 20},
		{MemoryLimit: 64 << 20, MemorySwap: 128 << 20},
		{CPUShares: 512, CPUQuota: 50_000, CPUPeriod: 100_000},
		{CPUQuota: 5_000, CPUPeriod: 10_000},
		{CPUQuota: 500_000, CPUPeriod: 1_000_000},
		{CPUQuota: -1},
		{CpusetCpus: "0"},
		{CpusetCpus: "0-1"},
		{CPUShares: 2, MemoryLimit: 48 << 20, MemorySwap: 48 << 20},
	} {
		if err := h.client.Update(ctx(t), id, r); err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		h.inForce(id, r)
	}
	if out, _, code := h.exec(id, "", "echo", "still here"); code != 0 || out != "still here\n" {
		t.Errorf("exec after the updates: %q, exit code %d", out, code)
	}
}

// A limit that the kernel refuses changes nothing, and kills nobody.
func TestUpdateAllOrNothing(t *testing.T) {
	h := newHost(t)
	id := h.container(h.pod(), sh("full=$(head -c 16777216 /dev/zero | tr '\\0' x); echo full; while :; do sleep 1; done"), memory(64<<20))
	h.start(id)
	h.eventually("the memory is full", func() bool { return strings.Contains(h.output(id, "stdout"), "full") })
	err := h.client.Update(ctx(t), id, runtime.Resources{CPUShares: 100, MemoryLimit: 2 << 20})
	if err == nil || !strings.Contains(err.Error(), "memory limit") {
		t.Fatalf("a limit below what is used: %v", err)
	}
	h.inForce(id, runtime.Resources{MemoryLimit: 64 << 20})
	if out := h.cgroupFile(id, "cpu", "cpu.shares", "cpu.weight"); out != "1024" && out != "100" {
		t.Errorf("shares or weight are %s: a part of the refused update is in force", out)
	}
	if st, err := h.client.Container(ctx(t), id); err != nil || st.Status != runtime.Running {
		t.Errorf("the container is %+v, %v", st, err)
	}
}

func TestUpdateOfTheEnded(t *testing.T) {
	h := newHost(t)
	id, _ := h.runOnce(h.pod(), sh("exit 0"))
	if err := h.client.Update(ctx(t), id, runtime.Resources{CPUShares: 100}); !errors.Is(err, runtime.ErrState) && !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("update of an ended container: %v", err)
	}
}

// cgroupFile is a file of a container's cgroup: one of v1's controller, else one of v2.
func (h *host) cgroupFile(id, controller, v1, v2 string) string {
	h.t.Helper()
	path := "/sys/fs/cgroup/" + controller + cgroupParent + "/" + id + "/" + v1
	if unified() {
		path = "/sys/fs/cgroup" + cgroupParent + "/" + id + "/" + v2
	}
	data, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func unified() bool { return exists("/sys/fs/cgroup/cgroup.controllers") }

// inForce compares what is set in r with the container's cgroup.
func (h *host) inForce(id string, r runtime.Resources) {
	h.t.Helper()
	check := func(want any, controller, v1, v2 string) {
		h.t.Helper()
		if got := h.cgroupFile(id, controller, v1, v2); got != fmt.Sprint(want) {
			h.t.Errorf("%+v: %s/%s says %s, want %v", r, v1, v2, got, want)
		}
	}
	if r.MemoryLimit != 0 {
		check(r.MemoryLimit, "memory", "memory.limit_in_bytes", "memory.max")
	}
	if r.CpusetCpus != "" {
		check(r.CpusetCpus, "cpuset", "cpuset.cpus", "cpuset.cpus")
	}
	if unified() {
		if r.MemorySwap != 0 {
			check(r.MemorySwap-r.MemoryLimit, "", "", "memory.swap.max")
		}
		if r.CPUQuota > 0 {
			check(fmt.Sprint(r.CPUQuota, " ", r.CPUPeriod), "", "", "cpu.max")
		}
		return
	}
	if r.MemorySwap != 0 {
		check(r.MemorySwap, "memory", "memory.memsw.limit_in_bytes", "")
	}
	if r.CPUShares != 0 {
		check(r.CPUShares, "cpu", "cpu.shares", "")
	}
	if r.CPUQuota != 0 {
		check(r.CPUQuota, "cpu", "cpu.cfs_quota_us", "")
	}
	if r.CPUPeriod != 0 {
		check(r.CPUPeriod, "cpu", "cpu.cfs_period_us", "")
	}
}
