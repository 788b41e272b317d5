package cri

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// fakePods behaves as the pods do, in memory. The commands that its containers
// know: echo WORDS, cat, exit N, env-less size (prints terminal sizes), block
// (until its client is gone), panic.
type fakePods struct {
	mu                  sync.Mutex
	next                int
	pods, gonePods      map[string]*pod.Pod
	containers          map[string]*pod.Container
	exited              map[string]chan struct{}
	subs                map[chan pod.Event]bool
	updates, podUpdates []runtime.Resources
	cidr                string
	gone                chan string // container ids of blocked commands whose client has gone
	network             error
	measured            int                      // calls of WritableUsage
	ownGroups           map[string]runtime.Stats // of pods that have a cgroup to themselves
	forward             func(context.Context, io.ReadWriteCloser) error
}

func newFakePods() *fakePods {
	return &fakePods{
		pods: map[string]*pod.Pod{}, gonePods: map[string]*pod.Pod{}, containers: map[string]*pod.Container{}, exited: map[string]chan struct{}{},
		subs: map[chan pod.Event]bool{}, gone: make(chan string, 10),
	}
}

func (f *fakePods) id() string {
	f.next++
	return fmt.Sprintf("%04x%060x", f.next, 0)
}

func (f *fakePods) tell(t pod.EventType, podID, id string) {
	p := f.gonePods[podID]
	if here := f.pods[podID]; here != nil {
		v := *here
		p = &v
	}
	for ch := range f.subs {
		select {
		case ch <- pod.Event{Time: time.Now(), Type: t, PodID: podID, ContainerID: id, Pod: p}:
		default:
			delete(f.subs, ch)
			close(ch)
		}
	}
}

func (f *fakePods) Run(_ context.Context, c pod.Config) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods {
		if p.Config.Name == c.Name && p.Config.Namespace == c.Namespace && p.Config.UID == c.UID && p.Config.Attempt == c.Attempt {
			return p.ID, nil
		}
	}
	if c.Name == "panic" {
		panic("as asked")
	}
	p := &pod.Pod{ID: f.id(), Config: c, CreatedAt: time.Now(), Ready: true, Pid: os.Getpid(), IPs: []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd00::2")}}
	f.pods[p.ID] = p
	f.tell(pod.EventStarted, p.ID, "")
	return p.ID, nil
}

func (f *fakePods) Stop(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pods[id]
	if p == nil {
		return nil
	}
	for _, c := range f.containers {
		if c.PodID == id {
			f.exitLocked(c, 137)
		}
	}
	if p.Ready {
		p.Ready = false
		f.tell(pod.EventStopped, id, "")
	}
	return nil
}

func (f *fakePods) Remove(ctx context.Context, id string) error {
	_ = f.Stop(ctx, id)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.PodID == id {
			delete(f.containers, c.ID)
			f.tell(pod.EventDeleted, id, c.ID)
		}
	}
	if f.pods[id] != nil {
		f.gonePods[id] = f.pods[id]
		delete(f.pods, id)
		f.tell(pod.EventDeleted, id, "")
	}
	return nil
}

func (f *fakePods) Pod(id string) (pod.Pod, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods {
		if strings.HasPrefix(p.ID, id) {
			return *p, nil
		}
	}
	return pod.Pod{}, fmt.Errorf("pod %q: %w", id, pod.ErrNotFound)
}

func (f *fakePods) Snapshot() (out pod.Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(f.pods)) {
		p := *f.pods[id]
		out.Pods = append(out.Pods, &p)
	}
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		c := *f.containers[id]
		c.Declared = f.pods[c.PodID].Config.Declared
		out.Containers = append(out.Containers, &c)
	}
	return out
}

func (f *fakePods) CreateContainer(_ context.Context, podID string, c pod.ContainerConfig) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.pods[podID]; p == nil || !p.Ready {
		return "", fmt.Errorf("pod %s: %w", podID, pod.ErrState)
	}
	ct := &pod.Container{ID: f.id(), PodID: podID, Config: c, ImageID: "sha256:abc", Status: runtime.Created, CreatedAt: time.Now(), UID: 1000, GID: 1000, Groups: []uint32{5}, StopSignal: c.StopSignal}
	f.containers[ct.ID] = ct
	f.exited[ct.ID] = make(chan struct{})
	f.tell(pod.EventCreated, podID, ct.ID)
	return ct.ID, nil
}

func (f *fakePods) StartContainer(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[id]
	switch {
	case c == nil:
		return fmt.Errorf("container %s: %w", id, pod.ErrNotFound)
	case c.Status != runtime.Created:
		return fmt.Errorf("container %s is %s: %w", id, c.Status, pod.ErrState)
	}
	c.Status, c.StartedAt, c.Pid = runtime.Running, time.Now(), os.Getpid()
	f.tell(pod.EventStarted, c.PodID, id)
	return nil
}

func (f *fakePods) exitLocked(c *pod.Container, code int) {
	if c.Status == runtime.Exited {
		return
	}
	c.Status, c.Pid = runtime.Exited, 0
	c.Exit = &runtime.Exit{ID: c.ID, Code: code, FinishedAt: time.Now()}
	close(f.exited[c.ID])
	f.tell(pod.EventStopped, c.PodID, c.ID)
}

