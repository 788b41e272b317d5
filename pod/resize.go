package pod

import (
	"context"
	"fmt"

	"github.com/pausa-run/pausa/runtime"
)

// Update changes the limits of a created or running container: all of them or
// none. Fields that are zero stay as they are.
func (m *Manager) Update(ctx context.Context, id string, r runtime.Resources) error {
	c, err := m.container(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	rt, err := m.runtime()
	if err != nil {
		return err
	}
	had := c.rec.Config.Resources // op is held: nobody else changes it
	merged, err := mergeResources(had, r)
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.rec.ID, err)
	}
	ask := merged
	if r.OOMScoreAdj == nil || had.OOMScoreAdj != nil && *had.OOMScoreAdj == *r.OOMScoreAdj {
		ask.OOMScoreAdj = nil // every process has it, but for those that have chosen another
	}
	keeping, done := settled(ctx)
	defer done()
	if err := rt.Update(keeping, c.rec.ID, ask); err != nil {
		return fmt.Errorf("update container %s: %w", c.rec.ID, keeperErr(err))
	}
	m.setContainer(c, func() { c.rec.Config.Resources = merged })
	return m.saveContainer(c)
}

// UpdatePod changes a pod's own limits, and what it is said to need besides its
// containers. Fields that are zero stay as they are. A cgroup that the pod's maker
// named is the maker's: of its limits only a record is kept.
func (m *Manager) UpdatePod(ctx context.Context, id string, overhead, limits runtime.Resources) error {
	p, err := m.sandbox(id)
	if err != nil {
		return err
	}
	p.op.Lock()
	defer p.op.Unlock()
	m.mu.RLock()
	cfg, ready := p.rec.Config, p.ready()
	m.mu.RUnlock()
	if !ready {
		return fmt.Errorf("update pod %s: it is not ready: %w", p.rec.ID, ErrState)
	}
	if cfg.Overhead, err = mergeResources(cfg.Overhead, overhead); err == nil {
		cfg.Resources, err = mergeResources(cfg.Resources, limits)
	}
	if err == nil {
		err = m.limitPod(ctx, p, cfg.Resources)
	}
	if err != nil {
		return fmt.Errorf("update pod %s: %w", p.rec.ID, err)
	}
	m.setPod(p, func() { p.rec.Config.Overhead, p.rec.Config.Resources = cfg.Overhead, cfg.Resources })
	return m.savePod(p)
}

// limitPod limits the group above the containers' groups, if it is ours; p.op is held.
func (m *Manager) limitPod(ctx context.Context, p *sandbox, r runtime.Resources) error {
	if p.rec.Config.CgroupParent != "" || r.None() {
		return nil
	}
	rt, err := m.runtime()
	if err != nil {
		return err
	}
	keeping, done := settled(ctx)
	defer done()
	return keeperErr(rt.LimitGroup(keeping, m.podGroup(p), r))
}

// mergeResources is old with what is set in r on top. Swap is counted with memory:
// where only the memory's limit is changed, as much swap as before remains on top of it.
func mergeResources(old, r runtime.Resources) (runtime.Resources, error) {
	if r.MemoryLimit > 0 && r.MemorySwap == 0 && old.MemorySwap > 0 {
		r.MemorySwap = r.MemoryLimit + max(0, old.MemorySwap-old.MemoryLimit)
		if old.MemoryLimit == 0 {
			r.MemorySwap = max(r.MemoryLimit, old.MemorySwap)
		}
	}
	set(&old.CPUShares, r.CPUShares)
	set(&old.CPUQuota, r.CPUQuota)
	set(&old.CPUPeriod, r.CPUPeriod)
	set(&old.CpusetCpus, r.CpusetCpus)
	set(&old.CpusetMems, r.CpusetMems)
	set(&old.MemoryLimit, r.MemoryLimit)
	set(&old.MemorySwap, r.MemorySwap)
	set(&old.PidsLimit, r.PidsLimit)
	set(&old.OOMScoreAdj, r.OOMScoreAdj)
	if len(r.Hugepages) > 0 {
		old.Hugepages = r.Hugepages
	}
	if len(r.Unified) > 0 {
		old.Unified = r.Unified
	}
	if old.MemorySwap > 0 && old.MemorySwap < old.MemoryLimit {
		return old, fmt.Errorf("%w: %d bytes of memory and swap together are less than the memory's limit of %d", ErrInvalid, old.MemorySwap, old.MemoryLimit)
	}
	return old, nil
}

func set[T comparable](dst *T, v T) {
	var zero T
	if v != zero {
		*dst = v
	}
}
