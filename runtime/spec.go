package runtime

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Spec turns a container's configuration into a complete OCI spec. The same
// configuration gives the same spec; nothing is read but the numbers of the
// device nodes that c.Devices names. The error names the field that is wrong.
func Spec(c ContainerConfig) (*specs.Spec, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("container %q: %w", c.ID, err)
	}
	spec, err := build(c)
	if err != nil {
		return nil, fmt.Errorf("container %q: %w", c.ID, err)
	}
	return spec, nil
}

func build(c ContainerConfig) (*specs.Spec, error) {
	process, err := c.process()
	if err != nil {
		return nil, err
	}
	mounts, propagation := c.mounts()
	devices, rules, err := c.devices()
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{
		Version:     specs.Version,
		Process:     process,
		Root:        &specs.Root{Path: c.Rootfs, Readonly: c.ReadonlyRootfs},
		Mounts:      mounts,
		Annotations: c.Annotations,
		Linux: &specs.Linux{
			CgroupsPath:       c.CgroupPath,
			Namespaces:        c.namespaces(),
			UIDMappings:       idMappings(c.Pod.Spec.UIDMaps),
			GIDMappings:       idMappings(c.Pod.Spec.GIDMaps),
			Resources:         c.Resources.OCI(),
			Devices:           devices,
			RootfsPropagation: propagation,
			MaskedPaths:       defaulted(c.Security.MaskedPaths, maskedPaths(), c.Security.Privileged),
			ReadonlyPaths:     defaulted(c.Security.ReadonlyPaths, readonlyPaths(), c.Security.Privileged),
		},
	}
	spec.Linux.Resources.Devices = rules
	if spec.Linux.Seccomp, err = c.seccomp(spec); err != nil {
		return nil, err
	}
	return spec, nil
}

func (c ContainerConfig) validate() error {
	switch {
	case !ValidID(c.ID):
		return fmt.Errorf("id %q: use 1 to 128 letters, digits, '.', '_' or '-', and begin with a letter or digit", c.ID)
	case c.Pod.Pid <= 0:
		return fmt.Errorf("pod %q has no pause process whose namespaces could be joined", c.PodID)
	case !cleanPath(c.Rootfs):
		return fmt.Errorf("rootfs %q: an absolute path without '..' is needed", c.Rootfs)
	case len(c.Args) == 0 || c.Args[0] == "":
		return fmt.Errorf("no command: give one, or use an image that has one")
	case c.Cwd != "" && !path.IsAbs(c.Cwd):
		return fmt.Errorf("working directory %q: an absolute path is needed", c.Cwd)
	case c.CgroupPath == "":
		return fmt.Errorf("no cgroup path")
	}
	for _, list := range [][]string{c.Args, c.Env, {c.Cwd, c.CgroupPath}} {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return fmt.Errorf("%q contains a NUL character", s)
			}
		}
	}
	if i := slices.IndexFunc(c.Env, func(e string) bool { return strings.IndexByte(e, '=') < 1 }); i >= 0 {
		return fmt.Errorf("environment variable %q: NAME=VALUE is needed", c.Env[i])
	}
	return c.validateMounts()
}

func (c ContainerConfig) validateMounts() error {
	for _, m := range c.Mounts {
		switch {
		case !cleanPath(m.Destination) || m.Destination == "/":
			return fmt.Errorf("mount at %q: an absolute path below / without '..' is needed", m.Destination)
		case m.Type != "" && m.Type != "bind" && m.Type != "tmpfs":
			return fmt.Errorf("mount at %s: type %q is neither bind nor tmpfs", m.Destination, m.Type)
		case m.Type != "tmpfs" && !cleanPath(m.Source):
			return fmt.Errorf("mount at %s: source %q: an absolute path without '..' is needed", m.Destination, m.Source)
		case (len(m.UIDMaps) == 0) != (len(m.GIDMaps) == 0) || len(m.UIDMaps) > 0 && m.Type == "tmpfs":
			return fmt.Errorf("mount at %s: maps of both users and groups are needed, and a source", m.Destination)
		case !slices.Contains([]string{"", "rprivate", "rslave", "rshared"}, m.Propagation):
			return fmt.Errorf("mount at %s: propagation %q is none of rprivate, rslave, rshared", m.Destination, m.Propagation)
		}
	}
	return nil
}

