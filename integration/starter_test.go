//go:build integration

package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/integration/host"
)

// spyPlugin is a CNI plugin that tells what it was started with.
const spyPlugin = `#!/bin/sh
cat >/dev/null
[ "$CNI_COMMAND" = VERSION ] && { echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'; exit 0; }
[ "$CNI_COMMAND" = ADD ] || exit 0
{ umask; for fd in /proc/self/fd/*; do readlink $fd; done; grep SigIgn /proc/self/status; } >DIR/plugin
echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'
`

// inherited is a script that prints what the first process of a container and
// its own have of the daemon's starter: ignored signals, mask of file modes, environment.
const inherited = `awk '/^SigIgn/{print $2}' /proc/1/status /proc/self/status; umask; grep -c canary /proc/1/environ /proc/self/environ || true`

// A daemon that was started carelessly hands none of it on: neither to
// containers, commands, hooks and plugins, nor to the modes of files.
func TestStarterLeavesNoTrace(t *testing.T) {
	for _, mask := range []string{"000", "077"} {
		t.Run("umask "+mask, func(t *testing.T) {
			n := newHost(t, "starter"+mask)
			if err := os.Mkdir(n.StateDir, 0o755); err != nil { // as an administrator might
				t.Fatal(err)
			}
			n.Starter = []string{"sh", "-c", "umask " + mask + `; trap '' HUP INT QUIT PIPE USR1; exec "$@" 7</etc/passwd 9</`, "sh"}
			n.Env = append(n.Env, "STARTERS_SECRET=canary", "PAUSA_NETWORK_CNI_BIN_DIRS="+n.Dir+"/cnibin")
			n.plugin("spy", spyPlugin)
			if err := n.Serve(); err != nil {
				t.Fatal(err)
			}
			n.importBusybox()
			n.baseline()
			hook := "lifecycle: {postStart: {exec: {command: [sh, -c, " + fmt.Sprintf("%q", "{ "+inherited+"; } >/dev/shm/hook") + "]}}}"
			n.apply(podOf("any", busybox, "touch /tmp/made; mkdir /tmp/dir; exec sleep 100000", hook, ""))
			n.apply(podOf("user", busybox, "cat /etc/hosts /etc/resolv.conf /etc/hostname /etc/passwd >/dev/null && ls / >/dev/null && exec sleep 100000", "", "securityContext: {runAsUser: 1000}"))
			n.waitReady("", 2)

			const nothing = "0000000000000000\n0000000000000000\n0022\n/proc/1/environ:0\n/proc/self/environ:0\n"
			for _, c := range []struct {
				name, want string
				command    []string
			}{
				{"a command", nothing, []string{"sh", "-c", inherited}},
				{"a hook", nothing, []string{"cat", "/dev/shm/hook"}},
				{"open files of the container", "0\n1\n2\n", []string{"ls", "/proc/1/fd"}},
				{"open files of a command", "0\n1\n2\n3\n", []string{"ls", "/proc/self/fd"}}, // 3 is the folder
				{"modes in the container", "755\n644\n755\n644\n", []string{"stat", "-c", "%a", "/", "/tmp/made", "/tmp/dir", "/etc/hosts"}},
				{"flags of /dev/shm", "rw,nosuid,nodev,noexec,relatime\n", []string{"awk", "$5==\"/dev/shm\"{print $6}", "/proc/self/mountinfo"}},
			} {
				if out := n.ok(append([]string{"exec", "any", "--"}, c.command...)...); out != c.want {
					t.Errorf("%s: %q, want %q", c.name, out, c.want)
				}
			}
			plugin, err := os.ReadFile(n.Dir + "/plugin")
			if err != nil || strings.Contains(string(plugin), "passwd") || !strings.HasPrefix(string(plugin), "0022\n") {
				t.Errorf("the plugin has %s, %v", plugin, err)
			}
			for _, p := range []string{"pausa serve", "pausa-keeper "} {
				comm, arg, _ := strings.Cut(p, " ")
				if fds, err := openFilesOf(n.program(comm, arg)); err != nil || strings.Contains(fds, "/etc/passwd") {
					t.Errorf("%s holds %s, %v", p, fds, err)
				}
			}
			n.checkPause()
			n.checkNoneCanWrite()
		})
	}
}

