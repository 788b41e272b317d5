//go:build cgo

package keeper_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

func TestOwnPIDNamespaceInASharingPod(t *testing.T) {
	h := newHost(t)
	pod := h.pod(func(s *runtime.PodSpec) { s.SharePID = true })
	id, exit := h.runOnce(pod, sh("echo $$"), func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) { c.OwnPID = true })
	if out := h.output(id, "stdout"); exit.Code != 0 || out != "1\n" {
		t.Errorf("exit %+v, its own pid is %q", exit, out)
	}
}

func TestPrivilegedContainerHasTheHostsDevices(t *testing.T) {
	devices, err := runtime.HostDevices("/dev")
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	id, exit := h.runOnce(h.pod(), sh("find /dev -type c -o -type b"), func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) {
		c.Devices, c.Security = devices, runtime.Security{Privileged: true}
	})
	out := h.output(id, "stdout")
	if exit.Code != 0 {
		t.Fatalf("exit %+v: %s", exit, h.output(id, "stderr"))
	}
	for _, d := range devices {
		if !strings.Contains(out, d.ContainerPath+"\n") {
			t.Errorf("no %s in the container", d.ContainerPath)
		}
	}
}

// shiftedRoot mounts the test's root file system with other owners, as package images does for a pod with a user namespace.
func shiftedRoot(t *testing.T, maps string) string {
	t.Helper()
	holder := exec.Command("sleep", "100")
	holder.SysProcAttr = userNamespace()
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	for _, name := range []string{"uid_map", "gid_map"} {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", holder.Process.Pid, name), []byte(maps), 0); err != nil {
			t.Fatal(err)
		}
	}
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ns)
	tree, err := unix.OpenTree(unix.AT_FDCWD, built.rootfs, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		t.Skip("needs a file system with idmapped mounts:", err)
	}
	root := t.TempDir()
	if err := os.Chmod(filepath.Dir(root), 0o711); err != nil { //nolint:gosec // the namespace's root must get through
		t.Fatal(err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, root, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	return root
}

func TestUserNamespace(t *testing.T) {
	for name, shared := range map[string]bool{"own": false, "shared": true} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			root := shiftedRoot(t, "0 200000 65536")
			maps := []runtime.IDMap{{ContainerID: 0, HostID: 200000, Size: 65536}}
			pod := h.pod(func(s *runtime.PodSpec) {
				s.UIDMaps, s.GIDMaps, s.SharePID = maps, maps, shared
				s.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77"}
			})
			id := h.container(pod, sh(`id -u; cat /proc/self/uid_map; touch /tmp/user; echo reopened > /dev/stderr; stat -c %u /tmp/user /bin/busybox; hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; exec sleep 1000`),
				func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) { c.Rootfs = root })
			state := h.start(id)
			h.eventually("it has said all", func() bool { return strings.Count(h.output(id, "stdout"), "\n") == 6 })
			if got := strings.Fields(h.output(id, "stdout")); strings.Join(got, " ") != "0 0 200000 65536 0 0 hello 77" {
				t.Errorf("container says %q, %q", got, h.output(id, "stderr"))
			}
			if got := h.output(id, "stderr"); got != "reopened\n" {
				t.Errorf("stderr %q", got)
			}
			if st, err := os.Stat(fmt.Sprintf("/proc/%d", state.Pid)); err != nil || owner(st) != 200000 {
				t.Errorf("process is of %v, %v", st, err)
			}
			if out, _, code := h.exec(id, "", "id", "-u"); code != 0 || out != "0\n" {
				t.Errorf("exec: %q, %d", out, code)
			}
			if st, err := os.Stat(built.rootfs + "/tmp/user"); err != nil || owner(st) != 0 {
				t.Errorf("file on disk is of %v, %v", st, err)
			}
			if err := h.client.RemoveContainer(ctx(t), id); err != nil {
				t.Error(err)
			}
		})
	}
}

func owner(st os.FileInfo) uint32 { return st.Sys().(*syscall.Stat_t).Uid }

func userNamespace() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
}

// volume is a folder with a file of root's and one of user 1000's.
func volume(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, uid := range map[string]int{"root": 0, "user": 1000} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o644), os.Chown(path, uid, uid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // the container's user writes there
		t.Fatal(err)
	}
	return dir
}

// The same files have other owners in the mount, and what is made there has the mount's on the disk.
func TestIDMappedMounts(t *testing.T) {
	h := newHost(t)
	if *programFlag != "" && !h.features().IDMap {
		t.Skip("the program does not tell that it can")
	}
	shiftedRoot(t, "0 200000 65536") // skips where the kernel cannot
	dir := volume(t)
	maps := []runtime.IDMap{{ContainerID: 0, HostID: 5000, Size: 10}, {ContainerID: 1000, HostID: 6000, Size: 1}}
	mount := func(m runtime.Mount) edit {
		return func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) {
			c.UID, c.GID, c.Mounts = 6000, 6000, []runtime.Mount{m}
		}
	}
	id, exit := h.runOnce(h.pod(), sh("stat -c %u:%g /v/root /v/user; touch /v/made; stat -c %u /v/made"),
		mount(runtime.Mount{Source: dir, Destination: "/v", UIDMaps: maps, GIDMaps: maps}))
	if out := h.output(id, "stdout"); exit.Code != 0 || out != "5000:5000\n6000:6000\n6000\n" {
		t.Errorf("exit %+v, the container sees %q, %q", exit, out, h.output(id, "stderr"))
	}
	if st, err := os.Stat(dir + "/made"); err != nil || owner(st) != 1000 {
		t.Errorf("on the disk it is of %v, %v", st, err)
	}

	users := []runtime.IDMap{{HostID: 200000, Size: 65536}}
	pod := h.pod(func(s *runtime.PodSpec) { s.UIDMaps, s.GIDMaps = users, users })
	root := shiftedRoot(t, "0 200000 65536")
	id, exit = h.runOnce(pod, sh("stat -c %u /v/root /v/user; touch /v/byroot"), mount(runtime.Mount{Source: dir, Destination: "/v", UIDMaps: users, GIDMaps: users}),
		func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) { c.Rootfs, c.UID, c.GID = root, 0, 0 })
	if out := h.output(id, "stdout"); exit.Code != 0 || out != "0\n1000\n" {
		t.Errorf("with a user namespace: exit %+v, %q, %q", exit, out, h.output(id, "stderr"))
	}
	if st, err := os.Stat(dir + "/byroot"); err != nil || owner(st) != 0 {
		t.Errorf("what the namespace's root made is of %v, %v", st, err)
	}
	if err := os.Remove(dir + "/byroot"); err != nil {
		t.Error(err)
	}

	id = h.container(h.pod(), sh("true"), mount(runtime.Mount{Source: "/proc/fs", Destination: "/v", UIDMaps: maps, GIDMaps: maps}))
	_, err := h.client.StartContainer(ctx(t), id)
	if err == nil || !strings.Contains(err.Error(), "/proc/fs") || !strings.Contains(err.Error(), "idmap") {
		t.Errorf("a file system that maps no ids: %v", err)
	}
}
