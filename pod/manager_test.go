package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pausa-run/pausa/runtime"
)

// world is one Manager with the three fakes, and what outlives it.
type world struct {
	t      *testing.T
	m      *Manager
	keeper *fakeKeeper
	net    *fakeNetwork
	images *fakeImages
	run    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, keeper: newFakeKeeper(), net: newFakeNetwork(), images: newFakeImages(t), run: t.TempDir()}
	w.restart()
	t.Cleanup(func() { // the pods' mounts keep the test's folder from being removed
		w.m.Close()
		w.checkShown()
		for _, p := range w.m.Pods() {
			_ = w.m.unmountPod(p.ID)
		}
	})
	return w
}

// restart is what a kill -9 of the daemon and its next start do to the Manager.
func (w *world) restart() {
	w.t.Helper()
	if w.m != nil {
		w.m.Close()
	}
	m, err := New(Options{
		RunDir: w.run, CgroupParent: "/pausa-test-none", Runtime: w.keeper, Network: w.net, Images: w.images,
		Relaunch: func(context.Context) (Runtime, error) { return w.keeper, w.keeper.call("Relaunch") },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := m.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.m = m
}

// checkEmpty fails the test if anything of any pod is left.
func (w *world) checkEmpty() {
	w.t.Helper()
	left, _ := os.ReadDir(filepath.Join(w.run, "pods"))
	if len(left)+len(w.keeper.pods)+len(w.keeper.ctrs)+len(w.net.attached)+len(w.net.pinned)+len(w.images.mounts) != 0 {
		w.t.Errorf("left: files %v, keeper %v %v, network %v %v, images %v", left, w.keeper.pods, w.keeper.ctrs, w.net.attached, w.net.pinned, w.images.mounts)
	}
	if len(w.m.Pods())+len(w.m.Containers())+len(w.m.names) != 0 {
		w.t.Errorf("listed: %v %v %v", w.m.Pods(), w.m.Containers(), w.m.names)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), w.run) {
		w.t.Errorf("mounts are left below %s", w.run)
	}
}

func podConfig(name string) Config {
	return Config{Name: name, Namespace: "default", UID: "u-" + name, Hostname: name}
}

func (w *world) mustRun(name string) string {
	w.t.Helper()
	id, err := w.m.Run(w.t.Context(), podConfig(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) mustStart(podID, name string) string {
	w.t.Helper()
	id, err := w.m.CreateContainer(w.t.Context(), podID, ContainerConfig{Name: name, Image: "busybox"})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.m.StartContainer(w.t.Context(), id); err != nil {
		w.t.Fatal(err)
	}
	return id
}

func TestLife(t *testing.T) {
	w := newWorld(t)
	id := w.mustRun("web")
	p, err := w.m.Pod(id[:8])
	if err != nil || !p.Ready || p.Pid == 0 || len(p.IPs) != 1 || p.NetNS == "" {
		t.Fatalf("pod %+v, %v; want ready, with pid, address and namespace", p, err)
	}
	hosts, _ := os.ReadFile(filepath.Join(w.run, "pods", id, "hosts"))
	if !strings.Contains(string(hosts), p.IPs[0].String()+"\tweb\n") {
		t.Errorf("hosts does not name the pod:\n%s", hosts)
	}
	c := w.mustStart(id, "main")
	v, err := w.m.Container(c)
	if err != nil || v.Status != runtime.Running || v.Pid == 0 || v.PodID != id || v.ImageID != "sha256:1" {
		t.Fatalf("container %+v, %v; want running in the pod", v, err)
	}
	if err := w.m.StopContainer(t.Context(), c, time.Minute); err != nil {
		t.Fatal(err)
	}
	if v, _ = w.m.Container(c); v.Status != runtime.Exited || v.Exit.Code != 143 || v.Pid != 0 {
		t.Fatalf("container %+v; want exited with 143", v)
	}
	for range 2 { // each is idempotent
		if err := errors.Join(w.m.Stop(t.Context(), id), w.m.StopContainer(t.Context(), c, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if p, _ = w.m.Pod(id); p.Ready || p.StoppedAt.IsZero() {
		t.Fatalf("pod %+v; want stopped", p)
	}
	for range 2 {
		if err := errors.Join(w.m.RemoveContainer(t.Context(), c), w.m.Remove(t.Context(), id)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.m.Pod(id); !errors.Is(err, ErrNotFound) {
		t.Fatalf("error %v; want ErrNotFound", err)
	}
	w.checkEmpty()
}

func TestRemoveKillsWhatRuns(t *testing.T) {
	w := newWorld(t)
	w.keeper.ignoreTerm = true
	id := w.mustRun("web")
	w.mustStart(id, "a")
	w.mustStart(id, "b")
	if _, err := w.m.CreateContainer(t.Context(), id, ContainerConfig{Name: "created", Image: "busybox"}); err != nil {
		t.Fatal(err)
	}
	if err := w.m.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty()
}

func TestStopEscalates(t *testing.T) {
	w := newWorld(t)
	w.keeper.ignoreTerm = true
	c := w.mustStart(w.mustRun("web"), "main")
	if err := w.m.StopContainer(t.Context(), c, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	fc, _ := w.keeper.find(c)
	if !slices.Equal(fc.sigs, []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}) {
		t.Errorf("signals %v; want TERM, then KILL", fc.sigs)
	}
}

// TestRunFails lets each step of Run fail, alone and with a step of its undoing.
func TestRunFails(t *testing.T) {
	boom := errors.New("boom")
	for _, step := range []string{"StartPod", "Pin", "Attach"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			w.keeper.set(step, boom)
			w.net.set(step, boom)
			if _, err := w.m.Run(t.Context(), podConfig("web")); !errors.Is(err, boom) {
				t.Fatalf("error %v; want boom", err)
			}
			w.checkEmpty()
			w.keeper.set(step, nil)
			w.net.set(step, nil)
			if err := w.m.Remove(t.Context(), w.mustRun("web")); err != nil { // the same request succeeds
				t.Fatal(err)
			}
			w.checkEmpty()
		})
	}
}

func TestUndoFails(t *testing.T) {
	for _, undo := range []string{"Detach", "RemovePod"} {
		t.Run(undo, func(t *testing.T) {
			w := newWorld(t)
			boom, bang := errors.New("boom"), errors.New("bang")
			w.net.set("Attach", boom)
			w.net.set(undo, bang)
			w.keeper.set(undo, bang)
			_, err := w.m.Run(t.Context(), podConfig("web"))
			if !errors.Is(err, boom) || !errors.Is(err, bang) {
				t.Fatalf("error %v; want both boom and bang", err)
			}
			left := w.m.Pods()
			if len(left) != 1 || left[0].Ready || !strings.Contains(left[0].Problem, "bang") {
				t.Fatalf("pods %+v; want one, not ready, that names its problem", left)
			}
			w.net.set("Attach", nil)
			w.mustRun("web") // the name is free
			w.net.set(undo, nil)
			w.keeper.set(undo, nil)
			w.restart() // the next start tries again
			if n := len(w.m.Pods()); n != 1 {
				t.Fatalf("%d pods; want the remainder gone and the second one there", n)
			}
			if err := w.m.Remove(t.Context(), w.m.Pods()[0].ID); err != nil {
				t.Fatal(err)
			}
			w.checkEmpty()
		})
	}
}

// Asking again for a container gets the one that is there, until it has been started.
func TestCreateTwice(t *testing.T) {
	w := newWorld(t)
	p := w.mustRun("web")
	cfg := ContainerConfig{Name: "main", Image: "busybox"}
	var ids [2]string
	for i := range ids {
		var err error
		if ids[i], err = w.m.CreateContainer(t.Context(), p, cfg); err != nil || ids[i] != ids[0] {
			t.Fatalf("create %d: %s, %v; want %s", i, ids[i], err, ids[0])
		}
	}
	if err := w.m.StartContainer(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	if id, err := w.m.CreateContainer(t.Context(), p, cfg); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), ids[0]) {
		t.Errorf("create after the start: %q, %v; want ErrExists and the id", id, err)
	}
}

func TestRunJoins(t *testing.T) {
	w := newWorld(t)
	release := w.net.block("Attach")
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			id, err := w.m.Run(t.Context(), podConfig("web"))
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for len(w.m.Pods()) == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := w.m.Run(cancelled, podConfig("web")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; want the caller's own cancellation", err)
	}
	release()
	wg.Wait()
	if slices.Sort(ids); ids[0] == "" || ids[0] != ids[len(ids)-1] {
		t.Fatalf("ids %v; want one", ids)
	}
	if err := w.m.Stop(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	_, err := w.m.Run(t.Context(), podConfig("web"))
	if !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), ids[0]) {
		t.Fatalf("error %v; want ErrExists that names %s", err, ids[0])
	}
}

func TestCancelledRunLeavesNothing(t *testing.T) {
	w := newWorld(t)
	release := w.net.block("Attach")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := w.m.Run(ctx, podConfig("web")); done <- err }()
	for len(w.m.Pods()) == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	release()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v; want context.Canceled", err)
	}
	w.checkEmpty()
}

func TestCreateFails(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		fault func(*world)
		cfg   ContainerConfig
		want  error
		text  string
	}{
		"no image":         {cfg: ContainerConfig{Name: "c", Image: "nope"}, want: ErrNotFound, text: "nope"},
		"no user":          {cfg: ContainerConfig{Name: "c", Image: "busybox", User: "nobody-there"}, want: ErrInvalid, text: "nobody-there"},
		"root":             {cfg: ContainerConfig{Name: "c", Image: "busybox", RunAsNonRoot: true}, want: ErrInvalid, text: "runAsNonRoot"},
		"privileged":       {cfg: ContainerConfig{Name: "c", Image: "busybox", Security: runtime.Security{Privileged: true}}, want: ErrInvalid, text: "privileged"},
		"name":             {cfg: ContainerConfig{Name: "../c", Image: "busybox"}, want: ErrInvalid, text: `"../c"`},
		"log path":         {cfg: ContainerConfig{Name: "c", Image: "busybox", LogPath: "../../x"}, want: ErrInvalid, text: "../../x"},
		"environment":      {cfg: ContainerConfig{Name: "c", Image: "busybox", Env: []EnvVar{{Name: "A=B"}}}, want: ErrInvalid, text: "A=B"},
		"mount":            {cfg: ContainerConfig{Name: "c", Image: "busybox", Mounts: []runtime.Mount{{Destination: "x"}}}, want: ErrInvalid, text: `"x"`},
		"target":           {cfg: ContainerConfig{Name: "c", Image: "busybox", TargetContainer: "abc"}, want: ErrInvalid, text: "abc"},
		"mount fails":      {cfg: ContainerConfig{Name: "c", Image: "busybox"}, fault: func(w *world) { w.images.set("Mount", boom) }, want: boom},
		"keeper fails":     {cfg: ContainerConfig{Name: "c", Image: "busybox"}, fault: func(w *world) { w.keeper.set("CreateContainer", boom) }, want: boom},
		"keeper gone":      {cfg: ContainerConfig{Name: "c", Image: "busybox"}, fault: func(w *world) { w.keeper.set("CreateContainer", runtime.ErrKeeperGone) }, want: ErrUnavailable},
		"supplemental gid": {cfg: ContainerConfig{Name: "c", Image: "busybox", AdditionalGIDs: []int64{-1}}, want: ErrInvalid, text: "-1"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			id := w.mustRun("web")
			if c.fault != nil {
				c.fault(w)
			}
			_, err := w.m.CreateContainer(t.Context(), id, c.cfg)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("error %v; want %v with %q", err, c.want, c.text)
			}
			if n := len(w.m.Containers()) + len(w.images.mounts) + len(w.keeper.ctrs); n != 0 {
				t.Errorf("%d things of the container are left", n)
			}
			if err := w.m.Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			w.checkEmpty()
		})
	}
}

