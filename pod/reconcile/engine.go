// Package reconcile makes declared objects true: it keeps them on disk, and one
// loop compares them with what runs and does the next step. Every step may be
// repeated and cut off at any point; the next pass goes on from the facts.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/event"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/pod/probe"
	"github.com/pausa-run/pausa/runtime"
)

// PodManager is what the loop needs of *pod.Manager.
type PodManager interface {
	Run(ctx context.Context, cfg pod.Config) (id string, err error)
	Stop(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	Pods() []pod.Pod
	CreateContainer(ctx context.Context, podID string, cfg pod.ContainerConfig) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	Update(ctx context.Context, id string, r runtime.Resources) error
	Containers() []pod.Container
	Subscribe() (events <-chan pod.Event, cancel func())
	probe.Access
}

// ImageStore tells which images are on this host.
type ImageStore interface {
	Get(ctx context.Context, ref string) (images.Image, error)
}

// ServiceTable is the kernel's side of Services.
type ServiceTable interface {
	Sync(ctx context.Context, desired []service.Service) error
	Update(ctx context.Context, set []service.Service, gone []service.ID) error
	Resync(ctx context.Context) error
	// Watch tells who has changed the rules.
	Watch(ctx context.Context) <-chan string
}

// Allocator hands out cluster IPs and node ports. key is "namespace/name".
type Allocator interface {
	ClusterIP(key string, family int) (netip.Addr, error)
	ReserveClusterIP(key string, addr netip.Addr) error
	NodePort(key, proto string) (uint16, error)
	ReserveNodePort(key, proto string, port uint16) error
	Release(key string)
}

// Clock is time, for tests.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f once in its own goroutine; stop prevents it if it has not begun.
	AfterFunc(d time.Duration, f func()) (stop func())
}

// Options are the parts that New wires. Pods, Images, Services and Alloc are required.
type Options struct {
	StateDir string // objects, logs and volumes of pods
	RunDir   string // volumes of secrets, states of probes; tmpfs, else one is mounted per secret
	Pods     PodManager
	Images   ImageStore
	// Pull gets an image from its registry; nil: only images on this host can be used.
	// The zero Auth leaves the credential to the image store's configuration.
	Pull     func(ctx context.Context, ref string, auth images.Auth) error
	Services ServiceTable
	Alloc    Allocator
	// Balancers has the addresses of Services of type LoadBalancer; nil: the host's own.
	Balancers Allocator
	// Handlers are what pods may name as runtimeClassName; nil: nothing.
	Handlers RuntimeHandlers
	// CgroupV2: the host has cgroup v2 alone, where all processes of a container that is out of memory can be killed together.
	CgroupV2 bool
	// SeccompProfiles is the folder of the profiles that pods may name.
	SeccompProfiles string
	NodeName        string
	NodeIPs         func() []netip.Addr // nil: none
	ResolvConf      string              // "" is /etc/resolv.conf
	DNS             *ClusterDNS         // nil: pods use the host's resolver
	Events          *event.Recorder     // nil: none are kept
	Log             *slog.Logger
	Clock           Clock // nil: the real one
}

// RuntimeHandlers knows the host's runtime handlers; *runtime.Handlers has it.
type RuntimeHandlers interface {
	// Find finds one by name or alias; an error that wraps runtime.ErrNotFound names those that there are.
	Find(name string) (runtime.Handler, error)
}

// Engine holds the declared objects and the loop.
type Engine struct {
	opts    Options
	log     *slog.Logger
	clock   Clock
	pods    *driver
	objects *store
	work    *queue
	notes   *notes
	volumes *volumes
	probes  *probe.Set
	hooks   hooks
	users   users
	slots   chan struct{} // starts of pods and containers that may be under way at once

	apply sync.Mutex // one Apply or Delete changes the set of objects at a time

	fronts    *fronts
	endpoints sync.Mutex // guards what follows and is held while Services is written
	synced    bool       // Services was given all once
	unwritten bool       // the last write failed, at least for some
	published bool       // DNS was given all once

	resyncs int // of Run
}