// ValidID says whether id may name a pod, a container or an exec: it becomes a folder's name.
func ValidID(id string) bool {
	if len(id) == 0 || len(id) > 128 {
		return false
	}
	for i, r := range id {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", r)) {
			return false
		}
	}
	return true
}

// cleanPath refuses "..", and NUL which ends a path early for the kernel.
func cleanPath(p string) bool {
	return path.IsAbs(p) && !strings.ContainsRune(p, 0) && !slices.Contains(strings.Split(p, "/"), "..")
}

func (c ContainerConfig) process() (*specs.Process, error) {
	caps, err := c.Security.capabilities()
	if err != nil {
		return nil, err
	}
	p := &specs.Process{
		Terminal:        c.Terminal,
		User:            specs.User{UID: c.UID, GID: c.GID, AdditionalGids: c.AdditionalGIDs},
		Args:            c.Args,
		Env:             c.Env,
		Cwd:             c.Cwd,
		Capabilities:    caps,
		NoNewPrivileges: c.Security.NoNewPrivs,
		ApparmorProfile: c.Security.AppArmor,
		SelinuxLabel:    c.Security.SELinuxLabel,
		OOMScoreAdj:     c.Resources.OOMScoreAdj,
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	for _, r := range c.Rlimits {
		if r.Soft > r.Hard {
			return nil, fmt.Errorf("rlimit %s: soft limit %d is above the hard limit %d", r.Type, r.Soft, r.Hard)
		}
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: r.Type, Soft: r.Soft, Hard: r.Hard})
	}
	return p, nil
}

// namespaces are the pod's where it shares them, and new ones for the rest. The
// keeper leaves the cgroup namespace out on a host with cgroup v1.
func (c ContainerConfig) namespaces() []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	join := func(kind specs.LinuxNamespaceType, name string) {
		list = append(list, specs.LinuxNamespace{Type: kind, Path: c.Pod.Namespace(name)})
	}
	if c.userNamespace() {
		join(specs.UserNamespace, "user")
	}
	if !c.hostNetwork() {
		join(specs.NetworkNamespace, "net")
		join(specs.UTSNamespace, "uts")
	}
	if !c.HostIPC && !c.Pod.Spec.HostIPC {
		join(specs.IPCNamespace, "ipc")
	}
	switch {
	case c.TargetPID > 0:
		path := fmt.Sprintf("/proc/%d/ns/pid", c.TargetPID)
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: path})
	case c.HostPID && !c.OwnPID:
	case c.Pod.Spec.SharePID && !c.OwnPID:
		join(specs.PIDNamespace, "pid")
	default:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	if !c.Security.Privileged {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list
}

func (c ContainerConfig) hostNetwork() bool   { return c.HostNetwork || c.Pod.Spec.HostNetwork }
func (c ContainerConfig) userNamespace() bool { return len(c.Pod.Spec.UIDMaps) > 0 }

// idMappings are in the form of the OCI: with the path of a user namespace, what is known of it.
func idMappings(maps []IDMap) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range maps {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Size})
	}
	return out
}

// OCI turns limits into the form that ContainerSpec and Client.Update take.
func (r Resources) OCI() *specs.LinuxResources {
	out := &specs.LinuxResources{Unified: r.Unified}
	if r.CPUShares != 0 || r.CPUQuota != 0 || r.CPUPeriod != 0 || r.CpusetCpus != "" || r.CpusetMems != "" {
		out.CPU = &specs.LinuxCPU{
			Shares: present(r.CPUShares), Quota: present(r.CPUQuota), Period: present(r.CPUPeriod),
			Cpus: r.CpusetCpus, Mems: r.CpusetMems,
		}
	}
	if r.MemoryLimit != 0 || r.MemorySwap != 0 {
		out.Memory = &specs.LinuxMemory{Limit: present(r.MemoryLimit), Swap: present(r.MemorySwap)}
	}
	if r.PidsLimit != 0 {
		out.Pids = &specs.LinuxPids{Limit: &r.PidsLimit}
	}
	for size, limit := range r.Hugepages {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
	}
	slices.SortFunc(out.HugepageLimits, func(a, b specs.LinuxHugepageLimit) int {
		return strings.Compare(a.Pagesize, b.Pagesize)
	})
	return out
}

// present is nil for zero, which means no limit.
func present[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// defaulted is the given list, the default one for nil, and none for a privileged container.
func defaulted(given, standard []string, privileged bool) []string {
	if given != nil {
		return given
	}
	if privileged {
		return nil
	}
	return standard
}
