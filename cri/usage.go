package cri

import (
	"context"
	"sync"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// usageAge is how old a container's disk usage may be in a list. Measuring it
// walks a folder tree, which a list of many containers must not wait for.
const usageAge = 10 * time.Second

// minRate is the shortest time over which a CPU rate is worked out.
const minRate = 100 * time.Millisecond

// usageCache remembers what a list of stats needs and a single reading cannot
// tell: disk usage and the last CPU reading of each container.
type usageCache struct {
	pods Pods
	mu   sync.Mutex // guards all and the entries
	all  map[string]*usage
}

type usage struct {
	disk      images.Usage
	measured  time.Time // zero: never
	measuring bool

	cpuTime  time.Time
	cpuNanos uint64
	rate     uint64 // nanocores
	hasRate  bool
}

func newUsageCache(pods Pods) *usageCache { return &usageCache{pods: pods, all: map[string]*usage{}} }

func (u *usageCache) entry(id string) *usage {
	e := u.all[id]
	if e == nil {
		e = &usage{}
		u.all[id] = e
	}
	return e
}

// keep forgets containers that are gone.
func (u *usageCache) keep(all []*pod.Container) {
	here := make(map[string]bool, len(all))
	for _, c := range all {
		here[c.ID] = true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for id := range u.all {
		if !here[id] {
			delete(u.all, id)
		}
	}
}

// disk returns a container's disk usage, measured now if it never was; if what is known is old it is measured again in the background.
func (u *usageCache) disk(ctx context.Context, id string) (images.Usage, time.Time) {
	u.mu.Lock()
	e := u.entry(id)
	old, at := e.disk, e.measured
	begin := time.Since(at) > usageAge && !e.measuring
	if begin {
		e.measuring = true
	}
	u.mu.Unlock()
	if !begin {
		return old, at
	}
	if at.IsZero() {
		return u.measure(ctx, id, e)
	}
	go u.measure(context.WithoutCancel(ctx), id, e)
	return old, at
}

func (u *usageCache) measure(ctx context.Context, id string, e *usage) (images.Usage, time.Time) {
	got, err := u.pods.WritableUsage(ctx, id)
	u.mu.Lock()
	defer u.mu.Unlock()
	e.measuring = false
	if err == nil {
		e.disk, e.measured = got, time.Now()
	}
	return e.disk, e.measured
}

// cpuRate works out nanocores from this reading and an earlier one; nil when there is none.
func (u *usageCache) cpuRate(st *runtime.Stats) *criv1.UInt64Value {
	u.mu.Lock()
	defer u.mu.Unlock()
	e := u.entry(st.ID)
	if past := st.Time.Sub(e.cpuTime); e.cpuTime.IsZero() || past >= minRate {
		if !e.cpuTime.IsZero() && st.CPUNanos >= e.cpuNanos {
			e.rate = uint64(float64(st.CPUNanos-e.cpuNanos) / past.Seconds())
			e.hasRate = true
		}
		e.cpuTime, e.cpuNanos = st.Time, st.CPUNanos
	}
	if !e.hasRate {
		return nil
	}
	return u64(e.rate)
}

func u64(v uint64) *criv1.UInt64Value { return &criv1.UInt64Value{Value: v} }
