package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

// TestMain runs the tests in a mount namespace of their own: volumes are mounted.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv("PAUSA_TEST_NS") == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), "PAUSA_TEST_NS=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

// fakePods behaves as *pod.Manager does, without processes. It outlives engines.
type fakePods struct {
	mu    sync.Mutex
	n     int
	pods  map[string]*pod.Pod
	ctrs  map[string]*pod.Container
	subs  map[chan pod.Event]bool
	calls []string
	fail  map[string]error // by "Run", "CreateContainer web", …
	// before and after are called around each changing call, with its name.
	before, after func(call string)
	deaf          bool           // containers do not end on SIGTERM
	codes         map[string]int // of commands run in containers, by their first word; 0 if it is not here
	block         chan struct{}  // if set, commands named "block" wait for it
	clock         Clock
}

func newFakePods(clock Clock) *fakePods {
	return &fakePods{pods: map[string]*pod.Pod{}, ctrs: map[string]*pod.Container{}, subs: map[chan pod.Event]bool{}, fail: map[string]error{}, clock: clock}
}

// do brackets one changing call.
func (f *fakePods) do(ctx context.Context, call string, change func() error) error {
	if f.before != nil {
		f.before(call)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	err := f.fail[call]
	f.calls = append(f.calls, call)
	if err == nil {
		err = change()
	}
	f.mu.Unlock()
	if f.after != nil {
		f.after(call)
	}
	return err
}

// tell sends an event; f.mu is held.
func (f *fakePods) tell(t pod.EventType, podID, id string) {
	for ch := range f.subs {
		ch <- pod.Event{Type: t, PodID: podID, ContainerID: id}
	}
}

func (f *fakePods) Subscribe() (<-chan pod.Event, func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan pod.Event, 10000)
	f.subs[ch] = true
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subs, ch)
	}
}

func (f *fakePods) id(kind string) string { f.n++; return fmt.Sprintf("%s%d", kind, f.n) }

func (f *fakePods) Run(ctx context.Context, cfg pod.Config) (id string, err error) {
	err = f.do(ctx, "Run", func() error {
		for _, p := range f.pods {
			if c := p.Config; c.Name == cfg.Name && c.Namespace == cfg.Namespace && c.UID == cfg.UID && c.Attempt == cfg.Attempt {
				if !p.Ready {
					return pod.ErrExists
				}
				id = p.ID
				return nil
			}
			if p.Ready && p.Config.Name == cfg.Name && p.Config.Namespace == cfg.Namespace {
				return fmt.Errorf("two sandboxes of %s run at once", cfg.Name)
			}
		}
		id = f.id("pod")
		f.pods[id] = &pod.Pod{ID: id, Config: cfg, CreatedAt: f.clock.Now(), Ready: true, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(f.n)})}}
		f.tell(pod.EventStarted, id, "")
		return nil
	})
	return id, err
}

func (f *fakePods) stop(id string) {
	for _, c := range f.ctrs {
		if c.PodID == id {
			f.exit(c, 137)
		}
	}
	if p := f.pods[id]; p != nil && p.Ready {
		p.Ready, p.StoppedAt = false, f.clock.Now()
		f.tell(pod.EventStopped, id, "")
	}
}

func (f *fakePods) Stop(ctx context.Context, id string) error {
	return f.do(ctx, "Stop", func() error { f.stop(id); return nil })
}

func (f *fakePods) Remove(ctx context.Context, id string) error {
	return f.do(ctx, "Remove", func() error {
		f.stop(id)
		for cid, c := range f.ctrs {
			if c.PodID == id {
				delete(f.ctrs, cid)
			}
		}
		delete(f.pods, id)
		f.tell(pod.EventDeleted, id, "")
		return nil
	})
}

func (f *fakePods) Pods() (out []pod.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods {
		out = append(out, *p)
	}
	return out
}

func (f *fakePods) Containers() (out []pod.Container) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.ctrs {
		out = append(out, *c)
	}
	return out
}

func (f *fakePods) CreateContainer(ctx context.Context, podID string, cfg pod.ContainerConfig) (id string, err error) {
	err = f.do(ctx, "CreateContainer "+cfg.Name, func() error {
		p := f.pods[podID]
		if p == nil || !p.Ready {
			return pod.ErrState
		}
		for _, c := range f.ctrs {
			if c.PodID == podID && c.Config.Name == cfg.Name {
				if c.Config.Attempt == cfg.Attempt {
					id = c.ID
					return nil
				}
				if c.Status != runtime.Exited {
					return fmt.Errorf("container %s is there twice", cfg.Name)
				}
			}
		}
		id = f.id("ctr")
		f.ctrs[id] = &pod.Container{ID: id, PodID: podID, Config: cfg, ImageID: "sha256:1", Status: runtime.Created, CreatedAt: f.clock.Now()}
		path := p.Config.LogDirectory + "/" + cfg.LogPath
		return os.WriteFile(path, []byte("log\n"), 0o600)
	})
	return id, err
}

