//go:build cgo

package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pausa-run/pausa/runtime"
)

func hasCgroupNamespace(spec *specs.Spec) bool {
	return slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
}

// checkRestored asks the kernel, not the images, whether the restored init is
// confined as its spec says.
func (k *Keeper) checkRestored(c *container, pid int) error {
	spec := c.request.Spec
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return fmt.Errorf("check restored process: %w", err)
	}
	field := func(name string) string {
		for line := range bytes.Lines(status) {
			if rest, ok := bytes.CutPrefix(line, []byte(name+":\t")); ok {
				return string(bytes.TrimSpace(rest))
			}
		}
		return ""
	}
	if spec.Linux.Seccomp != nil && field("Seccomp") != "2" {
		return errors.New("check restored process: the kernel has no seccomp filter for it")
	}
	if spec.Process.NoNewPrivileges && field("NoNewPrivs") != "1" {
		return errors.New("check restored process: it could gain privileges")
	}
	bounding, err := strconv.ParseUint(field("CapBnd"), 16, 64)
	if err != nil || bounding&^capabilityMask(spec.Process.Capabilities) != 0 {
		return fmt.Errorf("check restored process: its capabilities are bounded by %q alone", field("CapBnd"))
	}
	if group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || !inGroup(string(group), spec.Linux.CgroupsPath) {
		return fmt.Errorf("check restored process: it is in the groups %q: %w", group, err)
	}
	if err := checkReadonly(spec, pid); err != nil {
		return err
	}
	return checkNamespaces(spec, pid)
}

// checkReadonly sees that what the spec has read-only is not writable.
func checkReadonly(spec *specs.Spec, pid int) error {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return fmt.Errorf("check restored process: %w", err)
	}
	writable := map[string]bool{}
	for line := range bytes.Lines(table) {
		if fields := strings.Fields(string(line)); len(fields) > 5 {
			writable[fields[4]] = !slices.Contains(strings.Split(fields[5], ","), "ro")
		}
	}
	readonly := slices.Clone(spec.Linux.ReadonlyPaths)
	if spec.Root.Readonly {
		readonly = append(readonly, "/")
	}
	for _, m := range spec.Mounts {
		if slices.Contains(m.Options, "ro") {
			readonly = append(readonly, m.Destination)
		}
	}
	for _, at := range readonly {
		if writable[at] {
			return fmt.Errorf("check restored process: %s is writable, and the request has it read-only", at)
		}
	}
	return nil
}

func capabilityMask(c *specs.LinuxCapabilities) (mask uint64) {
	if c == nil {
		return 0
	}
	for _, name := range c.Bounding {
		if n := runtime.CapabilityNumber(name); n >= 0 {
			mask |= 1 << n
		}
	}
	return mask
}

// inGroup looks for the last part of the path: drivers differ in what is before it.
func inGroup(groups, path string) bool {
	name := path[strings.LastIndexAny(path, "/:")+1:]
	return name != "" && strings.Contains(groups, name)
}

// checkNamespaces compares with those that were to be joined, and with our own for new ones.
func checkNamespaces(spec *specs.Spec, pid int) error {
	files := map[specs.LinuxNamespaceType]string{
		specs.MountNamespace: "mnt", specs.NetworkNamespace: "net", specs.UTSNamespace: "uts", specs.IPCNamespace: "ipc",
		specs.PIDNamespace: "pid", specs.UserNamespace: "user", specs.CgroupNamespace: "cgroup",
	}
	for _, n := range spec.Linux.Namespaces {
		file := files[n.Type]
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, file))
		if err != nil {
			return fmt.Errorf("check restored process: %w", err)
		}
		path := n.Path
		if path == "" {
			path = "/proc/self/ns/" + file
		}
		there, err := os.Readlink(path)
		if err != nil {
			return fmt.Errorf("check restored process: %w", err)
		}
		if (got == there) != (n.Path != "") {
			return fmt.Errorf("check restored process: its %s namespace is %s, and that of %s is %s", n.Type, got, path, there)
		}
	}
	return nil
}
