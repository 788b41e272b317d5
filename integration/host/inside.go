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
	goruntime "runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
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
func (h *Host) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := os.Open("/proc/" + strconv.Itoa(h.Pid()) + "/ns/net")
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("enter the network of host %s: %w", h.Name, err)}
			return
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, addr)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// KillAll sends a signal to every process of this name and waits until they are gone.
func (h *Host) KillAll(comm string, sig syscall.Signal) error { return h.Kill(comm, "", sig) }