func (f *fakePods) StartContainer(ctx context.Context, id string) error {
	f.mu.Lock()
	c := f.ctrs[id]
	f.mu.Unlock()
	if c == nil {
		return pod.ErrNotFound
	}
	return f.do(ctx, "StartContainer "+c.Config.Name, func() error {
		if c.Status != runtime.Created {
			return pod.ErrState
		}
		if slices.Contains(c.Config.Command, "nosuch") {
			c.Status, c.Exit = runtime.Exited, &runtime.Exit{ID: id, Code: 128, FinishedAt: f.clock.Now(), StartError: "nosuch: no such file"}
			f.tell(pod.EventStopped, c.PodID, id)
			return errors.New("nosuch: no such file")
		}
		c.Status, c.StartedAt = runtime.Running, f.clock.Now()
		f.tell(pod.EventStarted, c.PodID, id)
		return nil
	})
}

// Update sets what is set in r, as the manager does.
func (f *fakePods) Update(ctx context.Context, id string, r runtime.Resources) error {
	f.mu.Lock()
	c := f.ctrs[id]
	f.mu.Unlock()
	if c == nil {
		return pod.ErrNotFound
	}
	return f.do(ctx, "Update "+c.Config.Name, func() error {
		c.Config.Resources = r
		return nil
	})
}

// ExecSync notes the command as "Exec CONTAINER WORD" and ends with its code.
func (f *fakePods) ExecSync(ctx context.Context, id string, args []string, _ time.Duration) ([]byte, []byte, int, error) {
	f.mu.Lock()
	c, code, block := f.ctrs[id], f.codes[args[0]], f.block
	if c == nil || c.Status != runtime.Running {
		f.mu.Unlock()
		return nil, nil, 0, pod.ErrState
	}
	if args[0] != "probe" {
		f.calls = append(f.calls, "Exec "+c.Config.Name+" "+args[0])
	}
	f.mu.Unlock()
	if block != nil && args[0] == "block" {
		select {
		case <-block:
		case <-ctx.Done():
			return nil, nil, 0, ctx.Err()
		}
	}
	return nil, nil, code, nil
}

func (f *fakePods) Dial(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return nil, errors.New("connection refused")
}

// answer sets the exit code of a command from now on.
func (f *fakePods) answer(command string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.codes == nil {
		f.codes = map[string]int{}
	}
	f.codes[command] = code
}

// exit ends a container; f.mu is held.
func (f *fakePods) exit(c *pod.Container, code int) {
	if c.Status == runtime.Exited {
		return
	}
	c.Status, c.Exit = runtime.Exited, &runtime.Exit{ID: c.ID, Code: code, FinishedAt: f.clock.Now()}
	f.tell(pod.EventStopped, c.PodID, c.ID)
}

func (f *fakePods) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	f.mu.Lock()
	c, deaf := f.ctrs[id], f.deaf
	f.mu.Unlock()
	if c == nil {
		return nil
	}
	if deaf && grace > 0 {
		if f.before != nil {
			f.before("Signal " + c.Config.Name)
		}
		done := make(chan struct{})
		defer f.clock.AfterFunc(grace, func() { close(done) })()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-done:
		}
	}
	return f.do(ctx, "StopContainer "+c.Config.Name, func() error { f.exit(c, 143); return nil })
}

func (f *fakePods) RemoveContainer(ctx context.Context, id string) error {
	return f.do(ctx, "RemoveContainer", func() error { delete(f.ctrs, id); return nil })
}

// end makes the running container of a name exit by itself.
func (f *fakePods) end(t *testing.T, name string, code int) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.ctrs {
		if c.Config.Name == name && c.Status == runtime.Running {
			f.exit(c, code)
			return
		}
	}
	t.Fatalf("no container %s runs", name)
}

// running is the container of a name that runs, besides those kept that have ended.
func (f *fakePods) running(t *testing.T, name string) pod.Container {
	t.Helper()
	for _, c := range f.Containers() {
		if c.Config.Name == name && c.Status == runtime.Running {
			return c
		}
	}
	t.Fatalf("no container %s runs", name)
	return pod.Container{}
}

func (f *fakePods) count(name string, status runtime.Status) (n int) {
	for _, c := range f.Containers() {
		if c.Config.Name == name && c.Status == status {
			n++
		}
	}
	return n
}

func (f *fakePods) history() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// fakeClock moves only when told.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[*fakeTimer]bool
}

type fakeTimer struct {
	at time.Time
	f  func()
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), timers: map[*fakeTimer]bool{}}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) AfterFunc(d time.Duration, f func()) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &fakeTimer{c.now.Add(d), f}
	c.timers[t] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, t)
	}
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	var due []func()
	for t := range c.timers {
		if !t.at.After(c.now) {
			due = append(due, t.f)
			delete(c.timers, t)
		}
	}
	c.mu.Unlock()
	for _, f := range due {
		go f()
	}
}

