package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
)

// fill makes pods with one running container each, as a kubelet would.
func (d *daemon) fill(t testing.TB, pods int) {
	t.Helper()
	ctx := t.Context()
	for i := range pods {
		podID, err := d.pods.Run(ctx, pod.Config{Name: fmt.Sprint("pod", i), Namespace: "default", UID: fmt.Sprint(i), Labels: map[string]string{"app": "load"}})
		if err != nil {
			t.Fatal(err)
		}
		id, err := d.pods.CreateContainer(ctx, podID, pod.ContainerConfig{
			Name: "main", Labels: map[string]string{"app": "load", "io.kubernetes.pod.name": fmt.Sprint("pod", i)},
			Annotations: map[string]string{"io.kubernetes.container.hash": fmt.Sprintf("%08x", i), "io.kubernetes.container.restartCount": "0"},
		})
		if err == nil {
			err = d.pods.StartContainer(ctx, id)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Lists of a full node are complete, in one message and in parts.
func TestListsOfAThousand(t *testing.T) {
	d := newDaemon(t)
	d.fill(t, 1000)
	ctx := t.Context()
	containers, err := d.rt.ListContainers(ctx, &criv1.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pods, err := d.rt.ListPodSandbox(ctx, &criv1.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := d.rt.StreamContainers(ctx, &criv1.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, p := range pods.Items {
		seen[p.Id]++
	}
	for _, c := range containers.Containers {
		seen[c.Id]++
		if seen[c.PodSandboxId] != 1 {
			t.Fatalf("the pod of container %s is there %d times", c.Id, seen[c.PodSandboxId])
		}
	}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range part.Containers {
			if seen[c.Id]++; seen[c.Id] != 2 {
				t.Fatalf("container %s is in the stream or the list alone, or twice", c.Id)
			}
		}
	}
	if len(pods.Items) != 1000 || len(containers.Containers) != 1000 || len(seen) != 2000 {
		t.Errorf("%d pods, %d containers, %d ids", len(pods.Items), len(containers.Containers), len(seen))
	}
}

// A client that keeps within 2,000 events of what happens gets each of 10,000 transitions, in order.
func TestTenThousandTransitions(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	podID := d.run(t, "web")
	stream, err := d.rt.GetContainerEvents(ctx, &criv1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil { // the pod as it is
		t.Fatal(err)
	}
	const lives = 2500
	made, ahead := make(chan error, 1), make(chan struct{}, 500)
	go func() { made <- d.lives(ctx, podID, lives, ahead) }()
	kinds := []criv1.ContainerEventType{
		criv1.ContainerEventType_CONTAINER_CREATED_EVENT, criv1.ContainerEventType_CONTAINER_STARTED_EVENT,
		criv1.ContainerEventType_CONTAINER_STOPPED_EVENT, criv1.ContainerEventType_CONTAINER_DELETED_EVENT,
	}
	ids := map[string]bool{}
	var id string
	for i := range lives * len(kinds) {
		e, err := stream.Recv()
		if err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		if i%len(kinds) == 0 {
			id = e.ContainerId
			ids[id] = true
		}
		if e.ContainerId != id || e.ContainerEventType != kinds[i%len(kinds)] {
			t.Fatalf("event %d is %s of %s, want %s of %s", i, e.ContainerEventType, e.ContainerId, kinds[i%len(kinds)], id)
		}
		if i%len(kinds) == len(kinds)-1 {
			<-ahead
		}
	}
	if err := <-made; err != nil || len(ids) != lives {
		t.Errorf("events of %d containers, %v", len(ids), err)
	}
}

// lives makes, starts, stops and removes containers, one after the other, each when ahead has room.
func (d *daemon) lives(ctx context.Context, podID string, n int, ahead chan<- struct{}) error {
	for i := range n {
		select {
		case ahead <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		id, err := d.pods.CreateContainer(ctx, podID, pod.ContainerConfig{Name: fmt.Sprint("c", i)})
		if err == nil {
			err = d.pods.StartContainer(ctx, id)
		}
		if err == nil {
			err = d.pods.StopContainer(ctx, id, 0)
		}
		if err == nil {
			err = d.pods.RemoveContainer(ctx, id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A client that does not read is cut off once it is too far behind: the stream ends
// with ResourceExhausted, as TestLostEventsEndTheStream has it.
func TestSlowReaderOfEvents(t *testing.T) {
	in := make(chan pod.Event)
	out := drain(t.Context(), in)
	for i := range maxQueue {
		in <- pod.Event{PodID: fmt.Sprint(i)}
	}
	if e, ok := <-out; ok {
		t.Errorf("a stream that lost events goes on with %s", e.PodID)
	}
}

// stillPods are pods of which nothing changes.
type stillPods struct {
	Pods
	now pod.Snapshot
}

func (p stillPods) Snapshot() pod.Snapshot { return p.now }

func BenchmarkLists1000(b *testing.B) {
	full := newDaemon(b)
	full.fill(b, 1000)
	d := newDaemon(b, func(o *Options) { o.Pods = stillPods{full.pods, full.pods.Snapshot()} })
	ctx := b.Context()
	b.Run("ListPodSandbox", func(b *testing.B) {
		for b.Loop() {
			if r, err := d.rt.ListPodSandbox(ctx, &criv1.ListPodSandboxRequest{}); err != nil || len(r.Items) != 1000 {
				b.Fatal(len(r.GetItems()), err)
			}
		}
	})
	b.Run("ListContainers", func(b *testing.B) {
		for b.Loop() {
			if r, err := d.rt.ListContainers(ctx, &criv1.ListContainersRequest{}); err != nil || len(r.Containers) != 1000 {
				b.Fatal(len(r.GetContainers()), err)
			}
		}
	})
}
