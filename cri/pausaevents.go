package cri

import (
	"encoding/json"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/pod/event"
)

// Events sends what has happened, and what happens.
func (s *pausaService) Events(r *pausav1.EventsRequest, out pausav1.Pausa_EventsServer) error {
	for _, t := range r.Types {
		if t != corev1.EventTypeNormal && t != corev1.EventTypeWarning {
			return invalid("types", "%q is neither %s nor %s", t, corev1.EventTypeNormal, corev1.EventTypeWarning)
		}
	}
	past, next, stop := s.o.Events.Watch()
	defer stop()
	first := true // is sent in any case: nobody waits for what there is not
	send := func(events ...event.Event) error {
		answer := &pausav1.EventsResponse{}
		for i := range events {
			e := events[i].Kubernetes(s.o.Events.Node().Name)
			if !asked(r, e) {
				continue
			}
			data, err := json.Marshal(e)
			if err != nil {
				return fmt.Errorf("tell of an event: %w", err)
			}
			answer.Events = append(answer.Events, data)
		}
		if len(answer.Events) == 0 && !first {
			return nil
		}
		first = false
		return out.Send(answer)
	}
	if err := send(past...); err != nil || !r.Watch {
		return err
	}
	for {
		select {
		case e, open := <-next:
			if !open {
				return status.Error(codes.ResourceExhausted, "events were lost because they were read too slowly: ask again, the answer begins with all there are")
			}
			if err := send(e); err != nil {
				return err
			}
		case <-out.Context().Done():
			return out.Context().Err()
		case <-s.stopping:
			return status.Error(codes.Unavailable, "the daemon is stopping")
		}
	}
}

// asked tells whether an event is one of those that the request is about.
func asked(r *pausav1.EventsRequest, e *corev1.Event) bool {
	o := e.InvolvedObject
	return (r.Namespace == "" || r.Namespace == e.Namespace) && (r.Kind == "" || r.Kind == o.Kind) && (r.Name == "" || r.Name == o.Name) &&
		(len(r.Types) == 0 || slices.Contains(r.Types, e.Type))
}
