//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// update changes the limits of a container that has not ended: those that are set
// in u. When the kernel refuses one of them, all are what they were before.
func (k *Keeper) update(u runtime.UpdateRequest) error {
	c, err := k.container(u.ID)
	if err != nil {
		return err
	}
	if u.Resources == nil {
		return nil
	}
	<-c.parked
	c.mu.Lock()
	engine, ended := c.engine, c.state.Status == runtime.Exited
	c.mu.Unlock()
	if engine == nil || ended {
		return fmt.Errorf("update container %q: it has ended: %w", u.ID, runtime.ErrState)
	}
	k.limits.clampGroup(u.Resources)
	if err := engine.update(u.Resources); err != nil {
		return fmt.Errorf("update container %q: %w", u.ID, err)
	}
	if u.OOMScoreAdj == nil {
		return nil
	}
	return k.limits.adjust(c.pids(), *u.OOMScoreAdj)
}

// adjust gives processes another OOM score, as far as the keeper may.
func (l limits) adjust(pids []int, score int) error {
	if !l.mayRaise && score < l.oomScore {
		l.told("oom score", "asked", score, "given", l.oomScore)
		score = l.oomScore
	}
	for _, pid := range pids {
		err := l.writeFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) { // those have ended
			return fmt.Errorf("change oom score: %w", err)
		}
	}
	return nil
}

// limitGroup makes a cgroup above containers, where there is none, and limits it.
func (k *Keeper) limitGroup(r runtime.GroupRequest) error {
	resources := &cgroups.Resources{SkipDevices: true, MemoryCheckBeforeUpdate: true}
	if r.Resources != nil {
		k.limits.clampGroup(r.Resources)
		merge(resources, r.Resources)
	}
	group := &cgroups.Cgroup{Path: r.Group, Resources: resources}
	if strings.HasSuffix(r.Group, sliceSuffix) {
		group = sliceGroup(r.Group, resources)
	}
	m, err := manager.New(group)
	if err == nil {
		err = m.Apply(-1) // nobody joins it
	}
	if err == nil {
		err = m.Set(resources)
	}
	if err != nil {
		return fmt.Errorf("limit cgroup %s: %w", r.Group, err)
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
	to.HugetlbLimit = slices.Clone(to.HugetlbLimit)
	for _, h := range r.HugepageLimits {
		mergeHugepages(to, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	if r.Unified != nil {
		to.Unified = r.Unified
	}
}

func mergeHugepages(to *cgroups.Resources, limit *cgroups.HugepageLimit) {
	i := slices.IndexFunc(to.HugetlbLimit, func(had *cgroups.HugepageLimit) bool { return had.Pagesize == limit.Pagesize })
	if i < 0 {
		to.HugetlbLimit = append(to.HugetlbLimit, limit)
		return
	}
	to.HugetlbLimit[i] = limit
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