func (f *fakePods) exit(id string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.exitLocked(f.containers[id], code)
}

func (f *fakePods) StopContainer(_ context.Context, id string, _ time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		f.exitLocked(c, 143)
	}
	return nil
}

func (f *fakePods) RemoveContainer(ctx context.Context, id string) error {
	_ = f.StopContainer(ctx, id, 0)
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		delete(f.containers, id)
		f.tell(pod.EventDeleted, c.PodID, id)
	}
	return nil
}

func (f *fakePods) Container(id string) (pod.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if strings.HasPrefix(c.ID, id) {
			return *c, nil
		}
	}
	return pod.Container{}, fmt.Errorf("container %q: %w", id, pod.ErrNotFound)
}

func (f *fakePods) ContainersOf(podID string) []*pod.Container {
	return slices.DeleteFunc(f.Snapshot().Containers, func(c *pod.Container) bool { return c.PodID != podID })
}

func (f *fakePods) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	f.mu.Lock()
	done := f.exited[id]
	f.mu.Unlock()
	if done == nil {
		return runtime.Exit{}, pod.ErrNotFound
	}
	select {
	case <-done:
		c, err := f.Container(id)
		return *c.Exit, err
	case <-ctx.Done():
		return runtime.Exit{}, ctx.Err()
	}
}

func (f *fakePods) Exec(ctx context.Context, id string, spec runtime.ExecSpec, io3 runtime.Stdio) (int, error) {
	c, err := f.Container(id)
	if err != nil {
		return 0, err
	}
	if c.Status != runtime.Running {
		return 0, pod.ErrState
	}
	switch spec.Args[0] {
	case "echo":
		_, err = fmt.Fprintln(io3.Stdout, strings.Join(spec.Args[1:], " "))
		if io3.Stderr != nil {
			_, _ = fmt.Fprintln(io3.Stderr, "and stderr")
		}
	case "cat":
		if io3.Stdin == nil {
			_, err = fmt.Fprintln(io3.Stdout, "no stdin")
			break
		}
		_, err = io.Copy(io3.Stdout, io3.Stdin)
	case "size":
		for s := range io3.Resize {
			_, _ = fmt.Fprintf(io3.Stdout, "%dx%d tty=%t\n", s.Width, s.Height, spec.Terminal)
		}
	case "exit":
		code, _ := strconv.Atoi(spec.Args[1])
		return code, nil
	case "block":
		_, _ = fmt.Fprintln(io3.Stdout, "blocking")
		<-ctx.Done()
		f.gone <- id
		return 137, ctx.Err()
	default:
		return 127, nil
	}
	return 0, err
}

func (f *fakePods) ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) ([]byte, []byte, int, error) {
	if args[0] == "flood" {
		return make([]byte, maxMessage), make([]byte, maxMessage), 0, nil
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var out, errOut strings.Builder
	code, err := f.Exec(ctx, id, runtime.ExecSpec{Args: args}, runtime.Stdio{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errOut})
	return []byte(out.String()), []byte(errOut.String()), code, err
}

func (f *fakePods) Attach(ctx context.Context, id string, s runtime.Stdio) error {
	_, err := f.Exec(ctx, id, runtime.ExecSpec{Args: []string{"cat"}}, s)
	return err
}

func (f *fakePods) PortForward(ctx context.Context, _ string, _ uint16, s io.ReadWriteCloser) error {
	return f.forward(ctx, s)
}

func (f *fakePods) Stats(_ context.Context, ids ...string) ([]runtime.Stats, error) {
	var out []runtime.Stats
	for _, id := range ids {
		out = append(out, runtime.Stats{
			ID: id, Time: time.Now(), CPUNanos: 3e9, MemoryUsage: 900, MemoryWorkingSet: 700, MemoryRSS: 500, MemoryLimit: 1000, PageFaults: 7, MajorPageFaults: 1, Pids: 2,
		})
	}
	return out, nil
}

func (f *fakePods) Checkpoint(_ context.Context, id, location string) error {
	if _, err := f.Container(id); err != nil {
		return err
	}
	return os.WriteFile(location, []byte(id), 0o600)
}

func (f *fakePods) CheckpointPod(_ context.Context, podID string, ids []string, dir string) error {
	if _, err := f.Pod(podID); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "pod.json"), []byte(strings.Join(ids, " ")), 0o600)
}

func (f *fakePods) RestorePod(ctx context.Context, cfg pod.Config, ctrs []pod.ContainerConfig, _ string) (string, []pod.Restored, error) {
	id, err := f.Run(ctx, cfg)
	var out []pod.Restored
	for _, c := range ctrs {
		if err == nil {
			var ctr string
			ctr, err = f.CreateContainer(ctx, id, c)
			out = append(out, pod.Restored{Name: c.Name, ID: ctr})
		}
	}
	return id, out, err
}

