package runtime

import "reflect"

// ContainerConfig is everything Spec needs to write a container's OCI spec. All
// names are resolved by the caller: the image's defaults are merged in, users
// are numbers, mounts have existing host paths.
type ContainerConfig struct {
	ID    string
	PodID string
	Pod   PodState // whose namespaces it joins

	Rootfs         string
	ReadonlyRootfs bool
	Args           []string
	Env            []string
	Cwd            string // "" is "/"
	Terminal       bool

	UID, GID       uint32
	AdditionalGIDs []uint32

	Mounts  []Mount // besides /proc, /dev, /sys, which Spec adds
	Devices []Device

	// CgroupPath is absolute from the cgroup root ("/pausa/podX/ID"), or "slice:prefix:name" with the systemd driver.
	CgroupPath string
	Resources  Resources

	Security    Security
	HostPID     bool // joins the host's PID namespace
	TargetPID   int  // > 0: joins the PID namespace of that process
	OwnPID      bool // has a PID namespace of its own, also when the pod shares one
	HostNetwork bool // as in the PodSpec
	HostIPC     bool //
	Annotations map[string]string
	Rlimits     []Rlimit
}

// Mount is one bind or tmpfs mount.
type Mount struct {
	Source      string // host path; "" with Type "tmpfs"; with Image a path in it, "" for all
	Image       string // image to mount read-only, which package pod mounts; "" for none
	Destination string // absolute path in the container
	Type        string // "bind" (default) or "tmpfs"
	Readonly    bool
	RecursiveRO bool
	Propagation string   // "", "rprivate", "rslave", "rshared"
	Options     []string // further OCI mount options, e.g. "size=64m", "noexec"
	// UIDMaps and GIDMaps say which ids the source's owners (ContainerID) have in
	// this mount, as the host numbers them; both or none.
	UIDMaps, GIDMaps []IDMap
}

// Device is one device node taken from the host.
type Device struct {
	HostPath      string
	ContainerPath string
	Permissions   string // "rwm"
}

// Rlimit is one POSIX limit ("RLIMIT_NOFILE").
type Rlimit struct {
	Type       string
	Soft, Hard uint64
}

// Resources are a container's limits; zero means none.
type Resources struct {
	CPUShares   uint64            `json:"cpuShares,omitempty"` // cgroup v1 shares, 2..262144; turned into cpu.weight on v2
	CPUQuota    int64             `json:"cpuQuota,omitempty"`  // µs per period
	CPUPeriod   uint64            `json:"cpuPeriod,omitempty"`
	CpusetCpus  string            `json:"cpusetCpus,omitempty"`
	CpusetMems  string            `json:"cpusetMems,omitempty"`
	MemoryLimit int64             `json:"memoryLimit,omitempty"` // bytes
	MemorySwap  int64             `json:"memorySwap,omitempty"`  // bytes, memory+swap; 0: not set
	PidsLimit   int64             `json:"pidsLimit,omitempty"`
	OOMScoreAdj *int              `json:"oomScoreAdj,omitempty"`
	Hugepages   map[string]uint64 `json:"hugepages,omitempty"` // "2MB" → bytes
	Unified     map[string]string `json:"unified,omitempty"`   // cgroup v2 files
}

// None says that nothing is limited.
func (r Resources) None() bool { return reflect.ValueOf(r).IsZero() }

// Security is what a container may do.
type Security struct {
	Privileged  bool
	NoNewPrivs  bool
	AddCaps     []string // with or without CAP_, "ALL"
	DropCaps    []string
	AmbientCaps []string
	// Seccomp: "" or "unconfined" none, "runtime/default" the built-in profile, "localhost/ABSOLUTE PATH" with SeccompProfile holding the file's content.
	Seccomp        string
	SeccompProfile []byte
	AppArmor       string // profile name, "" none; package pod takes runtime/default, unconfined and localhost/NAME, too
	SELinuxLabel   string
	MaskedPaths    []string // nil: the default list; empty not nil: none
	ReadonlyPaths  []string // likewise
}
