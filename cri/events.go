package cri

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// maxQueue is how many events a slow client may lag behind: some megabytes, and those of
// thousands of containers.
const maxQueue = 1 << 14

// GetContainerEvents first tells the present state of every pod and container,
// so that a client that connects again has missed nothing, and then every
// transition as it comes. A client that falls too far behind is told to connect again.
func (s *runtimeService) GetContainerEvents(_ *criv1.GetEventsRequest, out criv1.RuntimeService_GetContainerEventsServer) error {
	events, cancel := s.o.Pods.Subscribe()
	defer cancel()
	if err := out.SendHeader(nil); err != nil { // it tells that no event from now on is missed
		return fmt.Errorf("begin stream of events: %w", err)
	}
	e := &eventStream{s: s, out: out}
	if err := e.replay(); err != nil {
		return err
	}
	queue := drain(out.Context(), events)
	for {
		select {
		case ev, ok := <-queue:
			if !ok {
				return status.Error(codes.ResourceExhausted, "events were lost because they were read too slowly: connect again, the stream begins with the present state")
			}
			if err := e.send(ev); err != nil {
				return err
			}
		case <-out.Context().Done():
			return out.Context().Err()
		case <-s.stopping:
			return status.Error(codes.Unavailable, "the daemon is stopping")
		}
	}
}

// drain takes events as fast as they come, so that the pods need not hold them
// for a slow client. It closes its channel when any was lost.
func drain(ctx context.Context, events <-chan pod.Event) <-chan pod.Event {
	out := make(chan pod.Event)
	go func() {
		defer close(out)
		var queue []pod.Event
		for len(queue) < maxQueue {
			var to chan pod.Event
			var next pod.Event
			if len(queue) > 0 {
				to, next = out, queue[0]
			}
			select {
			case e, ok := <-events:
				if !ok {
					return
				}
				queue = append(queue, e)
			case to <- next:
				queue = queue[1:]
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// eventStream is one client's.
type eventStream struct {
	s   *runtimeService
	out criv1.RuntimeService_GetContainerEventsServer
}

// replay tells of all that is there.
func (e *eventStream) replay() error {
	now := e.s.o.Pods.Snapshot()
	pods := map[string]*pod.Pod{}
	for _, p := range now.Pods {
		pods[p.ID] = p
		kind := pod.EventStarted
		if !p.Ready {
			kind = pod.EventStopped
		}
		if err := e.send(pod.Event{Time: p.CreatedAt, Type: kind, PodID: p.ID, Pod: p}); err != nil {
			return err
		}
	}
	for _, c := range now.Containers {
		ev := pod.Event{Time: c.CreatedAt, Type: pod.EventCreated, PodID: c.PodID, ContainerID: c.ID, Pod: pods[c.PodID]}
		switch {
		case ev.Pod == nil:
			continue // its pod was just being removed
		case c.Status == runtime.Running:
			ev.Time, ev.Type = c.StartedAt, pod.EventStarted
		case c.Status == runtime.Exited && c.Exit != nil:
			ev.Time, ev.Type = c.Exit.FinishedAt, pod.EventStopped
		}
		if err := e.send(ev); err != nil {
			return err
		}
	}
	return nil
}

// send tells of one event, with the pod and its containers as they are now; of a pod
// that is gone, as it was then.
func (e *eventStream) send(ev pod.Event) error {
	if ev.Pod.Config.Declared {
		return nil
	}
	p, err := e.s.o.Pods.Pod(ev.PodID)
	if err != nil {
		p = *ev.Pod
		p.Ready = false
	}
	id := ev.ContainerID
	if id == "" {
		id = ev.PodID // the API tells of a pod by its own id
	}
	at := ev.Time
	if at.IsZero() {
		at = time.Now()
	}
	err = e.out.Send(&criv1.ContainerEventResponse{
		ContainerId: id, ContainerEventType: eventType(ev.Type), CreatedAt: at.UnixNano(),
		PodSandboxStatus: podStatus(&p), ContainersStatuses: e.s.containersOf(ev.PodID),
	})
	if err != nil {
		return fmt.Errorf("send event: %w", err)
	}
	return nil
}

func eventType(t pod.EventType) criv1.ContainerEventType {
	switch t {
	case pod.EventStarted:
		return criv1.ContainerEventType_CONTAINER_STARTED_EVENT
	case pod.EventStopped:
		return criv1.ContainerEventType_CONTAINER_STOPPED_EVENT
	case pod.EventDeleted:
		return criv1.ContainerEventType_CONTAINER_DELETED_EVENT
	}
	return criv1.ContainerEventType_CONTAINER_CREATED_EVENT
}
