// Package pod knows what a pod and its containers are: their records, the order
// of steps that makes and ends them, and recovery after a crash. A Manager
// drives three parts that do not know each other: a runtime (the keeper), a
// network and an image store.
package pod

import (
	"errors"
	"net/netip"
	"time"

	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/runtime"
)

// Errors that the Manager's methods wrap.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("already exists")
	ErrInvalid  = errors.New("invalid")
	ErrState    = errors.New("wrong state")
	// ErrUnavailable: the keeper or the network cannot serve now; a retry may succeed.
	ErrUnavailable = errors.New("unavailable")
)

// Config asks for a pod: the sandbox that its containers join.
type Config struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
	Attempt   uint32 `json:"attempt"`

	Hostname     string            `json:"hostname,omitempty"`
	Domain       string            `json:"domain,omitempty"` // what makes the hostname a full name in /etc/hosts
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	LogDirectory string            `json:"logDirectory,omitempty"`
	Handler      string            `json:"handler,omitempty"` // runtime handler, by name or alias; "" is the default one

	DNS         *DNS                  `json:"dns,omitempty"` // nil: the host's resolv.conf
	HostAliases []HostAlias           `json:"hostAliases,omitempty"`
	Ports       []network.PortMapping `json:"ports,omitempty"`

	HostNetwork bool              `json:"hostNetwork,omitempty"`
	HostPID     bool              `json:"hostPID,omitempty"`
	HostIPC     bool              `json:"hostIPC,omitempty"`
	SharePID    bool              `json:"sharePID,omitempty"`
	UIDMaps     []runtime.IDMap   `json:"uidMaps,omitempty"`
	GIDMaps     []runtime.IDMap   `json:"gidMaps,omitempty"`
	Sysctls     map[string]string `json:"sysctls,omitempty"`
	Privileged  bool              `json:"privileged,omitempty"` // may hold privileged containers

	CgroupParent string `json:"cgroupParent,omitempty"` // "" is the manager's own parent and a group per pod
	// Resources limit all containers together, in a group that is not the caller's; in one that is,
	// the caller has set them. Overhead is what the caller counts for the pod besides its containers.
	Resources runtime.Resources `json:"resources,omitzero"`
	Overhead  runtime.Resources `json:"overhead,omitzero"`

	// Declared marks a pod that the reconcile loop made; CRI pods have it false.
	Declared bool `json:"declared,omitempty"`
}

// DNS is the content of a pod's resolv.conf.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// HostAlias is one more line of a pod's /etc/hosts.
type HostAlias struct {
	IP        string   `json:"ip"`
	Hostnames []string `json:"hostnames"`
}

// Pod is a pod's record and what the facts say of it. It is a copy: changing it changes nothing.
type Pod struct {
	ID        string    `json:"id"`
	Config    Config    `json:"config"`
	CreatedAt time.Time `json:"createdAt"`
	// Ready: pause runs and, unless it is on the host's network, it has its addresses.
	Ready     bool         `json:"ready"`
	Pid       int          `json:"pid,omitempty"` // of pause
	IPs       []netip.Addr `json:"ips,omitempty"` // the pod's addresses, IPv4 first
	NetNS     string       `json:"netns,omitempty"`
	StoppedAt time.Time    `json:"stoppedAt,omitzero"`
	// Problem says what could not be undone, if the pod is a remainder that is retried in the background.
	Problem string `json:"problem,omitempty"`
}

// ContainerConfig asks for a container in a pod.
type ContainerConfig struct {
	Name        string            `json:"name"`
	Attempt     uint32            `json:"attempt"`
	Image       string            `json:"image"`               // name or id, must be present
	ImageName   string            `json:"imageName,omitempty"` // as the user wrote it, for display
	Command     []string          `json:"command,omitempty"`   // instead of the image's entrypoint
	Args        []string          `json:"args,omitempty"`      // instead of the image's cmd
	WorkingDir  string            `json:"workingDir,omitempty"`
	Env         []EnvVar          `json:"env,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	LogPath     string            `json:"logPath,omitempty"` // relative to the pod's LogDirectory
	Stdin       bool              `json:"stdin,omitempty"`
	StdinOnce   bool              `json:"stdinOnce,omitempty"`
	Terminal    bool              `json:"terminal,omitempty"`
	StopSignal  string            `json:"stopSignal,omitempty"` // "" is the image's, else SIGTERM

	// User is "uid", "name", "uid:gid" …; "" is the image's. AdditionalGIDs come on top of the image's groups.
	User            string            `json:"user,omitempty"`
	Group           *int64            `json:"group,omitempty"`
	AdditionalGIDs  []int64           `json:"additionalGIDs,omitempty"`
	StrictGroups    bool              `json:"strictGroups,omitempty"` // the image's /etc/group does not count
	RunAsNonRoot    bool              `json:"runAsNonRoot,omitempty"`
	ReadonlyRootfs  bool              `json:"readonlyRootfs,omitempty"`
	Mounts          []runtime.Mount   `json:"mounts,omitempty"`
	Devices         []runtime.Device  `json:"devices,omitempty"`
	CDIDevices      []string          `json:"cdiDevices,omitempty"` // vendor.com/class=name
	Resources       runtime.Resources `json:"resources,omitzero"`
	Security        runtime.Security  `json:"security,omitzero"`
	Rlimits         []runtime.Rlimit  `json:"rlimits,omitempty"`
	HostPID         bool              `json:"hostPID,omitempty"`
	OwnPID          bool              `json:"ownPID,omitempty"`          // a PID namespace of its own in a pod that shares one
	TargetContainer string            `json:"targetContainer,omitempty"` // joins the PID namespace of this container
}

// EnvVar is one environment variable.
type EnvVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Container is a container's record and what the facts say of it; a copy.
type Container struct {
	ID         string          `json:"id"`
	PodID      string          `json:"podID"`
	Declared   bool            `json:"declared,omitempty"` // its pod is
	Config     ContainerConfig `json:"config"`
	ImageID    string          `json:"imageID"`
	Status     runtime.Status  `json:"status"`
	Pid        int             `json:"pid,omitempty"`
	CreatedAt  time.Time       `json:"createdAt"`
	StartedAt  time.Time       `json:"startedAt,omitzero"`
	Exit       *runtime.Exit   `json:"exit,omitempty"`
	LogPath    string          `json:"logPath,omitempty"` // absolute
	UID, GID   uint32
	Groups     []uint32
	StopSignal string `json:"stopSignal,omitempty"`
}

// Event tells of one transition. A pod's own events have ContainerID "".
type Event struct {
	Time        time.Time
	Type        EventType
	PodID       string
	ContainerID string
	// Pod is the pod as it was then, which may be gone when the event is read. It never changes, and is for reading alone.
	Pod *Pod
}

// EventType is what happened.
type EventType string

// The transitions that are told.
const (
	EventCreated EventType = "created"
	EventStarted EventType = "started"
	EventStopped EventType = "stopped"
	EventDeleted EventType = "deleted"
)
