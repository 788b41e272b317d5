package runtime

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maskedPaths are hidden from containers: they tell of the host's hardware,
// keys and other tenants, or change them.
func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
		"/sys/firmware", "/sys/devices/virtual/powercap",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// DefaultCapabilities are what a container has before AddCaps and DropCaps.
func DefaultCapabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// allCapabilities is in the kernel's order: the index is the number.
func allCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
		"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
		"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
		"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
		"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
		"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

// CapabilityNumber is the kernel's number of a capability, -1 when it has none.
func CapabilityNumber(name string) int { return slices.Index(allCapabilities(), name) }

// capabilities begins with the default set, or with all or none when "ALL" is
// added or dropped, adds the names of AddCaps and then takes away those of DropCaps.
func (s Security) capabilities() (*specs.LinuxCapabilities, error) {
	add, addAll, err := capabilityNames("add", s.AddCaps)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capabilityNames("drop", s.DropCaps)
	if err != nil {
		return nil, err
	}
	ambient, _, err := capabilityNames("ambient", s.AmbientCaps)
	if err != nil {
		return nil, err
	}
	set := DefaultCapabilities()
	if addAll || s.Privileged {
		set = allCapabilities()
	}
	if dropAll && !s.Privileged {
		set = nil
	}
	set = append(append(set, add...), ambient...)
	if !s.Privileged {
		set = slices.DeleteFunc(set, func(c string) bool { return slices.Contains(drop, c) })
	}
	slices.Sort(set)
	set = slices.Compact(set)
	ambient = slices.DeleteFunc(ambient, func(c string) bool { return !slices.Contains(set, c) })
	return &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set, Inheritable: ambient, Ambient: ambient}, nil
}

func capabilityNames(what string, given []string) (names []string, all bool, err error) {
	for _, name := range given {
		full := strings.ToUpper(name)
		if full == "ALL" || full == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(full, "CAP_") {
			full = "CAP_" + full
		}
		if CapabilityNumber(full) < 0 {
			return nil, false, fmt.Errorf("%s capability %q: the kernel has none of that name", what, name)
		}
		names = append(names, full)
	}
	return names, all, nil
}

// seccomp is the filter that c asks for. The built-in profile depends on the
// capabilities that spec already has.
func (c ContainerConfig) seccomp(spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	kind := c.Security.Seccomp
	switch {
	case c.Security.Privileged || kind == "" || kind == "unconfined":
		return nil, nil
	case kind == "runtime/default":
		return seccomp.GetDefaultProfile(spec)
	case strings.HasPrefix(kind, "localhost/"):
		if len(c.Security.SeccompProfile) == 0 {
			return nil, fmt.Errorf("seccomp profile %q has no content", kind)
		}
		profile, err := seccomp.LoadProfile(string(c.Security.SeccompProfile), spec)
		if err != nil {
			return nil, fmt.Errorf("seccomp profile %q: %w", kind, err)
		}
		if profile == nil {
			return nil, fmt.Errorf("seccomp profile %q filters nothing: name a defaultAction, or use unconfined", kind)
		}
		return profile, nil
	}
	return nil, fmt.Errorf("seccomp profile %q is none of runtime/default, unconfined and localhost/PATH", kind)
}
