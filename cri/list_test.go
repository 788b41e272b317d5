package cri

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
)

// The items that are kept encoded are those of the pods and containers as they are, again and after a change.
func TestListsAreTrue(t *testing.T) {
	d := newDaemon(t)
	d.fill(t, 3)
	check := func() {
		t.Helper()
		now := d.pods.Snapshot()
		for range 2 {
			ctrs, err := d.rt.ListContainers(t.Context(), &criv1.ListContainersRequest{})
			if err != nil {
				t.Fatal(err)
			}
			pods, err := d.rt.ListPodSandbox(t.Context(), &criv1.ListPodSandboxRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(ctrs.Containers, now.Containers, func(have *criv1.Container, c *pod.Container) bool { return proto.Equal(have, containerItem(c)) }) {
				t.Errorf("containers: %v", ctrs)
			}
			if !slices.EqualFunc(pods.Items, now.Pods, func(have *criv1.PodSandbox, p *pod.Pod) bool { return proto.Equal(have, podItem(p)) }) {
				t.Errorf("pods: %v", pods)
			}
			if len(ctrs.ProtoReflect().GetUnknown())+len(pods.ProtoReflect().GetUnknown()) > 0 {
				t.Error("a client finds fields that it does not know")
			}
		}
	}
	check()
	now := d.pods.Snapshot()
	d.pods.exit(now.Containers[1].ID, 3)
	check()
	if _, err := d.rt.RemovePodSandbox(t.Context(), &criv1.RemovePodSandboxRequest{PodSandboxId: now.Pods[0].ID}); err != nil {
		t.Fatal(err)
	}
	check()
}

// What is kept of pods that are gone is bounded.
func TestEncodingsForget(t *testing.T) {
	e := newEncodings(func(p *pod.Pod) proto.Message { return podItem(p) })
	for i := range 10_000 {
		all := []*pod.Pod{{ID: fmt.Sprint(i)}, {ID: fmt.Sprint(-i)}}
		if raw, err := e.encode(all, len(all)); err != nil || len(raw) == 0 {
			t.Fatal(raw, err)
		}
	}
	if n := len(e.of); n > partSize+10 {
		t.Errorf("%d encodings are kept for 2 pods", n)
	}
}