func (f *fakePods) DetailedStats(ctx context.Context, ids ...string) ([]runtime.Stats, error) {
	all, err := f.Stats(ctx, ids...)
	for i := range all {
		all[i].Details = &runtime.Details{CPUUserNanos: 2e9, OOMKills: 1, Threads: 7, IO: []runtime.DeviceIO{{Device: "999:1", ReadBytes: 4096}}}
	}
	return all, err
}

// PodStats knows those pods whose readings the test gave.
func (f *fakePods) PodStats(_ context.Context, ids ...string) (map[string]runtime.Stats, error) {
	out := map[string]runtime.Stats{}
	for _, id := range ids {
		if st, ok := f.ownGroups[id]; ok {
			out[id] = st
		}
	}
	return out, nil
}

func (f *fakePods) WritableUsage(context.Context, string) (images.Usage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.measured++
	return images.Usage{Path: "/", Bytes: 4096, Inodes: 3}, nil
}

func (f *fakePods) Update(_ context.Context, id string, r runtime.Resources) error {
	if _, err := f.Container(id); err != nil {
		return err
	}
	f.updates = append(f.updates, r)
	return nil
}

func (f *fakePods) UpdatePod(_ context.Context, id string, _, limits runtime.Resources) error {
	if _, err := f.Pod(id); err != nil {
		return err
	}
	f.podUpdates = append(f.podUpdates, limits)
	return nil
}

func (f *fakePods) ReopenLog(_ context.Context, id string) error {
	_, err := f.Container(id)
	return err
}

func (f *fakePods) Subscribe() (<-chan pod.Event, func()) {
	ch := make(chan pod.Event, 4096)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[ch] = true
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.subs[ch] {
			delete(f.subs, ch)
			close(ch)
		}
	}
}

func (f *fakePods) NetworkStatus(context.Context) error { return f.network }
func (f *fakePods) RuntimeStatus(context.Context) error { return nil }
func (f *fakePods) SetPodCIDR(c string) error {
	if _, err := netip.ParsePrefix(c); err != nil {
		return fmt.Errorf("%w: %w", pod.ErrInvalid, err)
	}
	f.cidr = c
	return nil
}

// fakeImages has images by each of their names.
type fakeImages struct {
	mu  sync.Mutex
	all []images.Image
}

func (f *fakeImages) List(context.Context) ([]images.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.all), nil
}

func (f *fakeImages) find(ref string) int {
	return slices.IndexFunc(f.all, func(i images.Image) bool { return i.ID == ref || slices.Contains(i.RepoTags, ref) })
}

func (f *fakeImages) Get(_ context.Context, ref string) (images.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.find(ref); i >= 0 {
		return f.all[i], nil
	}
	return images.Image{}, fmt.Errorf("image %s: %w", ref, images.ErrNotFound)
}

func (f *fakeImages) Remove(_ context.Context, ref string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.find(ref)
	switch {
	case i < 0:
		return images.ErrNotFound
	case f.all[i].ID != ref:
		f.all[i].RepoTags = slices.DeleteFunc(f.all[i].RepoTags, func(t string) bool { return t == ref })
	default:
		f.all = slices.Delete(f.all, i, i+1)
	}
	return nil
}

func (f *fakeImages) Import(_ context.Context, r io.Reader, o images.ImportOptions) ([]images.Image, error) {
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	img := images.Image{ID: fmt.Sprintf("sha256:%d", len(raw)), RepoTags: []string{o.Name}, Size: int64(len(raw))}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, img)
	return []images.Image{img}, nil
}

func (f *fakeImages) FSUsage(context.Context) (images.Usage, error) {
	return images.Usage{Path: "/", Bytes: 10, Inodes: 2}, nil
}

// fakeObjects keeps objects by their JSON and knows one container.
type fakeObjects struct {
	applied   []Object
	container string
	log       string
}

func (f *fakeObjects) Apply(_ context.Context, o []Object, dryRun bool) ([]ApplyResult, error) {
	if strings.Contains(string(o[0].JSON), "bad") {
		return nil, fmt.Errorf("%s: %w", o[0].Source, pod.ErrInvalid)
	}
	if !dryRun {
		f.applied = append(f.applied, o...)
	}
	return []ApplyResult{{Ref: Ref{"Pod", "default", "a"}, Outcome: "created"}}, nil
}

func (f *fakeObjects) Get(_ context.Context, s Selection) ([][]byte, error) {
	if s.Name == "missing" {
		return nil, fmt.Errorf("%s %s: %w", s.Kind, s.Name, pod.ErrNotFound)
	}
	var out [][]byte
	for _, o := range f.applied {
		out = append(out, o.JSON)
	}
	return out, nil
}

func (f *fakeObjects) Delete(_ context.Context, s Selection, o DeleteOptions) ([]Ref, error) {
	if o.Grace == nil || *o.Grace != 3*time.Second || !o.Wait {
		return nil, fmt.Errorf("options %+v", o)
	}
	f.applied = nil
	return []Ref{{s.Kind, s.Namespace, s.Name}}, nil
}

func (f *fakeObjects) FindContainer(_, podName, _ string, previous bool) (string, string, error) {
	if podName != "web" || previous {
		return "", "", fmt.Errorf("pod %s: %w", podName, pod.ErrNotFound)
	}
	return f.container, f.log, nil
}
