package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/internal/boot"
	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/runtime"
)

// Runtime is what the Manager needs of the keeper; *runtime.Client has it.
type Runtime interface {
	StartPod(context.Context, runtime.PodSpec) (runtime.PodState, error)
	RemovePod(ctx context.Context, id string) error
	RemoveSlice(ctx context.Context, name string) error
	Pods(context.Context) ([]runtime.PodState, error)
	CreateContainer(context.Context, runtime.ContainerSpec) error
	StartContainer(ctx context.Context, id string) (runtime.ContainerState, error)
	Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error
	Wait(ctx context.Context, id string) (runtime.Exit, error)
	RemoveContainer(ctx context.Context, id string) error
	Containers(context.Context) ([]runtime.ContainerState, error)
	Exec(context.Context, runtime.ExecSpec, runtime.Stdio) (int, error)
	Attach(ctx context.Context, id string, stdio runtime.Stdio) error
	Resize(ctx context.Context, id, execID string, width, height uint16) error
	Checkpoint(ctx context.Context, targets []runtime.CheckpointTarget, frozen func() error) error
	Stats(ctx context.Context, ids ...string) ([]runtime.Stats, error)
	DetailedStats(ctx context.Context, ids ...string) ([]runtime.Stats, error)
	GroupStats(ctx context.Context, groups ...string) ([]runtime.Stats, error)
	Update(ctx context.Context, id string, r runtime.Resources) error
	LimitGroup(ctx context.Context, group string, r runtime.Resources) error
	ReopenLog(ctx context.Context, id string) error
	Exits(context.Context) (<-chan runtime.Exit, error)
}

// Network is what the Manager needs of the network; *network.Manager has it.
type Network interface {
	Pin(id string, pid int) (path string, err error)
	Attach(context.Context, network.Pod) (network.Result, error)
	Detach(ctx context.Context, id string) error
	GC(ctx context.Context, keep map[string]bool) error
	Status(context.Context) error
	SetPodCIDRs([]netip.Prefix) error
}

// Images is what the Manager needs of the image store; *images.Store has it.
type Images interface {
	Get(ctx context.Context, ref string) (images.Image, error)
	Mount(ctx context.Context, containerID, ref string, o images.MountOptions) (rootfs string, err error)
	Unmount(ctx context.Context, containerID string) error
	Mounted() ([]string, error)
	WritableUsage(ctx context.Context, containerID string) (images.Usage, error)
	WriteDiff(ctx context.Context, containerID string, w io.Writer) error
	ApplyDiff(ctx context.Context, containerID string, r io.Reader) error
	RestoreFolder(containerID string) (string, error)
}

// Options is what a Manager is made of.
type Options struct {
	RunDir       string // records live in RunDir/pods, best on tmpfs: they are worthless after a reboot
	CgroupParent string // absolute from the cgroup root; pods without a parent of their own get a group below it
	CgroupDriver string // Cgroupfs (also "") or Systemd
	Runtime      Runtime
	// Relaunch, if set, is called when the keeper has gone; it returns a connection to a new one.
	Relaunch func(context.Context) (Runtime, error)
	Network  Network
	Images   Images
	// AppArmor turns what a container asks for into the name of a loaded profile, "" for none; nil: there are none.
	AppArmor func(want string) (profile string, err error)
	// Handlers make the containers; nil: the keeper's own alone.
	Handlers *runtime.Handlers
	// CDIDirs hold the specs of CDI devices; those of a later folder count first.
	CDIDirs []string
	Log     *slog.Logger
}

// Manager makes and ends pods and their containers. Lists and statuses are
// read from what it holds in memory and never wait for a mutation.
type Manager struct {
	opts   Options
	log    *slog.Logger
	dir    string // RunDir/pods
	bootID string

	mu    sync.RWMutex // guards all below and the fields of sandbox and container that say so; held for memory work only
	rt    Runtime
	rtErr error // why the keeper cannot be reached, nil when it can
	pods  map[string]*sandbox
	ctrs  map[string]*container
	names map[string]string // nameKey → id of the pod or container that holds it

	shown  atomic.Pointer[Snapshot] // written with mu held
	events broadcaster
	stop   context.CancelFunc
	ctx    context.Context // ends with Close
	bg     sync.WaitGroup
}