// fakeTable keeps what Sync was given.
type fakeTable struct {
	mu    sync.Mutex
	now   []service.Service
	syncs int
	fresh int
	watch chan string
	err   error
	log   func(string)
}

func (t *fakeTable) Sync(_ context.Context, desired []service.Service) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return t.err
	}
	t.now, t.syncs = slices.Clone(desired), t.syncs+1
	if t.log != nil {
		t.log("Sync")
	}
	return nil
}

func (t *fakeTable) Update(_ context.Context, set []service.Service, gone []service.ID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return t.err
	}
	t.now = slices.DeleteFunc(slices.Clone(t.now), func(s service.Service) bool {
		is := func(n, m string) bool { return s.Namespace == n && s.Name == m }
		return slices.ContainsFunc(set, func(o service.Service) bool { return is(o.Namespace, o.Name) }) ||
			slices.ContainsFunc(gone, func(id service.ID) bool { return is(id.Namespace, id.Name) })
	})
	t.now, t.syncs = append(t.now, set...), t.syncs+1
	if t.log != nil {
		t.log("Sync")
	}
	return nil
}

func (t *fakeTable) setLog(log func(string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log = log
}

func (t *fakeTable) Resync(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fresh++
	return nil
}

func (t *fakeTable) Watch(context.Context) <-chan string { return t.watch }

// endpoints of the first port of a service.
func (t *fakeTable) endpoints(name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.now {
		if s.Name == name {
			return len(s.Ports[0].Endpoints)
		}
	}
	return -1
}

type fakeImages struct{}

func (fakeImages) Get(_ context.Context, ref string) (images.Image, error) {
	if strings.Contains(ref, "missing") {
		return images.Image{}, images.ErrNotFound
	}
	return images.Image{ID: "sha256:1"}, nil
}

// world is a host with one engine at a time.
type world struct {
	t          testing.TB
	state, run string
	pods       *fakePods
	clock      *fakeClock
	table      *fakeTable
	change     func(*Options)
	e          *Engine
	stop       func()
}

func newWorld(t *testing.T) *world { return newWorldWith(t, func(*Options) {}) }

func newWorldWith(t *testing.T, change func(*Options)) *world {
	clock := newFakeClock()
	w := &world{t: t, change: change, state: t.TempDir(), run: t.TempDir(), clock: clock, pods: newFakePods(clock), table: &fakeTable{watch: make(chan string, 1)}}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start makes an engine, as a daemon that starts would.
func (w *world) start() {
	w.t.Helper()
	alloc := service.NewAllocator([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/24")}, 30000, 32767)
	opts := Options{
		StateDir: w.state, RunDir: w.run, Pods: w.pods, Images: fakeImages{}, Services: w.table, Alloc: alloc,
		NodeName: "node", NodeIPs: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, Clock: w.clock,
	}
	w.change(&opts)
	e, err := New(opts)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.e = e
	w.stop = func() { cancel(); <-done }
	go func() {
		defer close(done)
		if err := e.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
}

func (w *world) decode(text string) []manifest.Object {
	w.t.Helper()
	objects, err := manifest.Decode(strings.NewReader(text), "test.yaml")
	if err != nil {
		w.t.Fatal(err)
	}
	return objects
}

func (w *world) apply(text string) []ApplyResult {
	w.t.Helper()
	results, err := w.e.Apply(context.Background(), w.decode(text), false)
	if err != nil {
		w.t.Fatal(err)
	}
	return results
}

// until waits for a condition; that it comes true at all is the assertion.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	w.t.Fatalf("waited in vain until %s; calls: %v", what, w.pods.history())
}

func (w *world) pod(name string) *corev1.Pod {
	list, err := w.e.Get(manifest.KindPod, "default", name, nil)
	if err != nil {
		return nil
	}
	return list[0].Value().(*corev1.Pod)
}

func (w *world) ready(name string) func() bool {
	return func() bool {
		p := w.pod(name)
		return p != nil && isReady(p, &p.Status)
	}
}

func (w *world) gone(name string) func() bool {
	return func() bool { return w.pod(name) == nil }
}

// quiet waits until nothing is under way: all events are heard and no key is worked on.
func (w *world) quiet() {
	w.t.Helper()
	calm := 0
	w.until("nothing is under way", func() bool {
		w.e.work.mu.Lock()
		busy := false
		for _, j := range w.e.work.keys {
			busy = busy || j.running
		}
		w.e.work.mu.Unlock()
		w.pods.mu.Lock()
		for ch := range w.pods.subs {
			busy = busy || len(ch) > 0
		}
		w.pods.mu.Unlock()
		if calm++; busy {
			calm = 0
		}
		return calm > 5
	})
}
