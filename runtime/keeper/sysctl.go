//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/thread"
	"github.com/pausa-run/pausa/runtime"
)

// checkSysctls refuses names that are not the pod's alone.
func checkSysctls(spec runtime.PodSpec) error {
	for name, value := range spec.Sysctls {
		net, ipc := strings.HasPrefix(name, "net."), isIPC(name)
		switch {
		case !net && !ipc, strings.ContainsAny(name, "\x00"), slices.Contains(strings.FieldsFunc(name, isSeparator), ".."):
			return fmt.Errorf("pod %q: sysctl %q is not one of the pod's own: use net.*, kernel.shm*, kernel.msg*, kernel.sem or fs.mqueue.*", spec.ID, name)
		case net && spec.HostNetwork:
			return fmt.Errorf("pod %q: sysctl %q would change the host's network, which the pod shares", spec.ID, name)
		case ipc && spec.HostIPC:
			return fmt.Errorf("pod %q: sysctl %q would change the host's IPC, which the pod shares", spec.ID, name)
		case strings.ContainsAny(value, "\x00\n"):
			return fmt.Errorf("pod %q: sysctl %q: its value contains a line end or NUL", spec.ID, name)
		}
	}
	return nil
}

func isSeparator(r rune) bool { return r == '/' }

func isIPC(name string) bool {
	return strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") ||
		name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue.")
}

// setSysctls writes values as seen from inside the namespaces of pid. The
// thread that enters them is thrown away: it can never run anything else.
func setSysctls(pid int, values map[string]string) error {
	if len(values) == 0 {
		return nil
	}
	return thread.Run(func() error { return writeSysctls(pid, values) })
}

func writeSysctls(pid int, values map[string]string) error {
	for kind, flag := range map[string]int{"net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC} {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s namespace: %w", kind, err)
		}
		err = unix.Setns(fd, flag)
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("enter %s namespace: %w", kind, err)
		}
	}
	proc, err := unix.Open("/proc/sys", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/sys: %w", err)
	}
	defer unix.Close(proc)
	var st unix.Statfs_t
	if err := unix.Fstatfs(proc, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("/proc/sys is not procfs: %w", errors.Join(err, unix.EXDEV))
	}
	for name, value := range values {
		if err := writeSysctl(proc, name, value); err != nil {
			return fmt.Errorf("set sysctl %s=%s: %w", name, value, err)
		}
	}
	return nil
}

// sysctlPath is the file of a name. One written with slashes may have dots in
// the parts behind its first slash (an interface eth0.5).
func sysctlPath(name string) string {
	head, tail, slashes := strings.Cut(name, "/")
	path := strings.ReplaceAll(head, ".", "/")
	if slashes {
		path += "/" + tail
	}
	return path
}

// writeSysctl never leaves procfs and follows no link.
func writeSysctl(proc int, name, value string) error {
	how := unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(proc, sysctlPath(name), &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}