// sandbox is a pod in memory.
type sandbox struct {
	// op orders what is done to a pod: Run, Stop and Remove hold it alone,
	// work on single containers shares it.
	op sync.RWMutex
	// made is closed when Run is over; runErr is set before.
	made   chan struct{}
	runErr error

	// Guarded by Manager.mu.
	rec  podRecord
	pid  int // of pause; 0 when it does not run
	ctrs map[string]*container
	// shown is what the last snapshot with the pod has of it.
	shown *Pod
}

// container is a container in memory.
type container struct {
	op      sync.Mutex // one of create, start, remove at a time
	made    chan struct{}
	makeErr error
	pod     *sandbox
	from    *os.Root // a checkpoint of it, while it is made; nil: its command is run

	// Guarded by Manager.mu.
	rec containerRecord
	pid int
}

// New makes a Manager and its folder. Call Recover before anything else.
func New(o Options) (*Manager, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Handlers == nil {
		var err error
		if o.Handlers, err = runtime.NewHandlers("", nil); err != nil {
			return nil, err
		}
	}
	bootID, err := boot.ID()
	if err != nil {
		return nil, err
	}
	m := &Manager{
		opts: o, log: o.Log, dir: filepath.Join(o.RunDir, "pods"), bootID: bootID,
		rt: o.Runtime, pods: map[string]*sandbox{}, ctrs: map[string]*container{}, names: map[string]string{},
	}
	m.shown.Store(&Snapshot{})
	m.ctx, m.stop = context.WithCancel(context.Background())
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the pods' folder: %w", err)
	}
	return m, nil
}

// Close ends the Manager's background work and waits for it. Pods go on.
func (m *Manager) Close() {
	m.stop()
	m.bg.Wait()
	m.events.close()
}

// runtime returns the connection to the keeper, or why there is none.
func (m *Manager) runtime() (Runtime, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.rtErr != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, m.rtErr)
	}
	return m.rt, nil
}

// Pod returns the pod of this id, or of a prefix that only one has. ErrNotFound.
func (m *Manager) Pod(id string) (Pod, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	p, err := lookup(m.pods, "pod", id)
	if err != nil {
		return Pod{}, err
	}
	return *p.view(), nil
}

// Container returns the container of this id, or of a prefix that only one has. ErrNotFound.
func (m *Manager) Container(id string) (Container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c, err := lookup(m.ctrs, "container", id)
	if err != nil {
		return Container{}, err
	}
	return *c.view(), nil
}

// lookup finds id in all, whole or as a prefix of exactly one key.
func lookup[T any](all map[string]*T, kind, id string) (*T, error) {
	if v, ok := all[id]; ok {
		return v, nil
	}
	var found []string
	for k := range all {
		if id != "" && strings.HasPrefix(k, id) {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%s %q: %w", kind, id, ErrNotFound)
	case 1:
		return all[found[0]], nil
	}
	return nil, fmt.Errorf("%s %q: %w: %d ids begin so; give more of it", kind, id, ErrInvalid, len(found))
}

func (m *Manager) sandbox(id string) (*sandbox, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return lookup(m.pods, "pod", id)
}

func (m *Manager) container(id string) (*container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return lookup(m.ctrs, "container", id)
}

// ready is worked out from facts: made, not stopped, and pause runs; Manager.mu is held.
func (p *sandbox) ready() bool { return p.rec.Made && p.rec.StoppedAt.IsZero() && p.pid != 0 }

// RuntimeStatus says why containers cannot be started now; nil when they can.
func (m *Manager) RuntimeStatus(context.Context) error {
	_, err := m.runtime()
	return err
}

// NetworkStatus says why pods cannot be attached to the network now; nil when they can.
func (m *Manager) NetworkStatus(ctx context.Context) error { return m.opts.Network.Status(ctx) }

// SetPodCIDR gives the built-in network new ranges, "CIDR" or "CIDR,CIDR", for the pods to come.
func (m *Manager) SetPodCIDR(cidrs string) error {
	var out []netip.Prefix
	for s := range strings.SplitSeq(cidrs, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return fmt.Errorf("%w: pod CIDR %q: %w", ErrInvalid, s, err)
		}
		out = append(out, p)
	}
	return m.opts.Network.SetPodCIDRs(out)
}

// keeperErr turns the keeper's errors into ours.
func keeperErr(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, runtime.ErrKeeperGone):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, runtime.ErrNotFound):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, runtime.ErrState):
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return err
}

// settled is the context of a call that makes the keeper change something. The
// keeper does it whether or not the caller still waits: what comes after must know
// how it ended, or an undoing could come before the deed.
func settled(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTime)
}

// undoTime bounds the undoing of what failed, which must outlive the caller's context.
const undoTime = time.Minute
