//go:build cgo

package keeper

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pausa-run/pausa/runtime"
)

// stats reads the cgroups of the named containers, or of all that run.
func (k *Keeper) stats(ids []string) ([]runtime.Stats, error) {
	list := k.allContainers()
	if len(ids) > 0 {
		list = list[:0]
		for _, id := range ids {
			c, err := k.container(id)
			if err != nil {
				return nil, err
			}
			list = append(list, c)
		}
	}
	out := make([]runtime.Stats, 0, len(list))
	for _, c := range list {
		if c.snapshot().Status == runtime.Running {
			out = append(out, c.stats())
		}
	}
	return out, nil
}

func (c *container) stats() runtime.Stats {
	s := runtime.Stats{ID: c.id, Time: time.Now()}
	if c.unified() {
		unifiedStats(c.cgroups[""], &s)
	} else {
		c.legacyStats(&s)
	}
	return s
}

func unifiedStats(folder string, s *runtime.Stats) {
	read := func(name string) []byte { data, _ := os.ReadFile(filepath.Join(folder, name)); return data }
	memory := read("memory.stat")
	s.CPUNanos = keyed(read("cpu.stat"), "usage_usec") * 1000
	s.MemoryUsage = number(read("memory.current"))
	s.MemoryLimit = number(read("memory.max"))
	s.MemoryRSS = keyed(memory, "anon")
	s.MemoryWorkingSet = less(s.MemoryUsage, keyed(memory, "inactive_file"))
	s.PageFaults, s.MajorPageFaults = keyed(memory, "pgfault"), keyed(memory, "pgmajfault")
	s.SwapUsage = number(read("memory.swap.current"))
	s.Pids = number(read("pids.current"))
}

func (c *container) legacyStats(s *runtime.Stats) {
	read := func(controller, name string) []byte {
		data, _ := os.ReadFile(filepath.Join(c.cgroups[controller], name))
		return data
	}
	memory := read("memory", "memory.stat")
	s.CPUNanos = number(read("cpuacct", "cpuacct.usage"))
	s.MemoryUsage = number(read("memory", "memory.usage_in_bytes"))
	s.MemoryLimit = number(read("memory", "memory.limit_in_bytes"))
	s.MemoryRSS = keyed(memory, "total_rss")
	s.MemoryWorkingSet = less(s.MemoryUsage, keyed(memory, "total_inactive_file"))
	s.PageFaults, s.MajorPageFaults = keyed(memory, "total_pgfault"), keyed(memory, "total_pgmajfault")
	s.SwapUsage = keyed(memory, "total_swap")
	s.Pids = number(read("pids", "pids.current"))
}

// number reads one number; "max", and what cgroup v1 says instead of it, is 0.
func number(data []byte) uint64 {
	n, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 64)
	if err != nil || n >= math.MaxInt64-4096*16 {
		return 0
	}
	return n
}

func less(a, b uint64) uint64 { return a - min(a, b) }

// update changes the limits of a running container: those that are set in r.
func (k *Keeper) update(id string, r *specs.LinuxResources) error {
	c, err := k.container(id)
	if err != nil {
		return err
	}
	if r == nil {
		return nil
	}
	<-c.parked
	c.mu.Lock()
	lc := c.lc
	c.mu.Unlock()
	if lc == nil {
		return fmt.Errorf("update container %q: it has ended: %w", id, runtime.ErrState)
	}
	config := lc.Config()
	group, resources := *config.Cgroups, *config.Cgroups.Resources
	group.Resources, config.Cgroups = &resources, &group
	merge(&resources, r)
	if err := lc.Set(config); err != nil {
		return fmt.Errorf("update container %q: %w", id, err)
	}
	return nil
}

func merge(to *cgroups.Resources, r *specs.LinuxResources) {
	if cpu := r.CPU; cpu != nil {
		set(&to.CpuShares, cpu.Shares)
		if cpu.Shares != nil {
			to.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*cpu.Shares)
		}
		set(&to.CpuQuota, cpu.Quota)
		set(&to.CpuPeriod, cpu.Period)
		setString(&to.CpusetCpus, cpu.Cpus)
		setString(&to.CpusetMems, cpu.Mems)
	}
	if memory := r.Memory; memory != nil {
		set(&to.Memory, memory.Limit)
		set(&to.MemoryReservation, memory.Reservation)
		set(&to.MemorySwap, memory.Swap)
		if memory.Limit != nil && *memory.Limit == -1 && memory.Swap == nil {
			to.MemorySwap = 0
		}
	}
	if r.Pids != nil {
		to.PidsLimit = r.Pids.Limit
	}
	for _, h := range r.HugepageLimits {
		to.HugetlbLimit = append(to.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	if r.Unified != nil {
		to.Unified = r.Unified
	}
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func setString(to *string, from string) {
	if from != "" {
		*to = from
	}
}