const (
	// resyncEvery is how often pods are compared again, besides events.
	resyncEvery = 10 * time.Second
	// fullEvery is every how many times Services are looked at that nothing on this
	// host concerns: who changes them tells of it.
	fullEvery = 60
)

// New reads the store. It starts nothing; that is Run's. A file that cannot be
// read is set aside and named in the log.
func New(opts Options) (*Engine, error) {
	if opts.Pods == nil || opts.Images == nil || opts.Services == nil || opts.Alloc == nil {
		return nil, errors.New("make reconcile engine: Pods, Images, Services and Alloc are required")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Clock == nil {
		opts.Clock = realClock{}
	}
	if opts.NodeIPs == nil {
		opts.NodeIPs = func() []netip.Addr { return nil }
	}
	if opts.ResolvConf == "" {
		opts.ResolvConf = "/etc/resolv.conf"
	}
	for _, dir := range []string{filepath.Join(opts.StateDir, "pods"), filepath.Join(opts.StateDir, "logs"), filepath.Join(opts.RunDir, "volumes")} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil { // secrets are in them
			return nil, fmt.Errorf("make reconcile engine: %w", err)
		}
	}
	objects, err := openStore(opts.StateDir, opts.Log)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		opts: opts, log: opts.Log, clock: opts.Clock, pods: newDriver(opts.Pods), objects: objects,
		fronts: newFronts(), notes: newNotes(), volumes: newVolumes(opts.StateDir, opts.RunDir),
		slots: make(chan struct{}, max(8, 4*goruntime.NumCPU())),
	}
	e.probes, err = probe.Open(probe.Options{
		Access: opts.Pods, Clock: opts.Clock, Dir: filepath.Join(opts.RunDir, "probes"), Changed: e.answered, Failed: e.unhealthy, Log: opts.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("make reconcile engine: %w", err)
	}
	e.work = newQueue(opts.Clock, e.sync)
	e.reserveDNS()
	for _, o := range objects.list(manifest.KindService, "") {
		if err := e.reserve(o.Value().(*corev1.Service)); err != nil {
			e.log.Error("a stored Service claims an address that is taken", "service", o.Ref().String(), "error", err)
			e.tellTaken(o, err)
		}
	}
	return e, nil
}

// Run compares and acts until ctx ends; pods go on without it. It returns when
// no step is under way any more.
func (e *Engine) Run(ctx context.Context) error {
	events, cancel := e.pods.Subscribe()
	defer func() { cancel() }()
	e.sweep()
	e.work.start(ctx)
	defer e.work.wait()
	defer e.probes.Close()
	e.resync()
	flushed := e.opts.Services.Watch(ctx)
	tick := make(chan struct{}, 1)
	defer e.every(tick)()
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-events:
			if !ok { // cut off for being slow, or the manager is closing
				cancel()
				if ctx.Err() != nil {
					return nil
				}
				events, cancel = e.pods.Subscribe()
				e.resync()
				if !waitABit(ctx, e.clock) {
					return nil
				}
				continue
			}
			e.event(ev)
		case _, ok := <-flushed:
			if !ok {
				flushed = nil
				continue
			}
			e.healServices(ctx)
		case <-tick:
			e.resync()
		}
	}
}

// waitABit keeps a manager that closes every subscription at once from costing a whole CPU.
func waitABit(ctx context.Context, clock Clock) bool {
	done := make(chan struct{})
	stop := clock.AfterFunc(time.Second, func() { close(done) })
	defer stop()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// every fills tick each resyncEvery until stop is called.
func (e *Engine) every(tick chan<- struct{}) (stop func()) {
	var mu sync.Mutex
	var cancel func()
	stopped := false
	var again func()
	again = func() {
		mu.Lock()
		defer mu.Unlock()
		if stopped {
			return
		}
		select {
		case tick <- struct{}{}:
		default:
		}
		cancel = e.clock.AfterFunc(resyncEvery, again)
	}
	mu.Lock()
	defer mu.Unlock()
	cancel = e.clock.AfterFunc(resyncEvery, again)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		cancel()
	}
}

