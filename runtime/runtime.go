// Package runtime is the client of pausa-keeper, the one process per node that
// is the parent of every pause and container. It also turns a container's
// configuration into an OCI spec (Spec, a pure function). It never links
// libcontainer: that is the keeper's job (package runtime/keeper).
package runtime

import (
	"errors"
	"fmt"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Errors that a Client's methods wrap. Ask with errors.Is.
var (
	// ErrNotFound: the keeper knows no pod, container or exec of that id.
	ErrNotFound = errors.New("not found")
	// ErrExists: the id is taken.
	ErrExists = errors.New("already exists")
	// ErrState: the container is not in a state that allows the call.
	ErrState = errors.New("wrong state")
	// ErrNoCRIU: the host has no program that could make a checkpoint.
	ErrNoCRIU = errors.New("no CRIU")
	// ErrKeeperGone: the keeper's socket does not answer, or closed during the call.
	ErrKeeperGone = errors.New("keeper is not running")
	// ErrKeeperHeld: a keeper has the lock of the run directory; its text is followed by the lock's path.
	ErrKeeperHeld = errors.New("another keeper holds")
)

// IDMap maps Size ids from ContainerID on to the host's ids from HostID on.
type IDMap struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Size        uint32 `json:"size"`
}

// PodSpec asks for a pause process that owns a pod's namespaces.
type PodSpec struct {
	ID          string `json:"id"`
	Hostname    string `json:"hostname,omitempty"`
	HostNetwork bool   `json:"hostNetwork,omitempty"`
	HostIPC     bool   `json:"hostIPC,omitempty"`
	// SharePID makes a PID namespace whose PID 1 is pause, for all containers of the pod.
	SharePID bool    `json:"sharePID,omitempty"`
	UIDMaps  []IDMap `json:"uidMaps,omitempty"` // not empty: a user namespace
	GIDMaps  []IDMap `json:"gidMaps,omitempty"`
	// Sysctls are set inside the pod's namespaces; names must be namespaced ones
	// (net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*).
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

// PodState is what the keeper knows of a pod's pause process.
type PodState struct {
	ID        string    `json:"id"`
	Pid       int       `json:"pid"`
	StartTime uint64    `json:"startTime"` // clock ticks since boot, field 22 of /proc/PID/stat: tells a reused pid
	StartedAt time.Time `json:"startedAt"`
	Exited    bool      `json:"exited,omitempty"` // the pause process is gone
	Spec      PodSpec   `json:"spec"`
}

// Namespace is the path of one of the pod's namespaces ("net", "ipc", "uts", "pid", "user").
func (s PodState) Namespace(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", s.Pid, kind) }

// ContainerSpec asks for a container. The spec is complete: rootfs mounted at
// Spec.Root.Path, namespaces as paths into the pod's pause, cgroup path set.
type ContainerSpec struct {
	ID    string      `json:"id"`
	PodID string      `json:"podID"`
	Spec  *specs.Spec `json:"spec"`
	// Program makes it; nil: the keeper itself does.
	Program *Program `json:"program,omitempty"`
	// Restore brings processes back at the start; nil: the command is run.
	Restore *Restore `json:"restore,omitempty"`
	// LogPath is the file that gets the output in CRI format; "" keeps none.
	LogPath string `json:"logPath,omitempty"`
	// Stdin keeps an input open for Attach; StdinOnce closes it when the first attached client leaves.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
}

// RestoredGroups is the number by which the images of a Restore name the groups of
// all processes. What groups these are the keeper says, and what seccomp filter.
const RestoredGroups = 2

// RestoredStream is how the images of a Restore name stdin, stdout or stderr of the
// container. libcontainer looks for the word in it.
func RestoredStream(name string) string { return "pipe:" + name }

// Restore is what CRIU restores a container from. Who asks for it has checked every
// image (package restore): CRIU gives processes what the images say.
type Restore struct {
	// Dir holds the images. Only root may write there.
	Dir string `json:"dir"`
}

// Status says how far a container has come.
type Status string

// The states of a container, in order.
const (
	Created Status = "created" // recorded; its init is being parked or is parked
	Running Status = "running"
	Exited  Status = "exited"
)

// Exit is how a process ended. The keeper writes it to disk before it tells anyone.
type Exit struct {
	ID         string    `json:"id"`
	Code       int       `json:"code"`             // 128+N when signal N ended it; 255 when Unknown
	Signal     int       `json:"signal,omitempty"` // 0: it exited by itself
	FinishedAt time.Time `json:"finishedAt"`
	OOMKilled  bool      `json:"oomKilled,omitempty"` // it ended because the kernel killed it, or a child, for want of memory
	OOMKills   uint64    `json:"oomKills,omitempty"`  // how many of its processes the kernel has killed so, all in all
	OOMLimit   OOMLimit  `json:"oomLimit,omitempty"`  // whose memory was used up; "" without a kill
	// Unknown: nobody could collect the code (the keeper was dead and the kernel is older than 6.15).
	Unknown bool `json:"unknown,omitempty"`
	// StartError says why the init never came to run the command (no such file, bad cwd, …); Code is 128 then.
	StartError string `json:"startError,omitempty"`
}

// OOMLimit is whose memory was used up when the kernel killed a process for want of it.
type OOMLimit string

// The limits that can be reached.
const (
	OOMContainer OOMLimit = "container"
	OOMPod       OOMLimit = "pod"
	OOMHost      OOMLimit = "host" // no limit, or one above the pod's
)

// OOMMessage says in a sentence why the kernel killed processes; "" if it has killed none.
func (e *Exit) OOMMessage() string {
	if e.OOMKills == 0 {
		return ""
	}
	why := map[OOMLimit]string{
		OOMContainer: "the container's memory limit was reached", OOMPod: "the pod's memory limit was reached",
	}[e.OOMLimit]
	if why == "" {
		why = "the host, or a group above the pod, was out of memory"
	}
	if e.OOMKills == 1 {
		return why + ": the kernel killed 1 process"
	}
	return fmt.Sprintf("%s: the kernel killed %d processes", why, e.OOMKills)
}

// ContainerState is what the keeper knows of a container.
type ContainerState struct {
	ID        string    `json:"id"`
	PodID     string    `json:"podID"`
	Status    Status    `json:"status"`
	Pid       int       `json:"pid,omitempty"`
	StartTime uint64    `json:"startTime,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
	StartedAt time.Time `json:"startedAt,omitzero"`
	Exit      *Exit     `json:"exit,omitempty"`
}

// ExecSpec asks for one more process in a running container.
type ExecSpec struct {
	ContainerID string   `json:"containerID"`
	ExecID      string   `json:"execID"`        // for Resize; unique within the container
	Args        []string `json:"args"`          // Env, Cwd, User, capabilities: the container's own
	Env         []string `json:"env,omitempty"` // added to the container's
	Terminal    bool     `json:"terminal,omitempty"`
	Width       uint16   `json:"width,omitempty"`
	Height      uint16   `json:"height,omitempty"`
}

// Stats is one reading of a container's cgroup.
type Stats struct {
	ID               string    `json:"id"`
	Time             time.Time `json:"time"`
	CPUNanos         uint64    `json:"cpuNanos"`
	MemoryUsage      uint64    `json:"memoryUsage"`      // bytes, page cache included
	MemoryWorkingSet uint64    `json:"memoryWorkingSet"` // usage less inactive file pages
	MemoryRSS        uint64    `json:"memoryRSS"`        // anonymous pages
	MemoryLimit      uint64    `json:"memoryLimit"`      // 0: none
	PageFaults       uint64    `json:"pageFaults"`
	MajorPageFaults  uint64    `json:"majorPageFaults"`
	SwapUsage        uint64    `json:"swapUsage"`
	SwapLimit        *uint64   `json:"swapLimit,omitempty"` // nil: none
	Pids             uint64    `json:"pids"`
	// What was waited for; nil where the kernel does not tell.
	CPUPressure    *Pressure `json:"cpuPressure,omitempty"`
	MemoryPressure *Pressure `json:"memoryPressure,omitempty"`
	IOPressure     *Pressure `json:"ioPressure,omitempty"`
	Details        *Details  `json:"details,omitempty"` // only where they were asked for
}

// Pressure is for how long some processes of a cgroup, or all of them at once, waited for one thing.
type Pressure struct {
	Some Waited `json:"some,omitzero"`
	Full Waited `json:"full,omitzero"`
}

// Waited is a sum, and shares of the last 10, 60 and 300 seconds in percent.
type Waited struct {
	TotalNanos uint64  `json:"totalNanos,omitempty"`
	Avg10      float64 `json:"avg10,omitempty"`
	Avg60      float64 `json:"avg60,omitempty"`
	Avg300     float64 `json:"avg300,omitempty"`
}

// Details are what only metrics show of a container: counters from its start on,
// and what it has now. What the host does not count is 0.
type Details struct {
	CPUUserNanos        uint64 `json:"cpuUserNanos,omitempty"`
	CPUSystemNanos      uint64 `json:"cpuSystemNanos,omitempty"`
	CPUPeriods          uint64 `json:"cpuPeriods,omitempty"` // of its quota
	CPUThrottledPeriods uint64 `json:"cpuThrottledPeriods,omitempty"`
	CPUThrottledNanos   uint64 `json:"cpuThrottledNanos,omitempty"`
	CPUBurstPeriods     uint64 `json:"cpuBurstPeriods,omitempty"`
	CPUBurstNanos       uint64 `json:"cpuBurstNanos,omitempty"`

	MemoryCache        uint64 `json:"memoryCache,omitempty"` // bytes, as all of these
	MemoryMapped       uint64 `json:"memoryMapped,omitempty"`
	MemoryActiveFile   uint64 `json:"memoryActiveFile,omitempty"`
	MemoryInactiveFile uint64 `json:"memoryInactiveFile,omitempty"`
	MemoryDirty        uint64 `json:"memoryDirty,omitempty"`
	MemoryWriteback    uint64 `json:"memoryWriteback,omitempty"`
	MemoryKernel       uint64 `json:"memoryKernel,omitempty"`
	MemoryPeak         uint64 `json:"memoryPeak,omitempty"`
	MemoryFailures     uint64 `json:"memoryFailures,omitempty"` // times that the limit was reached
	MemoryHighEvents   uint64 `json:"memoryHighEvents,omitempty"`
	PagesScanned       uint64 `json:"pagesScanned,omitempty"` // pages, as all of these
	PagesStolen        uint64 `json:"pagesStolen,omitempty"`
	FileRefaults       uint64 `json:"fileRefaults,omitempty"`
	AnonRefaults       uint64 `json:"anonRefaults,omitempty"`
	OOMKills           uint64 `json:"oomKills,omitempty"`

	Processes    uint64 `json:"processes,omitempty"`
	Threads      uint64 `json:"threads,omitempty"`
	PidsLimit    uint64 `json:"pidsLimit,omitempty"` // 0: none
	OpenFiles    uint64 `json:"openFiles,omitempty"`
	Sockets      uint64 `json:"sockets,omitempty"`
	MaxOpenFiles uint64 `json:"maxOpenFiles,omitempty"` // the init's soft limit

	IO []DeviceIO `json:"io,omitempty"`
}

// DeviceIO is what a container has done with one block device.
type DeviceIO struct {
	Device     string `json:"device"` // "MAJOR:MINOR"
	ReadBytes  uint64 `json:"readBytes,omitempty"`
	WriteBytes uint64 `json:"writeBytes,omitempty"`
	Reads      uint64 `json:"reads,omitempty"`
	Writes     uint64 `json:"writes,omitempty"`
}
