//go:build cgo

package keeper_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/runtime"
)

// limitFiles are where the kernel keeps what TestLimits asks for.
func limitFiles(group string) map[string]string {
	if exists("/sys/fs/cgroup/cgroup.controllers") {
		dir := "/sys/fs/cgroup" + group + "/"
		return map[string]string{
			dir + "memory.max": "67108864", dir + "memory.swap.max": "33554432", dir + "memory.oom.group": "1", dir + "memory.high": "50331648",
			dir + "pids.max": "77", dir + "cpu.max": "25000 50000", dir + "cpu.weight": "59", dir + "cpuset.cpus": "0", dir + "hugetlb.2MB.max": "4194304",
		}
	}
	v1 := func(controller, name string) string { return "/sys/fs/cgroup/" + controller + group + "/" + name }
	return map[string]string{
		v1("memory", "memory.limit_in_bytes"): "67108864", v1("memory", "memory.memsw.limit_in_bytes"): "100663296", v1("pids", "pids.max"): "77",
		v1("cpu", "cpu.cfs_quota_us"): "25000", v1("cpu", "cpu.cfs_period_us"): "50000", v1("cpu", "cpu.shares"): "512", v1("cpuset", "cpuset.cpus"): "0",
		v1("hugetlb", "hugetlb.2MB.limit_in_bytes"): "4194304",
	}
}

// aDisk is the number of a disk whose traffic can be limited, "" if there is none.
func aDisk() string {
	found, _ := filepath.Glob("/sys/block/[vs]d?/dev")
	if len(found) == 0 {
		return ""
	}
	raw, _ := os.ReadFile(found[0])
	return strings.TrimSpace(string(raw))
}

// TestLimits compares what was asked for with the kernel's word, at the start and after a change.
func TestLimits(t *testing.T) {
	h := newHost(t)
	unified, disk := exists("/sys/fs/cgroup/cgroup.controllers"), aDisk()
	id := h.container(h.pod(), []string{"sleep", "1000"}, func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) {
		c.Resources = runtime.Resources{
			MemoryLimit: 64 << 20, PidsLimit: 77, CPUQuota: 25000, CPUPeriod: 50000, CPUShares: 512, CpusetCpus: "0",
		}
		if unified || exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes") {
			c.Resources.MemorySwap = 96 << 20
		}
		if unified || exists("/sys/fs/cgroup/hugetlb/hugetlb.2MB.usage_in_bytes") {
			c.Resources.Hugepages = map[string]uint64{"2MB": 4 << 20}
		}
		if unified {
			c.Resources.Unified = map[string]string{"memory.oom.group": "1", "memory.high": "50331648"}
			if disk != "" {
				c.Resources.Unified["io.max"] = disk + " rbps=1048576 wiops=120"
			}
		}
	})
	h.start(id)
	files := limitFiles(cgroupParent + "/" + id)
	if unified && disk != "" {
		files["/sys/fs/cgroup"+cgroupParent+"/"+id+"/io.max"] = disk + " rbps=1048576 wbps=max riops=max wiops=120"
	}
	check := func() {
		t.Helper()
		for file, want := range files {
			if _, err := os.Stat(file); err != nil && !unified {
				continue // this host has no such controller
			}
			raw, err := os.ReadFile(file)
			if got := strings.TrimSpace(string(raw)); got != want {
				t.Errorf("%s is %q, %v, want %q", file, got, err, want)
			}
		}
	}
	check()
	change := runtime.Resources{CPUQuota: 10000}
	if unified { // elsewhere one above memory and swap together is refused, rightly
		change.MemoryLimit, change.MemorySwap = 128<<20, 160<<20
	}
	if err := h.client.Update(ctx(t), id, change); err != nil {
		t.Fatal(err)
	}
	for file := range files {
		switch {
		case strings.HasSuffix(file, "memory.max"):
			files[file] = "134217728"
		case strings.HasSuffix(file, "cpu.max"):
			files[file] = "10000 50000"
		case strings.HasSuffix(file, "cpu.cfs_quota_us"):
			files[file] = "10000"
		}
	}
	check()
}
