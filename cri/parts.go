package cri

import (
	"context"
	"io"
	"time"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// Pods is what the socket needs of the pods; *pod.Manager has it. Lists are
// snapshots that never wait for a mutation.
type Pods interface {
	Run(ctx context.Context, cfg pod.Config) (id string, err error)
	Stop(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	Pod(id string) (pod.Pod, error)
	Snapshot() pod.Snapshot

	CreateContainer(ctx context.Context, podID string, cfg pod.ContainerConfig) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	Container(id string) (pod.Container, error)
	ContainersOf(podID string) []*pod.Container
	Wait(ctx context.Context, id string) (runtime.Exit, error)

	Exec(ctx context.Context, id string, spec runtime.ExecSpec, stdio runtime.Stdio) (code int, err error)
	ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (stdout, stderr []byte, code int, err error)
	Attach(ctx context.Context, id string, stdio runtime.Stdio) error
	PortForward(ctx context.Context, podID string, port uint16, stream io.ReadWriteCloser) error

	Checkpoint(ctx context.Context, id, location string) error
	CheckpointPod(ctx context.Context, podID string, ids []string, dir string) error
	RestorePod(ctx context.Context, cfg pod.Config, ctrs []pod.ContainerConfig, path string) (podID string, restored []pod.Restored, err error)
	Stats(ctx context.Context, ids ...string) ([]runtime.Stats, error)
	DetailedStats(ctx context.Context, ids ...string) ([]runtime.Stats, error)
	PodStats(ctx context.Context, ids ...string) (map[string]runtime.Stats, error)
	WritableUsage(ctx context.Context, id string) (images.Usage, error)
	Update(ctx context.Context, id string, r runtime.Resources) error
	UpdatePod(ctx context.Context, id string, overhead, limits runtime.Resources) error
	ReopenLog(ctx context.Context, id string) error

	Subscribe() (events <-chan pod.Event, cancel func())
	NetworkStatus(ctx context.Context) error
	RuntimeStatus(ctx context.Context) error
	SetPodCIDR(cidr string) error
}

// Images is what the socket needs of the image store; *images.Store has it.
type Images interface {
	// List returns every image once.
	List(ctx context.Context) ([]images.Image, error)
	// Get finds an image by name, digest or id; images.ErrNotFound.
	Get(ctx context.Context, ref string) (images.Image, error)
	// Remove removes an image and all its names; images.ErrNotFound, images.ErrInUse.
	Remove(ctx context.Context, ref string) error
	// Import takes an OCI or docker archive.
	Import(ctx context.Context, r io.Reader, o images.ImportOptions) ([]images.Image, error)
	// FSUsage is what the store takes on its filesystem.
	FSUsage(ctx context.Context) (images.Usage, error)
}

// PullFunc brings an image here. A nil auth leaves the choice to the store's configuration.
type PullFunc func(ctx context.Context, ref string, auth *Auth) (images.Image, error)

// Auth are the credentials of one pull. They are used for Server alone, or for
// the registry of the reference if that is "".
type Auth struct {
	Username, Password string
	IdentityToken      string
	RegistryToken      string
	Server             string
}

// Objects is what the socket needs of the declared objects. Errors wrap the
// sentinels of package pod. JSON is a whole Kubernetes object.
type Objects interface {
	// Apply checks all objects before it stores the first; one result for each, in their order.
	Apply(ctx context.Context, objects []Object, dryRun bool) ([]ApplyResult, error)
	// Get returns objects with their status, sorted by kind, namespace and name.
	Get(ctx context.Context, sel Selection) (objects [][]byte, err error)
	// Delete marks objects for deletion; with Wait it returns when they are gone.
	Delete(ctx context.Context, sel Selection, o DeleteOptions) ([]Ref, error)
	// FindContainer finds a container of a declared pod ("" is the first); previous is the run before the present one.
	// id is "" when only the log is left.
	FindContainer(namespace, pod, container string, previous bool) (id, logPath string, err error)
}

// Object is one Kubernetes object.
type Object struct {
	JSON   []byte
	Source string // "file:line", for errors
}

// ApplyResult is what became of one object.
type ApplyResult struct {
	Ref
	Outcome string // created, configured, unchanged
	Error   string
}

// Ref names one object.
type Ref struct{ Kind, Namespace, Name string }

// Selection picks objects; "" is every kind, namespace, name or label.
type Selection struct{ Kind, Namespace, Name, LabelSelector string }

// DeleteOptions say how to delete.
type DeleteOptions struct {
	All   bool // without a name or a label selector: all is really meant
	Wait  bool
	Grace *time.Duration // nil is each pod's own
}
