package cri

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
)

func TestEvents(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	old := d.run(t, "old")
	oldC := d.start(t, old, simple("a"))
	stream, err := d.rt.GetContainerEvents(ctx, &criv1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func(id string, kind criv1.ContainerEventType) *criv1.ContainerEventResponse {
		t.Helper()
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.ContainerId != id || e.ContainerEventType != kind || e.CreatedAt == 0 || e.PodSandboxStatus == nil {
			t.Fatalf("have %v, want %s of %s", e, kind, id)
		}
		return e
	}
	const created, started, stopped, deleted = criv1.ContainerEventType_CONTAINER_CREATED_EVENT, criv1.ContainerEventType_CONTAINER_STARTED_EVENT, criv1.ContainerEventType_CONTAINER_STOPPED_EVENT, criv1.ContainerEventType_CONTAINER_DELETED_EVENT
	// what was there before
	next(old, started)
	if e := next(oldC, started); len(e.ContainersStatuses) != 1 || e.ContainersStatuses[0].Id != oldC || e.PodSandboxStatus.Metadata.Name != "old" {
		t.Errorf("event: %v", e)
	}
	// what comes
	id := d.run(t, "new")
	next(id, started)
	c := d.start(t, id, simple("b"))
	next(c, created)
	next(c, started)
	d.pods.exit(c, 3)
	if e := next(c, stopped); e.ContainersStatuses[0].ExitCode != 3 {
		t.Errorf("event: %v", e)
	}
	if _, err := d.pods.Run(ctx, pod.Config{Name: "declared", Declared: true}); err != nil { // not shown
		t.Fatal(err)
	}
	if _, err := d.rt.RemovePodSandbox(ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatal(err)
	}
	next(id, stopped)
	next(c, deleted)
	if e := next(id, deleted); e.PodSandboxStatus.State != criv1.PodSandboxState_SANDBOX_NOTREADY || e.PodSandboxStatus.Metadata.Name != "new" {
		t.Errorf("event of the removed pod: %v", e)
	}
}

// A client that reads late gets the events of pods that have gone since, too.
func TestEventsOfPodsThatAreGone(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	stay := d.run(t, "stay")
	stream, err := d.rt.GetContainerEvents(ctx, &criv1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := stream.Recv(); err != nil || e.ContainerId != stay {
		t.Fatal(e, err)
	}
	// More than the transport takes before the client reads.
	const pods = 2000
	var ids []string
	for i := range pods {
		id, err := d.pods.Run(ctx, pod.Config{Name: fmt.Sprint("pod", i), Annotations: map[string]string{"a": strings.Repeat("x", 1000)}})
		if err == nil {
			err = d.pods.Remove(ctx, id)
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	const started, stopped, deleted = criv1.ContainerEventType_CONTAINER_STARTED_EVENT, criv1.ContainerEventType_CONTAINER_STOPPED_EVENT, criv1.ContainerEventType_CONTAINER_DELETED_EVENT
	for i, id := range ids {
		for _, kind := range []criv1.ContainerEventType{started, stopped, deleted} {
			e, err := stream.Recv()
			if err != nil || e.ContainerId != id || e.ContainerEventType != kind || e.PodSandboxStatus.Metadata.Name != fmt.Sprint("pod", i) {
				t.Fatalf("have %v %v, want %s of pod %d", e, err, kind, i)
			}
		}
	}
}

// The queue takes far more than the pods' own buffer holds.
func TestManyEventsAreNotLost(t *testing.T) {
	in := make(chan pod.Event)
	out := drain(t.Context(), in)
	const n = 10_000
	for i := range n {
		in <- pod.Event{PodID: fmt.Sprint(i)}
	}
	for i := range n {
		if e := <-out; e.PodID != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, e.PodID)
		}
	}
}

func TestLostEventsEndTheStream(t *testing.T) {
	d := newDaemon(t)
	d.run(t, "web")
	stream, err := d.rt.GetContainerEvents(t.Context(), &criv1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	d.pods.mu.Lock()
	for ch := range d.pods.subs {
		delete(d.pods.subs, ch)
		close(ch)
	}
	d.pods.mu.Unlock()
	_, err = stream.Recv()
	wantCode(t, err, codes.ResourceExhausted, "connect again")
}
