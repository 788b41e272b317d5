package cri

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
)

// partSize bounds the items of one message of a streamed list.
const partSize = 256

// itemField is the number of the one field that the answers with pods and containers have, of lists and of their parts.
const itemField protowire.Number = 1

// encodings remembers the items of a list as they are on the wire. What a pod or a
// container shows never changes, another one takes its place; and a kubelet asks for all
// of them every second. Encoding 1,000 costs milliseconds, putting them together 0.1.
type encodings[T any] struct {
	item func(*T) proto.Message
	mu   sync.Mutex
	of   map[*T][]byte // with field number and length in front
}

func newEncodings[T any](item func(*T) proto.Message) *encodings[T] {
	return &encodings[T]{item: item, of: map[*T][]byte{}}
}

// encode returns the items of a list, one after the other as a message has them. There
// are some of all, which is everything that there is now.
func (e *encodings[T]) encode(some []*T, all int) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.of) > 2*all+partSize { // most of it is of the past
		e.of = map[*T][]byte{}
	}
	items, size := make([][]byte, len(some)), 0
	for i, v := range some {
		one, ok := e.of[v]
		if !ok {
			body, err := proto.Marshal(e.item(v))
			if err != nil {
				return nil, fmt.Errorf("encode list: %w", err)
			}
			one = protowire.AppendBytes(protowire.AppendTag(nil, itemField, protowire.BytesType), body)
			e.of[v] = one
		}
		items[i] = one
		size += len(one)
	}
	out := make([]byte, 0, size)
	for _, one := range items {
		out = append(out, one...)
	}
	return out, nil
}

// setEncoded gives a message fields that are encoded already. Those that a message
// does not know are written as they are, and nobody looks into this one before that.
func setEncoded(m proto.Message, fields []byte) { m.ProtoReflect().SetUnknown(fields) }

// ListContainers lists the containers of the pods made over this API.
func (s *runtimeService) ListContainers(_ context.Context, r *criv1.ListContainersRequest) (*criv1.ListContainersResponse, error) {
	some, all := s.listContainers(r.Filter)
	items, err := s.containerItems.encode(some, all)
	out := &criv1.ListContainersResponse{}
	setEncoded(out, items)
	return out, err
}

// StreamContainers is ListContainers in parts.
func (s *runtimeService) StreamContainers(r *criv1.StreamContainersRequest, out criv1.RuntimeService_StreamContainersServer) error {
	some, all := s.listContainers(r.Filter)
	return inParts(some, func(part []*pod.Container) error {
		items, err := s.containerItems.encode(part, all)
		if err != nil {
			return err
		}
		m := &criv1.StreamContainersResponse{}
		setEncoded(m, items)
		return out.Send(m)
	})
}

// listContainers returns those that the filter wants, and how many there are in all.
func (s *runtimeService) listContainers(f *criv1.ContainerFilter) (some []*pod.Container, all int) {
	snapshot := s.o.Pods.Snapshot()
	for _, c := range snapshot.Containers {
		if s.shows(c, f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()) && (f.GetState() == nil || f.State.State == containerState(c)) {
			some = append(some, c)
		}
	}
	return some, len(snapshot.Containers)
}

// shows says whether a container is of a visible pod, its ids begin so and its labels match.
func (s *runtimeService) shows(c *pod.Container, id, podID string, labels map[string]string) bool {
	return !c.Declared && strings.HasPrefix(c.ID, id) && strings.HasPrefix(c.PodID, podID) && labelsMatch(labels, c.Config.Labels)
}

// visibleContainers are those of the visible pods whose ids begin so and whose labels match.
func (s *runtimeService) visibleContainers(id, podID string, labels map[string]string) []*pod.Container {
	var out []*pod.Container
	for _, c := range s.o.Pods.Snapshot().Containers {
		if s.shows(c, id, podID, labels) {
			out = append(out, c)
		}
	}
	return out
}

// ListPodSandbox lists the pods made over this API.
func (s *runtimeService) ListPodSandbox(_ context.Context, r *criv1.ListPodSandboxRequest) (*criv1.ListPodSandboxResponse, error) {
	some, all := s.listPods(r.Filter)
	items, err := s.podItems.encode(some, all)
	out := &criv1.ListPodSandboxResponse{}
	setEncoded(out, items)
	return out, err
}

// StreamPodSandboxes is ListPodSandbox in parts.
func (s *runtimeService) StreamPodSandboxes(r *criv1.StreamPodSandboxesRequest, out criv1.RuntimeService_StreamPodSandboxesServer) error {
	some, all := s.listPods(r.Filter)
	return inParts(some, func(part []*pod.Pod) error {
		items, err := s.podItems.encode(part, all)
		if err != nil {
			return err
		}
		m := &criv1.StreamPodSandboxesResponse{}
		setEncoded(m, items)
		return out.Send(m)
	})
}

// listPods returns those that the filter wants, and how many there are in all.
func (s *runtimeService) listPods(f *criv1.PodSandboxFilter) (some []*pod.Pod, all int) {
	snapshot := s.o.Pods.Snapshot()
	for _, p := range snapshot.Pods {
		if !p.Config.Declared && strings.HasPrefix(p.ID, f.GetId()) && (f.GetState() == nil || f.State.State == podState(p)) && labelsMatch(f.GetLabelSelector(), p.Config.Labels) {
			some = append(some, p)
		}
	}
	return some, len(snapshot.Pods)
}

// visible are the pods that the runtime API shows. Declared pods are not among
// them: a kubelet on the same socket removes every pod that it did not ask for.
func (s *runtimeService) visible() []*pod.Pod {
	some, _ := s.listPods(nil)
	return some
}

func labelsMatch(want, have map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// inParts sends items in messages of at most partSize; an empty list is one empty message.
func inParts[T any](items []T, send func([]T) error) error {
	for {
		n := min(partSize, len(items))
		if err := send(items[:n:n]); err != nil {
			return fmt.Errorf("send list: %w", err)
		}
		if items = items[n:]; len(items) == 0 {
			return nil
		}
	}
}