// event wakes the keys that a pod's transition concerns.
func (e *Engine) event(ev pod.Event) {
	e.pods.invalidate()
	if ref, ok := e.pods.refOf(ev.PodID); ok {
		e.tellExit(ref, ev)
		e.work.add(ref)
		e.touched(ref)
	}
}

// touched wakes what depends on a pod: its Deployment and the Services.
func (e *Engine) touched(ref manifest.Ref) {
	e.changedFront(ref)
	o, ok := e.objects.get(ref)
	if !ok {
		return
	}
	for _, owner := range o.Meta().OwnerReferences {
		if owner.Kind == manifest.KindDeployment {
			e.work.add(manifest.Ref{Kind: owner.Kind, Namespace: ref.Namespace, Name: owner.Name})
		}
	}
}

// changedFront has the Services that an object concerns worked out again: a pod, a
// Service or endpoints.
func (e *Engine) changedFront(ref manifest.Ref) {
	e.fronts.mark(ref)
	e.work.add(manifest.Ref{Kind: manifest.KindService})
}

// resync wakes every key: of the objects, and of sandboxes that may have none.
func (e *Engine) resync() {
	e.pods.invalidate()
	e.forgetProbes()
	e.fronts.widen(hostOnly)
	if e.resyncs++; e.resyncs%fullEvery == 0 {
		e.fronts.widen(everything)
	}
	for _, kind := range []string{manifest.KindPod, manifest.KindDeployment, manifest.KindNamespace} {
		for _, o := range e.objects.list(kind, "") {
			if kind != manifest.KindNamespace || o.Meta().DeletionTimestamp != nil {
				e.work.add(o.Ref())
			}
		}
	}
	for _, ref := range e.pods.refs() {
		e.work.add(ref)
	}
	e.work.add(manifest.Ref{Kind: manifest.KindService})
}

// sync does what one key needs. The queue calls it for one key at a time.
func (e *Engine) sync(ctx context.Context, ref manifest.Ref) time.Duration {
	var again time.Duration
	var err error
	switch ref.Kind {
	case manifest.KindPod:
		again, err = e.syncPod(ctx, ref)
		e.touched(ref)
	case manifest.KindDeployment:
		again, err = e.syncDeployment(ref)
	case manifest.KindService:
		err = e.syncServices(ctx)
	case manifest.KindNamespace:
		err = e.syncNamespace(ref)
	}
	if err != nil && ctx.Err() == nil {
		e.log.Warn("reconcile", "object", ref.String(), "error", err)
		if again == 0 {
			again = time.Second
		}
	}
	return again
}

// sweep removes volumes and logs of pods that are neither declared nor running.
func (e *Engine) sweep() {
	known := map[types.UID]bool{}
	for _, o := range e.objects.list(manifest.KindPod, "") {
		known[o.Meta().UID] = true
	}
	for _, p := range e.opts.Pods.Pods() {
		known[types.UID(p.Config.UID)] = true
	}
	if err := errors.Join(e.volumes.sweep(known), e.sweepLogs(known)); err != nil {
		e.log.Warn("remove what former pods left", "error", err)
	}
}

// fault is an error for people with a sentinel for callers, which is not part of the text.
type fault struct {
	kind error
	msg  string
}

func (f *fault) Error() string { return f.msg }
func (f *fault) Unwrap() error { return f.kind }

func faultf(kind error, format string, args ...any) error {
	return &fault{kind, fmt.Sprintf(format, args...)}
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) AfterFunc(d time.Duration, f func()) (stop func()) {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}
