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
// walks a folder tree, which a list of many containers must not wait for; one that
// takes long is done so rarely that it takes a share of usageShare of the time.
const (
	usageAge   = 10 * time.Second
	usageShare = 20
)

// minRate is the shortest time over which a CPU rate is worked out.
const minRate = 100 * time.Millisecond

// usageCache remembers what a list of stats needs and a single reading cannot
// tell: disk usage and the last CPU reading of each container.
type usageCache struct {
	pods Pods
	slot chan struct{} // one is measured at a time, but those that a list waits for
	mu   sync.Mutex    // guards all and the entries
	all  map[string]*usage
}

type usage struct {
	disk      images.Usage
	measured  time.Time // zero: never
	took      time.Duration
	measuring bool

	cpuTime  time.Time
	cpuNanos uint64
	rate     uint64 // nanocores
	hasRate  bool
}

func newUsageCache(pods Pods) *usageCache {
	return &usageCache{pods: pods, slot: make(chan struct{}, 1), all: map[string]*usage{}}
}

func (u *usageCache) entry(id string) *usage {
	e := u.all[id]
	if e == nil {
		e = &usage{}
		u.all[id] = e
	}
	return e
}

// keep forgets pods and containers that are gone.
func (u *usageCache) keep(now pod.Snapshot) {
	here := make(map[string]bool, len(now.Pods)+len(now.Containers))
	for _, p := range now.Pods {
		here[p.ID] = true
	}
	for _, c := range now.Containers {
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
	begin := time.Since(at) > max(usageAge, usageShare*e.took) && !e.measuring
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
	go func() {
		u.slot <- struct{}{}
		defer func() { <-u.slot }()
		u.measure(context.WithoutCancel(ctx), id, e)
	}()
	return old, at
}

func (u *usageCache) measure(ctx context.Context, id string, e *usage) (images.Usage, time.Time) {
	began := time.Now()
	got, err := u.pods.WritableUsage(ctx, id)
	u.mu.Lock()
	defer u.mu.Unlock()
	e.measuring = false
	if err == nil {
		e.disk, e.measured, e.took = got, time.Now(), time.Since(began)
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