func TestStartFails(t *testing.T) {
	w := newWorld(t)
	w.keeper.noCommand = true
	id := w.mustRun("web")
	c, err := w.m.CreateContainer(t.Context(), id, ContainerConfig{Name: "main", Image: "busybox", Command: []string{"/nope"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.m.StartContainer(t.Context(), c); err == nil || !strings.Contains(err.Error(), "/nope") {
		t.Fatalf("error %v; want one that names the command", err)
	}
	v, _ := w.m.Container(c)
	if v.Status != runtime.Exited || v.Exit.Code != 128 || v.Exit.StartError == "" {
		t.Fatalf("container %+v; want exited with 128 and the reason", v)
	}
	if err := w.m.StartContainer(t.Context(), c); !errors.Is(err, ErrState) {
		t.Fatalf("error %v; want ErrState: it has exited", err)
	}
}

func TestStates(t *testing.T) {
	w := newWorld(t)
	id := w.mustRun("web")
	c := w.mustStart(id, "main")
	if err := w.m.StartContainer(t.Context(), c); !errors.Is(err, ErrState) {
		t.Errorf("second start: %v; want ErrState", err)
	}
	if err := w.m.Stop(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := w.m.CreateContainer(t.Context(), id, ContainerConfig{Name: "late", Image: "busybox"}); !errors.Is(err, ErrState) {
		t.Errorf("create in a stopped pod: %v; want ErrState", err)
	}
	if _, _, _, err := w.m.ExecSync(t.Context(), c, []string{"true"}, 0); !errors.Is(err, ErrState) {
		t.Errorf("exec in an exited container: %v; want ErrState", err)
	}
	for _, err := range []error{
		w.m.Stop(t.Context(), "unknown"), w.m.Remove(t.Context(), "unknown"),
		w.m.StopContainer(t.Context(), "unknown", 0), w.m.RemoveContainer(t.Context(), "unknown"),
	} {
		if err != nil {
			t.Errorf("%v; want nil for the unknown", err)
		}
	}
	if _, err := w.m.Container("unknown"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v; want ErrNotFound", err)
	}
}

func TestExecSync(t *testing.T) {
	w := newWorld(t)
	c := w.mustStart(w.mustRun("web"), "main")
	out, errOut, code, err := w.m.ExecSync(t.Context(), c, []string{"x"}, time.Minute)
	if string(out) != "out" || string(errOut) != "err" || code != 3 || err != nil {
		t.Errorf("%q %q %d %v; want out err 3", out, errOut, code, err)
	}
	if _, _, _, err = w.m.ExecSync(t.Context(), c, []string{"hang"}, time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v; want DeadlineExceeded", err)
	}
	if out, _, _, err = w.m.ExecSync(t.Context(), c, []string{"flood"}, 0); len(out) != execOutputLimit || err != nil {
		t.Errorf("%d bytes, %v; want the first %d", len(out), err, execOutputLimit)
	}
}

func TestUpdateMerges(t *testing.T) {
	w := newWorld(t)
	c := w.mustStart(w.mustRun("web"), "main")
	for _, r := range []runtime.Resources{{CPUShares: 512, MemoryLimit: 1 << 20}, {MemoryLimit: 2 << 20}} {
		if err := w.m.Update(t.Context(), c, r); err != nil {
			t.Fatal(err)
		}
	}
	got := w.keeper.resources[c]
	if got.CPUShares != 512 || got.MemoryLimit != 2<<20 {
		t.Errorf("%+v; want the second on top of the first", got)
	}
	w.restart()
	if v, _ := w.m.Container(c); v.Config.Resources.MemoryLimit != 2<<20 {
		t.Errorf("resources %+v; want them recorded", v.Config.Resources)
	}
}

func TestUpdateKeepsSwap(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		had, asked, want runtime.Resources
		invalid          bool
	}{
		{had: runtime.Resources{MemoryLimit: 2 * mb, MemorySwap: 2 * mb}, asked: runtime.Resources{MemoryLimit: 5 * mb}, want: runtime.Resources{MemoryLimit: 5 * mb, MemorySwap: 5 * mb}},
		{had: runtime.Resources{MemoryLimit: 5 * mb, MemorySwap: 6 * mb}, asked: runtime.Resources{MemoryLimit: 2 * mb}, want: runtime.Resources{MemoryLimit: 2 * mb, MemorySwap: 3 * mb}},
		{had: runtime.Resources{MemoryLimit: 5 * mb}, asked: runtime.Resources{MemoryLimit: 2 * mb}, want: runtime.Resources{MemoryLimit: 2 * mb}},
		{had: runtime.Resources{MemoryLimit: 5 * mb, MemorySwap: -1}, asked: runtime.Resources{MemoryLimit: 2 * mb}, want: runtime.Resources{MemoryLimit: 2 * mb, MemorySwap: -1}},
		{had: runtime.Resources{MemoryLimit: 5 * mb}, asked: runtime.Resources{MemorySwap: 2 * mb}, invalid: true},
	} {
		got, err := mergeResources(c.had, c.asked)
		if c.invalid != errors.Is(err, ErrInvalid) || !c.invalid && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v on top of %+v is %+v, %v", c.asked, c.had, got, err)
		}
	}
}

// A pod's own group is limited; one that was given is its maker's.
func TestUpdatePod(t *testing.T) {
	w := newWorld(t)
	own := w.mustRun("own")
	cfg := podConfig("given")
	cfg.CgroupParent = "/theirs"
	given, err := w.m.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{own, given} {
		if err := w.m.UpdatePod(t.Context(), id, runtime.Resources{CPUShares: 7}, runtime.Resources{MemoryLimit: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	if r, ok := w.keeper.resources["/pausa-test-none/pod"+own]; !ok || r.MemoryLimit != 1<<20 || r.CPUShares != 0 {
		t.Errorf("the pod's own group got %+v of %v", r, w.keeper.resources)
	}
	if len(w.keeper.resources) != 1 {
		t.Errorf("also another group was limited: %v", w.keeper.resources)
	}
	w.restart()
	if p, _ := w.m.Pod(given); p.Config.Resources.MemoryLimit != 1<<20 || p.Config.Overhead.CPUShares != 7 {
		t.Errorf("after a restart the pod has %+v and %+v", p.Config.Resources, p.Config.Overhead)
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	events, cancel := w.m.Subscribe()
	id := w.mustRun("web")
	c := w.mustStart(id, "main")
	w.keeper.end(c, runtime.Exit{Code: 7})
	var got []string
	for range 5 {
		e := <-events
		got = append(got, string(e.Type)+map[bool]string{true: " pod", false: " container"}[e.ContainerID == ""])
	}
	want := []string{"created pod", "started pod", "created container", "started container", "stopped container"}
	if !slices.Equal(got, want) {
		t.Errorf("events %q; want %q", got, want)
	}
	if v, _ := w.m.Container(c); v.Exit == nil || v.Exit.Code != 7 {
		t.Errorf("container %+v; want exit 7", v)
	}
	cancel()
	if _, open := <-events; open {
		t.Error("an event after cancel")
	}
}

func TestSlowSubscriberIsCutOff(t *testing.T) {
	var b broadcaster
	events, _ := b.subscribe()
	for range eventBuffer + 1 {
		b.send(Event{})
	}
	n := 0
	for range events {
		n++
	}
	if n != eventBuffer {
		t.Errorf("%d events before the end; want %d", n, eventBuffer)
	}
}

func TestListsDoNotWait(t *testing.T) {
	w := newWorld(t)
	id := w.mustRun("slow")
	release := w.net.block("Detach")
	done := make(chan error)
	go func() { done <- w.m.Remove(t.Context(), id) }()
	for {
		if p, _ := w.m.Pod(id); len(w.m.Pods()) == 1 && p.ID == id && w.detaching() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if len(w.m.Pods()) != 1 || w.m.Containers() == nil {
		t.Error("a list is not whole while a removal hangs")
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func (w *world) detaching() bool {
	w.net.faults.mu.Lock()
	defer w.net.faults.mu.Unlock()
	return slices.Contains(w.net.calls, "Detach")
}
