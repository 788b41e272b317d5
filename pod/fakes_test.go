package pod

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/runtime"
)

// TestMain runs the tests again in a mount namespace of their own: pods mount their /dev/shm.
func TestMain(m *testing.M) {
	if os.Getenv("PAUSA_TEST_NS") == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), "PAUSA_TEST_NS=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
		if os.Geteuid() != 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
			}
		}
		if err := cmd.Run(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// faults makes the call of a name fail, and remembers what was called.
type faults struct {
	mu    sync.Mutex
	fail  map[string]error
	hold  map[string]chan struct{} // the call waits until it is closed
	calls []string
}

func (f *faults) call(name string) error {
	f.mu.Lock()
	f.calls = append(f.calls, name)
	err, hold := f.fail[name], f.hold[name]
	f.mu.Unlock()
	if hold != nil {
		<-hold
	}
	return err
}

func (f *faults) set(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.fail = map[string]error{}
	}
	f.fail[name] = err
}

func (f *faults) block(name string) (release func()) {
	ch := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hold == nil {
		f.hold = map[string]chan struct{}{}
	}
	f.hold[name] = ch
	return func() {
		f.mu.Lock()
		delete(f.hold, name)
		f.mu.Unlock()
		close(ch)
	}
}

// fakeKeeper behaves as the keeper does, without processes: it outlives Managers.
type fakeKeeper struct {
	faults
	mu    sync.Mutex
	pods  map[string]runtime.PodState
	ctrs  map[string]*fakeContainer
	exits []chan runtime.Exit
	pid   int
	// ignoreTerm: containers do not end on SIGTERM.
	ignoreTerm bool
	noCommand  bool // StartContainer finds no command
	resources  map[string]runtime.Resources
	slicesGone []string
}

type fakeContainer struct {
	spec runtime.ContainerSpec
	st   runtime.ContainerState
	done chan struct{}
	sigs []syscall.Signal
}

func newFakeKeeper() *fakeKeeper {
	return &fakeKeeper{pods: map[string]runtime.PodState{}, ctrs: map[string]*fakeContainer{}, pid: 1000, resources: map[string]runtime.Resources{}}
}

