package pod

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"
)

// checkShown fails the test if the snapshot is not what the Manager holds. Nothing may be under way.
func (w *world) checkShown() {
	w.t.Helper()
	have := w.m.Snapshot()
	w.m.mu.Lock()
	w.m.showAll()
	w.m.mu.Unlock()
	want := w.m.Snapshot()
	if !slices.EqualFunc(have.Pods, want.Pods, func(a, b *Pod) bool { return reflect.DeepEqual(a, b) }) {
		w.t.Errorf("shown pods: %v, want %v", values(have.Pods), values(want.Pods))
	}
	if !slices.EqualFunc(have.Containers, want.Containers, func(a, b *Container) bool { return reflect.DeepEqual(a, b) }) {
		w.t.Errorf("shown containers: %v, want %v", values(have.Containers), values(want.Containers))
	}
}

// Lists take no lock: not the one of a pod or a container, which are held for as long as
// a mutation lasts, and not the one of the memory, which is held for moments.
func TestListsTakeNoLock(t *testing.T) {
	w := newWorld(t)
	id := w.mustRun("web")
	c := w.mustStart(id, "main")
	p, ctr := w.m.pods[id], w.m.ctrs[c]
	p.op.Lock()
	defer p.op.Unlock()
	ctr.op.Lock()
	defer ctr.op.Unlock()
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if s := w.m.Snapshot(); len(s.Pods) != 1 || len(s.Containers) != 1 || len(w.m.Pods()) != 1 || len(w.m.Containers()) != 1 {
		t.Errorf("listed: %+v", s)
	}
}

// What a list has given does not change, whatever becomes of the pods.
func TestSnapshotsStay(t *testing.T) {
	w := newWorld(t)
	id := w.mustRun("web")
	c := w.mustStart(id, "main")
	s := w.m.Snapshot()
	if err := w.m.StopContainer(t.Context(), c, 0); err != nil {
		t.Fatal(err)
	}
	if now := w.m.Snapshot(); now.Containers[0].Exit == nil || now.Pods[0] != s.Pods[0] {
		t.Errorf("after the end: %+v; a pod that did not change is another one: %v", now.Containers[0], now.Pods[0] != s.Pods[0])
	}
	if err := w.m.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if now := w.m.Snapshot(); len(now.Pods)+len(now.Containers) != 0 {
		t.Errorf("after removal: %+v", now)
	}
	if len(s.Pods) != 1 || !s.Pods[0].Ready || len(s.Containers) != 1 || s.Containers[0].Exit != nil {
		t.Errorf("the list of before: %+v", s)
	}
}

// Pods and containers that come and go at once, beside a clock that is set, leave a
// snapshot that is true, and at no time one that is out of order or has one twice.
func TestSnapshotIsTrue(t *testing.T) {
	w := newWorld(t)
	stop := make(chan struct{})
	var wg, reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			all := w.m.Snapshot().Containers
			if !slices.IsSortedFunc(all, func(a, b *Container) int { return inOrder(a.CreatedAt, b.CreatedAt, a.ID, b.ID) }) {
				t.Errorf("out of order: %v", values(all))
			}
			seen := map[string]bool{}
			for _, c := range all {
				if seen[c.ID] {
					t.Errorf("container %s is there twice", c.ID)
				}
				seen[c.ID] = true
			}
		}
	})
	for i := range 8 {
		wg.Go(func() { w.churn(t.Context(), i) })
	}
	wg.Wait()
	close(stop)
	reader.Wait()
	w.checkShown()
	w.m.mu.Lock()
	for _, p := range w.m.pods { // a clock that went back while the daemon was down
		p.rec.CreatedAt = p.rec.CreatedAt.Round(0).Add(-time.Hour)
	}
	w.m.showAll()
	w.m.mu.Unlock()
	w.mustStart(w.mustRun("late"), "main")
	w.checkShown()
	w.restart()
	w.checkShown()
}

// churn makes a pod, and containers in it of which it ends and removes some.
func (w *world) churn(ctx context.Context, i int) {
	id, err := w.m.Run(ctx, podConfig(fmt.Sprint("pod", i)))
	if err != nil {
		w.t.Error(err)
		return
	}
	for n := range 20 {
		c, err := w.m.CreateContainer(ctx, id, ContainerConfig{Name: fmt.Sprint("c", n), Image: "busybox"})
		if err == nil {
			err = w.m.StartContainer(ctx, c)
		}
		if err == nil && rand.IntN(2) == 0 {
			err = w.m.StopContainer(ctx, c, 0)
		}
		if err == nil && rand.IntN(2) == 0 {
			err = w.m.RemoveContainer(ctx, c)
		}
		if err != nil {
			w.t.Error(err)
		}
	}
	if i%2 == 0 {
		if err := w.m.Remove(ctx, id); err != nil {
			w.t.Error(err)
		}
	}
}
