package reconcile

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

// box is one sandbox of a declared pod with its containers.
type box struct {
	pod.Pod
	containers map[string][]pod.Container // by name, newest attempt first
}

// last is the newest attempt of a container.
func (b *box) last(name string) (pod.Container, bool) {
	if b == nil || len(b.containers[name]) == 0 {
		return pod.Container{}, false
	}
	return b.containers[name][0], true
}

// running are the containers that a stop has to wait for.
func (b *box) running() []pod.Container {
	var out []pod.Container
	for _, list := range b.containers {
		for _, c := range list {
			if c.Status == runtime.Running {
				out = append(out, c)
			}
		}
	}
	return out
}

// driver is the PodManager with an index of its lists that is built again after
// each change: what we did ourselves, and every event.
type driver struct {
	PodManager

	mu    sync.Mutex // guards what follows
	valid bool
	boxes map[manifest.Ref][]*box // newest attempt first
	ids   map[string]manifest.Ref // pod id; kept for events of pods that are gone
}

func newDriver(m PodManager) *driver { return &driver{PodManager: m, ids: map[string]manifest.Ref{}} }

func (d *driver) invalidate() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.valid = false
}

// build makes the index; d.mu is held.
func (d *driver) build() {
	if d.valid {
		return
	}
	d.valid = true
	d.boxes, d.ids = map[manifest.Ref][]*box{}, map[string]manifest.Ref{}
	byID := map[string]*box{}
	for _, p := range d.Pods() {
		if !p.Config.Declared {
			continue
		}
		ref := manifest.Ref{Kind: manifest.KindPod, Namespace: p.Config.Namespace, Name: p.Config.Name}
		b := &box{Pod: p, containers: map[string][]pod.Container{}}
		byID[p.ID], d.ids[p.ID] = b, ref
		d.boxes[ref] = append(d.boxes[ref], b)
	}
	for _, c := range d.Containers() {
		if b := byID[c.PodID]; b != nil {
			b.containers[c.Config.Name] = append(b.containers[c.Config.Name], c)
		}
	}
	for _, list := range d.boxes {
		slices.SortFunc(list, func(a, b *box) int { return cmp.Compare(b.Config.Attempt, a.Config.Attempt) })
		for _, b := range list {
			for _, cs := range b.containers {
				slices.SortFunc(cs, func(x, y pod.Container) int { return cmp.Compare(y.Config.Attempt, x.Config.Attempt) })
			}
		}
	}
}

// of lists the sandboxes of a pod's name, newest attempt first, whatever their uid.
func (d *driver) of(ref manifest.Ref) []*box {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.build()
	return slices.Clone(d.boxes[ref])
}

// refs are the names of all declared pods that have sandboxes.
func (d *driver) refs() []manifest.Ref {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.build()
	var out []manifest.Ref
	for ref := range d.boxes {
		out = append(out, ref)
	}
	return out
}

// refOf finds a declared pod by a sandbox's id.
func (d *driver) refOf(id string) (manifest.Ref, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ref, ok := d.ids[id]; ok { // also when it is gone by now
		return ref, true
	}
	d.build()
	ref, ok := d.ids[id]
	return ref, ok
}

// The calls that change something make the index stale, whatever they return.

func (d *driver) Run(ctx context.Context, cfg pod.Config) (string, error) {
	defer d.invalidate()
	return d.PodManager.Run(ctx, cfg)
}

func (d *driver) Stop(ctx context.Context, id string) error {
	defer d.invalidate()
	return d.PodManager.Stop(ctx, id)
}

func (d *driver) Remove(ctx context.Context, id string) error {
	defer d.invalidate()
	return d.PodManager.Remove(ctx, id)
}

func (d *driver) CreateContainer(ctx context.Context, podID string, cfg pod.ContainerConfig) (string, error) {
	defer d.invalidate()
	return d.PodManager.CreateContainer(ctx, podID, cfg)
}

func (d *driver) StartContainer(ctx context.Context, id string) error {
	defer d.invalidate()
	return d.PodManager.StartContainer(ctx, id)
}

func (d *driver) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	defer d.invalidate()
	return d.PodManager.StopContainer(ctx, id, grace)
}

func (d *driver) Update(ctx context.Context, id string, r runtime.Resources) error {
	defer d.invalidate()
	return d.PodManager.Update(ctx, id, r)
}

func (d *driver) RemoveContainer(ctx context.Context, id string) error {
	defer d.invalidate()
	return d.PodManager.RemoveContainer(ctx, id)
}