func (k *fakeKeeper) StartPod(_ context.Context, s runtime.PodSpec) (runtime.PodState, error) {
	if err := k.call("StartPod"); err != nil {
		return runtime.PodState{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pid++
	st := runtime.PodState{ID: s.ID, Pid: k.pid, StartedAt: time.Now(), Spec: s}
	k.pods[s.ID] = st
	return st, nil
}

func (k *fakeKeeper) Checkpoint(_ context.Context, targets []runtime.CheckpointTarget, frozen func() error) error {
	if err := k.call("Checkpoint"); err != nil {
		return err
	}
	for _, t := range targets {
		if err := os.MkdirAll(filepath.Join(t.Dir, "checkpoint"), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(t.Dir, "checkpoint", "core-1.img"), []byte("memory"), 0o600); err != nil {
			return err
		}
	}
	return frozen()
}

func (k *fakeKeeper) RemoveSlice(_ context.Context, name string) error {
	if err := k.call("RemoveSlice"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.slicesGone = append(k.slicesGone, name)
	return nil
}

func (k *fakeKeeper) RemovePod(_ context.Context, id string) error {
	if err := k.call("RemovePod"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pods, id)
	return nil
}

func (k *fakeKeeper) Pods(context.Context) (out []runtime.PodState, _ error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.pods {
		out = append(out, p)
	}
	return out, nil
}

func (k *fakeKeeper) CreateContainer(_ context.Context, s runtime.ContainerSpec) error {
	if err := k.call("CreateContainer"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ctrs[s.ID] = &fakeContainer{spec: s, done: make(chan struct{}), st: runtime.ContainerState{ID: s.ID, PodID: s.PodID, Status: runtime.Created, CreatedAt: time.Now()}}
	return nil
}

func (k *fakeKeeper) find(id string) (*fakeContainer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, ok := k.ctrs[id]
	if !ok {
		return nil, fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
	}
	return c, nil
}

func (k *fakeKeeper) StartContainer(_ context.Context, id string) (runtime.ContainerState, error) {
	if err := k.call("StartContainer"); err != nil {
		return runtime.ContainerState{}, err
	}
	c, err := k.find(id)
	if err != nil {
		return runtime.ContainerState{}, err
	}
	if k.noCommand {
		k.end(id, runtime.Exit{ID: id, Code: 128, StartError: "no such file"})
		return runtime.ContainerState{}, fmt.Errorf("exec %q: no such file", c.spec.Spec.Process.Args[0])
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pid++
	c.st.Status, c.st.Pid, c.st.StartedAt = runtime.Running, k.pid, time.Now()
	return c.st, nil
}

// end makes a container exit.
func (k *fakeKeeper) end(id string, exit runtime.Exit) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.ctrs[id]
	if c == nil || c.st.Exit != nil {
		return
	}
	exit.ID, exit.FinishedAt = id, time.Now()
	c.st.Status, c.st.Exit, c.st.Pid = runtime.Exited, &exit, 0
	close(c.done)
	for _, ch := range k.exits {
		ch <- exit
	}
}

// die closes the exit streams, as a killed keeper does.
func (k *fakeKeeper) die() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, ch := range k.exits {
		close(ch)
	}
	k.exits = nil
}

func (k *fakeKeeper) Signal(_ context.Context, id string, sig syscall.Signal, _ bool) error {
	if err := k.call("Signal"); err != nil {
		return err
	}
	c, err := k.find(id)
	if err != nil {
		return err
	}
	k.mu.Lock()
	c.sigs = append(c.sigs, sig)
	k.mu.Unlock()
	if sig == syscall.SIGKILL || !k.ignoreTerm {
		k.end(id, runtime.Exit{Code: 128 + int(sig), Signal: int(sig)})
	}
	return nil
}

func (k *fakeKeeper) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	c, err := k.find(id)
	if err != nil {
		return runtime.Exit{}, err
	}
	select {
	case <-c.done:
		k.mu.Lock()
		defer k.mu.Unlock()
		return *c.st.Exit, nil
	case <-ctx.Done():
		return runtime.Exit{}, ctx.Err()
	}
}

func (k *fakeKeeper) RemoveContainer(_ context.Context, id string) error {
	if err := k.call("RemoveContainer"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.ctrs, id)
	return nil
}

func (k *fakeKeeper) Containers(context.Context) (out []runtime.ContainerState, _ error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.ctrs {
		out = append(out, c.st)
	}
	return out, nil
}

func (k *fakeKeeper) Exec(ctx context.Context, s runtime.ExecSpec, io runtime.Stdio) (int, error) {
	if err := k.call("Exec"); err != nil {
		return 0, err
	}
	switch s.Args[0] {
	case "hang":
		<-ctx.Done()
		return 0, ctx.Err()
	case "flood":
		chunk := make([]byte, 1<<20)
		for range 20 {
			_, _ = io.Stdout.Write(chunk)
		}
		return 0, nil
	}
	_, _ = fmt.Fprint(io.Stdout, "out")
	_, _ = fmt.Fprint(io.Stderr, "err")
	return 3, nil
}

func (k *fakeKeeper) Attach(context.Context, string, runtime.Stdio) error { return k.call("Attach") }

func (k *fakeKeeper) Resize(context.Context, string, string, uint16, uint16) error {
	return k.call("Resize")
}
func (k *fakeKeeper) ReopenLog(context.Context, string) error { return k.call("ReopenLog") }
func (k *fakeKeeper) Stats(_ context.Context, ids ...string) (out []runtime.Stats, _ error) {
	for _, id := range ids {
		out = append(out, runtime.Stats{ID: id})
	}
	return out, nil
}

func (k *fakeKeeper) GroupStats(ctx context.Context, groups ...string) ([]runtime.Stats, error) {
	return k.Stats(ctx, groups...)
}

func (k *fakeKeeper) DetailedStats(ctx context.Context, ids ...string) ([]runtime.Stats, error) {
	return k.Stats(ctx, ids...)
}

func (k *fakeKeeper) Update(_ context.Context, id string, r runtime.Resources) error {
	if err := k.call("Update"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.resources[id] = r
	return nil
}

func (k *fakeKeeper) LimitGroup(ctx context.Context, group string, r runtime.Resources) error {
	return k.Update(ctx, group, r)
}

func (k *fakeKeeper) Exits(ctx context.Context) (<-chan runtime.Exit, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ch := make(chan runtime.Exit, 64)
	k.exits = append(k.exits, ch)
	context.AfterFunc(ctx, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if i := slices.Index(k.exits, ch); i >= 0 {
			k.exits = slices.Delete(k.exits, i, i+1)
			close(ch)
		}
	})
	return ch, nil
}

// fakeNetwork holds addresses as the network does.
type fakeNetwork struct {
	faults
	mu       sync.Mutex
	attached map[string]network.Pod
	pinned   map[string]int
	next     byte
}

func newFakeNetwork() *fakeNetwork {
	return &fakeNetwork{attached: map[string]network.Pod{}, pinned: map[string]int{}}
}

func (n *fakeNetwork) Pin(id string, pid int) (string, error) {
	if err := n.call("Pin"); err != nil {
		return "", err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pinned[id] = pid
	return "/netns/" + id, nil
}

func (n *fakeNetwork) Attach(_ context.Context, p network.Pod) (network.Result, error) {
	n.mu.Lock()
	n.attached[p.ID] = p // as a plugin does: taken before it fails
	n.next++
	ip := netip.AddrFrom4([4]byte{10, 0, 0, n.next})
	n.mu.Unlock()
	if err := n.call("Attach"); err != nil {
		return network.Result{}, err
	}
	return network.Result{Network: "fake", Interface: "eth0", IPs: []netip.Addr{ip}}, nil
}

func (n *fakeNetwork) Detach(_ context.Context, id string) error {
	if err := n.call("Detach"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, id)
	delete(n.pinned, id)
	return nil
}

func (n *fakeNetwork) GC(_ context.Context, keep map[string]bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.attached {
		if !keep[id] {
			delete(n.attached, id)
			delete(n.pinned, id)
		}
	}
	return nil
}

func (n *fakeNetwork) Status(context.Context) error     { return n.call("Status") }
func (n *fakeNetwork) SetPodCIDRs([]netip.Prefix) error { return n.call("SetPodCIDRs") }

// fakeImages has one image and makes a folder for each container.
type fakeImages struct {
	faults
	mu     sync.Mutex
	root   string
	mounts map[string]bool
	config ocispec.ImageConfig
}

func newFakeImages(t *testing.T) *fakeImages {
	return &fakeImages{root: t.TempDir(), mounts: map[string]bool{}, config: ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"A=image"}}}
}

func (i *fakeImages) Get(_ context.Context, ref string) (images.Image, error) {
	if ref != "busybox" && ref != "sha256:1" {
		return images.Image{}, fmt.Errorf("%s: %w", ref, images.ErrNotFound)
	}
	return images.Image{ID: "sha256:1", Config: ocispec.Image{Config: i.config}}, nil
}

func (i *fakeImages) Mount(_ context.Context, id, _ string, _ images.MountOptions) (string, error) {
	i.mu.Lock()
	i.mounts[id] = true
	i.mu.Unlock()
	if err := i.call("Mount"); err != nil {
		return "", err
	}
	dir := filepath.Join(i.root, id)
	etc := filepath.Join(dir, "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return "", err
	}
	passwd := "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/:/bin/sh\n"
	group := "web:x:102:\nextra:x:300:web\n"
	if err := os.WriteFile(filepath.Join(etc, "passwd"), []byte(passwd), 0o644); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(etc, "group"), []byte(group), 0o644)
}

func (i *fakeImages) Unmount(_ context.Context, id string) error {
	if err := i.call("Unmount"); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.mounts, id)
	return nil
}

func (i *fakeImages) Mounted() (out []string, _ error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for id := range i.mounts {
		out = append(out, id)
	}
	return out, nil
}

func (i *fakeImages) WriteDiff(_ context.Context, id string, w io.Writer) error {
	_, err := io.WriteString(w, "diff of "+id)
	return err
}

func (i *fakeImages) ApplyDiff(context.Context, string, io.Reader) error { return nil }

func (i *fakeImages) RestoreFolder(id string) (string, error) {
	return os.MkdirTemp("", "restore-"+id[:8])
}

func (i *fakeImages) WritableUsage(context.Context, string) (images.Usage, error) {
	return images.Usage{Bytes: 7}, nil
}
