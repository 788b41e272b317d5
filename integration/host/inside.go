package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/pausa-run/pausa/internal/thread"
)

// MakeCgroup makes a group below the host's parent group in every hierarchy, in
// which processes can be started at once, and returns its name. It ends with the host.
func (h *Host) MakeCgroup(name string) (string, error) {
	group := h.CgroupParent
	for _, part := range []string{"", name} {
		group = filepath.Join(group, part)
		for _, root := range cgroupDirs("/") {
			dir := filepath.Join(root, group)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return "", fmt.Errorf("make cgroup: %w", err)
			}
			if err := fillCgroup(dir); err != nil {
				return "", err
			}
		}
	}
	return group, nil
}

// fillCgroup gives a new group what the kernel wants before a process may join: the
// processors and memory of its parent on v1, the parent's controllers on v2.
func fillCgroup(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		all, err := os.ReadFile(filepath.Join(dir, "..", name))
		if errors.Is(err, fs.ErrNotExist) || len(bytes.TrimSpace(all)) == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("fill cgroup: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), all, 0); err != nil {
			return fmt.Errorf("fill cgroup: %w", err)
		}
	}
	all, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil //nolint:nilerr // cgroup v1
	}
	for c := range bytes.FieldsSeq(all) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), append([]byte("+"), c...), 0); err != nil {
			return fmt.Errorf("delegate cgroup controller: %w", err)
		}
	}
	return nil
}

// DialContext connects from inside the host's network; the address is a numeric one.
func (h *Host) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = thread.InNetNSAt("/proc/"+strconv.Itoa(h.Pid())+"/ns/net", func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// KillAll sends a signal to every process of this name and waits until they are gone.
func (h *Host) KillAll(comm string, sig syscall.Signal) error { return h.Kill(comm, "", sig) }
