package cri

import (
	"fmt"
	"maps"
	"slices"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/runtime"
)

// resources checks limits and translates them; nil and zero mean none.
func resources(r *criv1.LinuxContainerResources) (runtime.Resources, error) {
	if r == nil {
		return runtime.Resources{}, nil
	}
	if err := checkCPU(r); err != nil {
		return runtime.Resources{}, err
	}
	switch {
	case r.MemoryLimitInBytes < 0:
		return runtime.Resources{}, invalid("memory_limit_in_bytes", "%d is negative", r.MemoryLimitInBytes)
	case r.MemorySwapLimitInBytes < -1:
		return runtime.Resources{}, invalid("memory_swap_limit_in_bytes", "%d: -1 is unlimited, 0 not set", r.MemorySwapLimitInBytes)
	case r.MemorySwapLimitInBytes > 0 && r.MemorySwapLimitInBytes < r.MemoryLimitInBytes:
		return runtime.Resources{}, invalid("memory_swap_limit_in_bytes", "%d is memory and swap together: it cannot be below memory_limit_in_bytes %d", r.MemorySwapLimitInBytes, r.MemoryLimitInBytes)
	case r.OomScoreAdj < -1000 || r.OomScoreAdj > 1000:
		return runtime.Resources{}, invalid("oom_score_adj", "%d is not between -1000 and 1000", r.OomScoreAdj)
	}
	pages, err := hugepages(r.HugepageLimits)
	if err != nil {
		return runtime.Resources{}, err
	}
	for _, k := range slices.Sorted(maps.Keys(r.Unified)) {
		if !matches(`^[a-z]+(\.[a-zA-Z0-9_]+)+$`, k) || len(k) > 100 {
			return runtime.Resources{}, invalid("unified", "%.100q is not the name of a cgroup file (as in memory.high)", k)
		}
		if err := checkText("unified["+k+"]", r.Unified[k]); err != nil {
			return runtime.Resources{}, err
		}
	}
	adj := int(r.OomScoreAdj)
	shares := uint64(r.CpuShares)
	if shares == 1 {
		shares = 2 // as the kernel does
	}
	return runtime.Resources{
		CPUShares: shares, CPUQuota: r.CpuQuota, CPUPeriod: uint64(r.CpuPeriod), CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems,
		MemoryLimit: r.MemoryLimitInBytes, MemorySwap: r.MemorySwapLimitInBytes, OOMScoreAdj: &adj, Hugepages: pages, Unified: r.Unified,
	}, nil
}

func checkCPU(r *criv1.LinuxContainerResources) error {
	switch {
	case r.CpuShares < 0 || r.CpuShares > 262144:
		return invalid("cpu_shares", "%d is not between 0 and 262144", r.CpuShares)
	case r.CpuPeriod != 0 && (r.CpuPeriod < 1000 || r.CpuPeriod > 1_000_000):
		return invalid("cpu_period", "%d is not between 1000 and 1000000 µs", r.CpuPeriod)
	case r.CpuQuota < -1 || r.CpuQuota > 0 && r.CpuQuota < 1000:
		return invalid("cpu_quota", "%d: -1 is unlimited, 0 not set, else 1000 µs or more", r.CpuQuota)
	case r.CpusetCpus != "" && !isCPUSet(r.CpusetCpus):
		return invalid("cpuset_cpus", "%.80q is not a list as in 0-3,7", r.CpusetCpus)
	case r.CpusetMems != "" && !isCPUSet(r.CpusetMems):
		return invalid("cpuset_mems", "%.80q is not a list as in 0-1", r.CpusetMems)
	}
	return nil
}

// isCPUSet says that s is a list as in 0-3,7.
func isCPUSet(s string) bool {
	return len(s) <= 4096 && matches(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`, s)
}

func hugepages(limits []*criv1.HugepageLimit) (map[string]uint64, error) {
	if len(limits) == 0 {
		return nil, nil
	}
	out := make(map[string]uint64, len(limits))
	for i, l := range limits {
		field := fmt.Sprintf("hugepage_limits[%d].page_size", i)
		if len(l.GetPageSize()) > 8 || !matches(`^[1-9][0-9]*(KB|MB|GB)$`, l.GetPageSize()) {
			return nil, invalid(field, "%.80q is not a size as in 2MB", l.GetPageSize())
		}
		if _, twice := out[l.PageSize]; twice {
			return nil, invalid(field, "%s is given twice", l.PageSize)
		}
		out[l.PageSize] = l.Limit
	}
	return out, nil
}

// criResources is what a container's status shows; nil when nothing was asked.
func criResources(r runtime.Resources) *criv1.ContainerResources {
	out := &criv1.LinuxContainerResources{
		CpuPeriod: int64(r.CPUPeriod), CpuQuota: r.CPUQuota, CpuShares: int64(r.CPUShares), CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems,
		MemoryLimitInBytes: r.MemoryLimit, MemorySwapLimitInBytes: r.MemorySwap, Unified: r.Unified,
	}
	if r.OOMScoreAdj != nil {
		out.OomScoreAdj = int64(*r.OOMScoreAdj)
	}
	for _, size := range slices.Sorted(maps.Keys(r.Hugepages)) {
		out.HugepageLimits = append(out.HugepageLimits, &criv1.HugepageLimit{PageSize: size, Limit: r.Hugepages[size]})
	}
	return &criv1.ContainerResources{Linux: out}
}