// plugin installs a CNI plugin and a network that uses it alone.
func (n *node) plugin(name, script string) {
	n.t.Helper()
	for path, content := range map[string]string{
		"cni/10-" + name + ".conflist": fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [{"type": %[1]q}]}`, name),
		"cnibin/" + name:               strings.ReplaceAll(script, "DIR", n.Dir),
	} {
		path = filepath.Join(n.Dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			n.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil { //nolint:gosec // it is a program
			n.t.Fatal(err)
		}
	}
}

// openFilesOf lists what the descriptors of a process are, by its folder in /proc.
func openFilesOf(proc string) (string, error) {
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return "", err
	}
	var all []string
	for _, fd := range fds {
		if to, err := os.Readlink(proc + "/fd/" + fd.Name()); err == nil {
			all = append(all, to)
		}
	}
	return strings.Join(all, "\n"), nil
}

// checkPause looks at every pause: it has nothing open, no environment, and no mount of the host.
func (n *node) checkPause() {
	n.t.Helper()
	procs, err := n.Processes()
	if err != nil {
		n.t.Fatal(err)
	}
	seen := 0
	for _, p := range procs {
		if !strings.HasPrefix(p.Cmdline, "pause ") {
			continue
		}
		seen++
		proc := fmt.Sprintf("/proc/%d", p.OuterPid)
		fds, err := openFilesOf(proc)
		environ, envErr := os.ReadFile(proc + "/environ")
		if fds != "/dev/null\n/dev/null\n/dev/null" || len(environ) > 0 || err != nil || envErr != nil {
			n.t.Errorf("pause has the files %q and the environment %q, %v, %v", fds, environ, err, envErr)
		}
		if list, err := os.ReadDir(proc + "/root"); err != nil || len(list) > 0 {
			n.t.Errorf("pause sees %v, %v", list, err)
		}
	}
	if seen == 0 {
		n.t.Errorf("no pause among %+v", procs)
	}
}

// checkNoneCanWrite looks at all that the daemon and the keeper have made.
func (n *node) checkNoneCanWrite() {
	n.t.Helper()
	for _, root := range []string{n.Path(host.RunDir), n.StateDir} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel := strings.TrimPrefix(path, root+"/")
			for _, theirs := range []string{"images/rootfs/*/fs", "images/overlay/snapshots/*/fs", "images/rw/*/upper", "images/rw/*/work/work", "images/trash/*", "pods/*/shm", "pods/*/volumes", "pods/*/messages"} {
				if ok, _ := filepath.Match(theirs, rel); ok {
					return fs.SkipDir // what is in it is a container's, and not open to the host's users
				}
			}
			info, err := d.Info()
			switch {
			case err != nil:
				return err
			case d.Type() == fs.ModeSymlink:
			case info.Mode().Perm()&0o022 != 0 || d.Type() == fs.ModeSocket && info.Mode().Perm() != 0o600:
				n.t.Errorf("mode of %s: %s", path, info.Mode())
			}
			return nil
		})
		if err != nil {
			n.t.Error(err)
		}
	}
}

// A user of the host without rights gets to nothing that is a container's:
// neither to secrets, nor to what one has made setuid root (CVE-2021-41103).
func TestHostUsersStayOut(t *testing.T) {
	n := newNode(t, "hostuser")
	const plant = "cp /bin/busybox /planted && chmod 4755 /planted && cp -a /planted /dev/shm"
	n.apply(`{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {password: canary}}`)
	n.apply(podOf("plain", busybox, plant+" && cp -a /planted /mem && cat /s/password >/dev/null && exec sleep 100000",
		"volumeMounts: [{name: s, mountPath: /s}, {name: mem, mountPath: /mem}, {name: dir, mountPath: /dir}, {name: dir, mountPath: /sub, subPath: a}]",
		"volumes: [{name: s, secret: {secretName: s}}, {name: mem, emptyDir: {medium: Memory}}, {name: dir, emptyDir: {}}]"))
	n.waitReady("", 1)
	k := newKubelet(t, n)
	userns := &criv1.UserNamespace{
		Mode: criv1.NamespaceMode_POD,
		Uids: []*criv1.IDMapping{{HostId: 200000, Length: 65536}}, Gids: []*criv1.IDMapping{{HostId: 300000, Length: 65536}},
	}
	pod, config := k.sandboxConfig("shifted"), k.containerConfig(plant+" && exec sleep 100000")
	pod.Linux.SecurityContext = &criv1.LinuxSandboxSecurityContext{NamespaceOptions: &criv1.NamespaceOption{UsernsOptions: userns}}
	config.Linux.SecurityContext.NamespaceOptions = &criv1.NamespaceOption{UsernsOptions: userns}
	sandbox, container := k.launch(pod, config)

	passable := []string{host.RunDir, host.RunDir + "/images", host.RunDir + "/images/rootfs"}
	closed := 0
	for _, root := range []string{host.RunDir, n.StateDir} {
		err := filepath.WalkDir(n.Path(root), func(path string, d fs.DirEntry, err error) error {
			inside := root + strings.TrimPrefix(path, n.Path(root))
			if err != nil || slices.Contains(passable, inside) {
				return err
			}
			if n.asUser(inside) == nil {
				t.Errorf("users of the host get to %s", inside)
				return nil
			}
			if closed++; d.IsDir() {
				return fs.SkipDir // what is below is behind the same door
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if closed < 10 {
		t.Errorf("only %d doors were tried", closed)
	}
	if open := n.shiftedFolders(300000); open != 1 {
		t.Errorf("%d folders are open to the root of a user namespace, want one", open)
	}
	if _, err := k.execSync(container, 10, "test", "-u", "/planted"); err != nil {
		t.Error(err)
	}
	k.down(sandbox, container)
}

// asUser is nil if a user of the host without rights may read, write, run or enter path.
func (n *node) asUser(path string) error {
	_, err := n.Output("setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "sh", "-c", `[ -r "$0" ] || [ -w "$0" ] || [ -x "$0" ]`, path)
	return err
}

// shiftedFolders counts the root file systems that somebody but root gets to.
func (n *node) shiftedFolders(gid uint32) (count int) {
	n.t.Helper()
	dir := n.Path(host.RunDir + "/images/rootfs")
	list, err := os.ReadDir(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, e := range list {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dir, e.Name()), &st); err != nil {
			n.t.Fatal(err)
		}
		switch {
		case st.Mode&0o7777 == 0o710 && st.Uid == 0 && st.Gid == gid:
			count++
		case st.Mode&0o7777 != 0o700 || st.Uid != 0 || st.Gid != 0:
			n.t.Errorf("%s is %d:%d, mode %o", e.Name(), st.Uid, st.Gid, st.Mode)
		}
	}
	return count
}
