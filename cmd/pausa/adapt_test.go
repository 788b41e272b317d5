package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pausa-run/pausa/cri"
	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/reconcile"
	"github.com/pausa-run/pausa/runtime"
)

// idle stands for pods and images where nothing runs.
type idle struct{}

// noTable stands for the table of Services.
type noTable struct{}

func (idle) Run(context.Context, pod.Config) (string, error) { return "", pod.ErrUnavailable }
func (idle) Stop(context.Context, string) error              { return nil }
func (idle) Remove(context.Context, string) error            { return nil }
func (idle) Pods() []pod.Pod                                 { return nil }
func (idle) Containers() []pod.Container                     { return nil }
func (idle) CreateContainer(context.Context, string, pod.ContainerConfig) (string, error) {
	return "", pod.ErrUnavailable
}
func (idle) StartContainer(context.Context, string) error               { return nil }
func (idle) StopContainer(context.Context, string, time.Duration) error { return nil }
func (idle) RemoveContainer(context.Context, string) error              { return nil }
func (idle) Update(context.Context, string, runtime.Resources) error    { return nil }
func (idle) Subscribe() (<-chan pod.Event, func())                      { return make(chan pod.Event), func() {} }

func (idle) Dial(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return nil, pod.ErrUnavailable
}

func (idle) ExecSync(context.Context, string, []string, time.Duration) ([]byte, []byte, int, error) {
	return nil, nil, 0, pod.ErrUnavailable
}

func (idle) Get(context.Context, string) (images.Image, error) {
	return images.Image{}, images.ErrNotFound
}
func (noTable) Sync(context.Context, []service.Service) error { return nil }
func (noTable) Resync(context.Context) error                  { return nil }
func (noTable) Update(context.Context, []service.Service, []service.ID) error {
	return nil
}
func (noTable) Watch(context.Context) <-chan string { return make(chan string) }

func newDeclared(t *testing.T) declared {
	t.Helper()
	engine, err := reconcile.New(reconcile.Options{
		StateDir: t.TempDir(), RunDir: t.TempDir(), Pods: idle{}, Images: idle{}, Services: noTable{},
		Alloc: service.NewAllocator([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, 30000, 30010),
	})
	if err != nil {
		t.Fatal(err)
	}
	return declaredBy(engine)
}

func TestDeclared(t *testing.T) {
	d, ctx := newDeclared(t), context.Background()
	in := []cri.Object{
		{JSON: []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","labels":{"x":"y"}}}`), Source: "a.yaml:1"},
		{JSON: []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"}}`), Source: "a.yaml:5"},
	}
	results, err := d.Apply(ctx, in, true)
	if err != nil || len(results) != 2 || results[0].Outcome != "created" || results[0].Ref != (cri.Ref{Kind: "ConfigMap", Namespace: "default", Name: "a"}) {
		t.Fatalf("dry run: %+v, %v", results, err)
	}
	if found, err := d.Get(ctx, cri.Selection{Kind: "ConfigMap"}); err != nil || len(found) != 0 {
		t.Fatalf("after the dry run: %s, %v", found, err)
	}
	if _, err := d.Apply(ctx, in, false); err != nil {
		t.Fatal(err)
	}
	if results, err = d.Apply(ctx, in, false); err != nil || results[1].Outcome != "unchanged" {
		t.Errorf("again: %+v, %v", results, err)
	}
	found, err := d.Get(ctx, cri.Selection{Kind: "ConfigMap", LabelSelector: "x=y"})
	if err != nil || len(found) != 1 || !strings.Contains(string(found[0]), `"kind":"ConfigMap"`) {
		t.Errorf("by label: %s, %v", found, err)
	}
}

func TestDeclaredRefusals(t *testing.T) {
	d, ctx := newDeclared(t), context.Background()
	_, err := d.Apply(ctx, []cri.Object{{JSON: []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"nam":"a"}}`), Source: "a.yaml:7"}}, false)
	if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "a.yaml:7") {
		t.Errorf("bad object: %v", err)
	}
	// One that is refused refuses all, and each is told what became of it.
	results, err := d.Apply(ctx, []cri.Object{
		{JSON: []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"good"}}`), Source: "a.yaml:1"},
		{JSON: []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"bad","namespace":"nowhere"}}`), Source: "a.yaml:5"},
	}, false)
	if err != nil || len(results) != 2 || results[0].Outcome != "not stored" || results[0].Error != "" ||
		results[1].Name != "bad" || results[1].Outcome != "" || !strings.Contains(results[1].Error, "a.yaml:5") || !strings.Contains(results[1].Error, "nowhere") {
		t.Errorf("results %+v, %v", results, err)
	}
	if found, _ := d.Get(ctx, cri.Selection{Kind: "ConfigMap"}); len(found) != 0 {
		t.Errorf("stored: %s", found)
	}
	if _, err := d.Get(ctx, cri.Selection{LabelSelector: "=="}); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("bad selector: %v", err)
	}
	if _, err := d.Delete(ctx, cri.Selection{LabelSelector: "=="}, cri.DeleteOptions{}); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("bad selector: %v", err)
	}
	if _, err := d.Delete(ctx, cri.Selection{Kind: "Pod", Namespace: "default", Name: "x"}, cri.DeleteOptions{}); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("missing object: %v", err)
	}
	if _, _, err := d.FindContainer("default", "x", "", false); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("missing pod: %v", err)
	}
	if _, err := pullFor(nil, newMeters())(ctx, "x", &cri.Auth{RegistryToken: "t"}); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("registry token: %v", err)
	}
}
