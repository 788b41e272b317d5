package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mounts are the standard ones, less those that the caller replaces, and the
// caller's, parents before children. A shared or slave mount needs the same of
// the root, which is the second result.
func (c ContainerConfig) mounts() ([]specs.Mount, string) {
	list := c.standardMounts()
	propagation := ""
	own := make([]specs.Mount, 0, len(c.Mounts))
	for _, m := range c.Mounts {
		destination := path.Clean(m.Destination)
		list = slices.DeleteFunc(list, func(s specs.Mount) bool { return s.Destination == destination })
		own = append(own, m.oci(destination))
		if m.Propagation == "rshared" || m.Propagation == "rslave" && propagation == "" {
			propagation = m.Propagation
		}
	}
	slices.SortStableFunc(own, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return append(list, own...), propagation
}

func (c ContainerConfig) standardMounts() []specs.Mount {
	access := "ro"
	if c.Security.Privileged {
		access = "rw"
	}
	flags := []string{"nosuid", "noexec", "nodev"}
	proc := specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: flags}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append(slices.Clone(flags), access)}
	// A user namespace may only mount proc and sysfs anew where it owns the
	// PID or network namespace that they show.
	if c.userNamespace() && c.HostPID && !c.OwnPID {
		proc = specs.Mount{Destination: "/proc", Type: "bind", Source: "/proc", Options: append(slices.Clone(flags), "rbind")}
	}
	if c.userNamespace() && c.hostNetwork() {
		sys = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: append(slices.Clone(flags), "rbind", access)}
	}
	return []specs.Mount{
		proc,
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: flags},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append(slices.Clone(flags), "mode=1777", "size=65536k")},
		sys,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append(slices.Clone(flags), "relatime", access)},
	}
}

func (m Mount) oci(destination string) specs.Mount {
	out := specs.Mount{Destination: destination, Source: m.Source, Type: m.Type}
	if m.Type == "tmpfs" {
		out.Source = "tmpfs"
		out.Options = []string{"nosuid", "nodev"}
	} else {
		out.Type = "bind"
		out.Options = []string{"rbind"}
		if m.Propagation == "" {
			out.Options = append(out.Options, "rprivate")
		}
	}
	if m.Propagation != "" {
		out.Options = append(out.Options, m.Propagation)
	}
	switch {
	case m.Readonly && m.RecursiveRO:
		out.Options = append(out.Options, "rro")
	case m.Readonly:
		out.Options = append(out.Options, "ro")
	default:
		out.Options = append(out.Options, "rw")
	}
	out.Options = append(out.Options, m.Options...)
	if len(m.UIDMaps) > 0 {
		// Recursive: what is mounted below would belong to nobody else.
		out.Options = append(out.Options, "ridmap")
		out.UIDMappings, out.GIDMappings = idMappings(m.UIDMaps), idMappings(m.GIDMaps)
	}
	return out
}

// devices are the nodes to make and the cgroup rules for them. libcontainer
// adds its standard nodes (null, zero, full, random, urandom, tty, ptmx) itself.
func (c ContainerConfig) devices() ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	rules := []specs.LinuxDeviceCgroup{{Allow: c.Security.Privileged, Access: "rwm"}}
	var nodes []specs.LinuxDevice
	for _, d := range c.Devices {
		node, rule, err := d.oci()
		if err != nil {
			return nil, nil, err
		}
		nodes = append(nodes, node)
		if !c.Security.Privileged {
			rules = append(rules, rule)
		}
	}
	return nodes, rules, nil
}

// HostDevices are the device nodes of the folder (/dev) that a privileged
// container gets, at the same paths: all but pseudo-terminals and what has a mount of
// its own in each container.
func HostDevices(folder string) ([]Device, error) {
	var all []Device
	err := filepath.WalkDir(folder, func(name string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // unplugged while we look
		case err != nil:
			return err
		case d.IsDir() && name != folder && slices.Contains([]string{"pts", "shm", "fd", "mqueue", ".udev"}, d.Name()):
			return fs.SkipDir
		case d.Type()&fs.ModeDevice == 0 || d.Name() == "console" || d.Name() == "ptmx":
			return nil
		}
		all = append(all, Device{HostPath: name, ContainerPath: name, Permissions: "rwm"})
		return nil
	})
	return all, err
}

func (d Device) oci() (node specs.LinuxDevice, rule specs.LinuxDeviceCgroup, err error) {
	if !cleanPath(d.ContainerPath) {
		return node, rule, fmt.Errorf("device %s: container path %q: an absolute path without '..' is needed", d.HostPath, d.ContainerPath)
	}
	permissions := d.Permissions
	if permissions == "" {
		permissions = "rwm"
	}
	if strings.Trim(permissions, "rwm") != "" {
		return node, rule, fmt.Errorf("device %s: permissions %q: letters of \"rwm\" are needed", d.HostPath, d.Permissions)
	}
	var st unix.Stat_t
	if err = unix.Stat(d.HostPath, &st); err != nil {
		return node, rule, fmt.Errorf("device %s: %w", d.HostPath, err)
	}
	kind := "c"
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
	case unix.S_IFBLK:
		kind = "b"
	default:
		return node, rule, fmt.Errorf("device %s is not a device node", d.HostPath)
	}
	number := uint64(st.Rdev) //nolint:unconvert // 32 bits on some architectures
	major, minor := int64(unix.Major(number)), int64(unix.Minor(number))
	node = specs.LinuxDevice{Path: path.Clean(d.ContainerPath), Type: kind, Major: major, Minor: minor, UID: &st.Uid, GID: &st.Gid}
	rule = specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: permissions}
	return node, rule, nil
}
