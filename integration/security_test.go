//go:build integration

package integration

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/pausa-run/pausa/integration/host"
	"github.com/pausa-run/pausa/integration/mkimage/image"
)

const hostileImage = "localhost/hostile:latest"

// attacker is the program of integration/hostile, built once.
var attacker = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "hostile-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "hostile"), "./hostile")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the attacker: %w: %s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "hostile"))
})

// importImage imports busybox with the attacker in it and further layers on top.
func (n *node) importImage(name string, change func(*image.Spec), layers ...image.Layer) {
	n.t.Helper()
	program, err := attacker()
	if err != nil {
		n.t.Fatal(err)
	}
	s, err := image.Busybox("")
	if err != nil {
		n.t.Fatal(err)
	}
	s.Name, s.Config.Cmd = name, []string{"sh"}
	s.Layers = append(append(s.Layers, image.Layer{{Path: "bin/hostile", Mode: 0o755, Data: program}}), layers...)
	if change != nil {
		change(&s)
	}
	raw, err := image.Bytes(s)
	if err != nil {
		n.t.Fatal(err)
	}
	n.importArchive(raw)
}

// podOf is a pod of one container "main" with further YAML in the container and in the spec.
func podOf(name, imageName, script, container, spec string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
%s
  containers:
  - name: main
    image: %s
    command: [sh, -c]
    args: [%q]
%s
`, name, indent(spec, 2), imageName, script, indent(container, 4))
}

func indent(s string, by int) string {
	if s == "" {
		return ""
	}
	pad := strings.Repeat(" ", by)
	return pad + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n"+pad)
}

// canary is a file and an empty folder of the host that no container may touch.
type canary struct {
	t    *testing.T
	dir  string
	core []byte // kernel.core_pattern, the favourite of escapes
}

func (n *node) canary() canary {
	n.t.Helper()
	dir := filepath.Join(n.Dir, "canary")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "empty"), 0o777), os.Chmod(filepath.Join(dir, "empty"), 0o777),
		os.WriteFile(filepath.Join(dir, "file"), []byte("alive"), 0o666), os.Chmod(filepath.Join(dir, "file"), 0o666)); err != nil {
		n.t.Fatal(err)
	}
	core, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		n.t.Fatal(err)
	}
	return canary{n.t, dir, core}
}

func (c canary) check(after string) {
	c.t.Helper()
	if raw, err := os.ReadFile(filepath.Join(c.dir, "file")); err != nil || string(raw) != "alive" {
		c.t.Errorf("%s: the host's file is %q, %v", after, raw, err)
	}
	if in, err := os.ReadDir(filepath.Join(c.dir, "empty")); err != nil || len(in) != 0 {
		c.t.Errorf("%s: the host's empty folder has %v, %v", after, in, err)
	}
	if core, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err != nil || !bytes.Equal(core, c.core) {
		c.t.Errorf("%s: kernel.core_pattern is %q, was %q", after, core, c.core)
	}
}

// What a declared pod may do that asks for nothing.
func TestDefaultsAreSafe(t *testing.T) {
	n := newNode(t, "defaults")
	n.importImage(hostileImage, nil)
	n.apply(podOf("plain", hostileImage, "exec sleep 100000", "", ""))
	n.apply(podOf("user", hostileImage, "exec sleep 100000", "", "securityContext: {runAsUser: 1000}"))
	n.waitReady("", 2)
	in := func(pod, script string) string { return n.ok("exec", pod, "--", "sh", "-c", script) }
	for _, c := range []struct{ name, script, want string }{
		{"capabilities", "grep -E '^Cap(Inh|Amb)' /proc/1/status | awk '{print $2}' | sort -u", "0000000000000000\n"},
		{"bounding set", "grep -E '^Cap(Bnd|Prm|Eff)' /proc/1/status | awk '{print $2}' | sort -u", "00000000a80425fb\n"},
		{"seccomp", "grep '^Seccomp:' /proc/1/status", "Seccomp:\t2\n"},
		{"seccomp of exec", "grep '^Seccomp:' /proc/self/status", "Seccomp:\t2\n"},
		{"open files", "ls /proc/1/fd", "0\n1\n2\n"},
		{"masked files", "cat /proc/kcore /proc/keys /proc/timer_list /proc/interrupts 2>/dev/null | wc -c", "0\n"},
		{"masked folders", "ls /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | grep -v ':$' | wc -w", "0\n"},
		{"read-only paths", "echo x 2>&1 > /proc/sys/kernel/hostname | grep -c 'Read-only'", "1\n"},
		{"remount", "mount -o remount,rw /proc/sys 2>/dev/null || echo refused", "refused\n"},
		{"cgroups are read-only", "for f in $(find /sys/fs/cgroup -name cgroup.procs); do (echo 1 > $f) 2>/dev/null && echo wrote $f; done; echo done", "done\n"},
		{"devices", "mknod /tmp/mem c 1 1 && dd if=/tmp/mem of=/dev/null count=1 2>&1 | grep -c 'not permitted'", "1\n"},
		{"kernel messages", "mknod /tmp/kmsg c 1 11; cat /tmp/kmsg 2>&1 | grep -c 'not permitted'", "1\n"},
		{"limit of processes", "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max", "4096\n"},
	} {
		if got := in("plain", c.script); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	for line := range strings.Lines(in("plain", "hostile syscalls")) {
		if !strings.HasSuffix(line, " EPERM\n") && !strings.HasSuffix(line, " ENOSYS\n") {
			t.Errorf("the seccomp profile lets through: %s", line)
		}
	}
	address := n.pod("plain").Status.PodIP
	if out := in("user", "hostile ping "+address); out != "pong\n" {
		t.Errorf("ping as user 1000: %q", out)
	}
	if out := in("user", "grep CapEff /proc/self/status"); !strings.HasSuffix(out, "0000000000000000\n") {
		t.Errorf("user 1000 has capabilities: %s", out)
	}
}

// A pod on the host's network finds no socket of ours that lets it in, and the
// folders of the daemon are closed to others.
func TestSocketsAndFoldersAreClosed(t *testing.T) {
	n := newNode(t, "sockets")
	n.importImage(hostileImage, nil)
	n.apply(podOf("net", hostileImage, "hostile sockets; exec sleep 100000", "", "hostNetwork: true"))
	n.waitReady("app=net", 1)
	if out := n.ok("logs", "net"); out != "" {
		t.Errorf("a pod on the host's network: %s", out)
	}
	unixSockets, err := n.Output("cat", "/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(unixSockets, " @") {
		t.Errorf("there are abstract sockets:\n%s", unixSockets)
	}
	n.checkModes(n.StateDir, 0o700)
	run := n.Path(host.RunDir)
	n.checkModes(run, 0o711) // the root of a pod's user namespace has its folders below
	inRun, err := os.ReadDir(run)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range inRun {
		n.checkModes(filepath.Join(run, e.Name()), 0o711)
	}
	// The streaming port is open on loopback, and worthless without a token.
	listening, err := n.Output("sh", "-c", "awk '$4 == \"0A\" {print $2}' /proc/net/tcp /proc/net/tcp6")
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for l := range strings.FieldsSeq(listening) {
		address, port, _ := strings.Cut(l, ":")
		if address != "0100007F" {
			continue
		}
		number, err := strconv.ParseInt(port, 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		tried++
		for _, path := range []string{"/", "/exec/x", "/attach/x", "/portforward/x", "/../exec/x"} {
			out := n.ok("exec", "net", "--", "sh", "-c", fmt.Sprintf("printf 'GET %s HTTP/1.0\\r\\nConnection: Upgrade\\r\\nUpgrade: SPDY/3.1\\r\\n\\r\\n' | nc -w 5 127.0.0.1 %d | head -n 1", path, number))
			if strings.Contains(out, " 101 ") || strings.Contains(out, " 200 ") {
				t.Errorf("port %d answers %s with %q", number, path, out)
			}
		}
	}
	if tried == 0 {
		t.Errorf("no streaming port among %s", listening)
	}
}

// checkModes fails the test if path is open to others than root beyond mode.
func (n *node) checkModes(path string, mode os.FileMode) {
	n.t.Helper()
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm()&^mode != 0 {
		n.t.Errorf("mode of %s: %v, %v, want %o", path, info, err, mode)
	}
}

// Containers cannot write over the programs that start them, neither at the
// start nor by an exec (CVE-2019-5736).
func TestRuntimeIsNotOverwritten(t *testing.T) {
	n := newNode(t, "overwrite")
	n.importImage(hostileImage, nil, image.Layer{image.Symlink("bin/self", "/proc/self/exe")})
	sums := func() (out string) {
		for _, name := range []string{"pausa", "pausa-keeper"} {
			f, err := os.Open(filepath.Join(n.Bin, name))
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				t.Fatal(err)
			}
			f.Close()
			out += fmt.Sprintf("%s %x\n", name, h.Sum(nil))
		}
		return out
	}
	before := sums()
	n.apply(podOf("attacker", hostileImage, "exec hostile overwrite", "", ""))
	n.waitReady("app=attacker", 1)
	for range 10 {
		_, _, _ = n.CLI("", "exec", "attacker", "--", "/proc/self/exe", "init")
		_, _, _ = n.CLI("", "exec", "attacker", "--", "/bin/self", "init") // it fails, of course
	}
	for i := range 3 {
		n.apply(strings.Replace(podOf(fmt.Sprintf("self%d", i), hostileImage, "true", "", ""), "[sh, -c]", "[/bin/self, init]", 1))
	}
	n.eventually("the pods have ended", func() error {
		for i := range 3 {
			if p := n.pod(fmt.Sprintf("self%d", i)); p == nil || p.Status.Phase != "Failed" && p.Status.Phase != "Succeeded" {
				return fmt.Errorf("pod self%d is %v", i, p)
			}
		}
		return nil
	})
	if after := sums(); after != before {
		t.Errorf("the programs were\n%sand are\n%s", before, after)
	}
	n.apply(podOf("after", hostileImage, "exec sleep 100000", "", ""))
	n.waitReady("app=after", 1)
	t.Logf("the attacker said:\n%s", n.ok("logs", "attacker", "--tail", "5"))
}

// No working directory leads out of the container (CVE-2024-21626), and no folder of the host is made for one.
func TestWorkingDirectoryStaysInside(t *testing.T) {
	n := newNode(t, "workdir")
	c := n.canary()
	n.importImage(hostileImage, nil, image.Layer{image.Symlink("out", c.dir), image.Symlink("up", "../../../../.."+c.dir+"/empty")})
	dirs := []string{"/out/empty/new", "/up/new", "/out"}
	for fd := 3; fd < 32; fd++ {
		dirs = append(dirs, fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("/proc/thread-self/fd/%d/../..", fd))
	}
	// A folder of the host has no way up to the container's root, and the canary below it.
	script := fmt.Sprintf("readlink /proc/self/cwd; for up in . .. ../.. ../../.. ../../../.. ../../../../.. ../../../../../..; do cat $up%s/file 2>/dev/null && echo ESCAPED; done; true", c.dir)
	for i, dir := range dirs {
		n.apply(podOf(fmt.Sprintf("w%d", i), hostileImage, script, "workingDir: "+dir, "hostNetwork: true"))
	}
	n.eventually("all pods have ended", func() error {
		for _, p := range n.pods("") {
			if p.Status.Phase != "Failed" && p.Status.Phase != "Succeeded" {
				return fmt.Errorf("%s is %s: %+v", p.Name, p.Status.Phase, p.Status.ContainerStatuses)
			}
		}
		return nil
	})
	for i, dir := range dirs {
		out := n.ok("logs", fmt.Sprintf("w%d", i))
		if strings.Contains(out, "unreachable") || strings.Contains(out, "alive") || strings.Contains(out, "ESCAPED") {
			t.Errorf("working directory %s leads out: %s", dir, out)
		}
	}
	c.check("working directories")
}

// Images whose folders are links to the host, or to what the runtime mounts over.
func TestHostileImages(t *testing.T) {
	n := newNode(t, "images")
	c := n.canary()
	outside := c.dir + "/empty"
	climb := "../../../../../../../.." + outside
	for name, files := range map[string]image.Layer{
		"dev-is-a-link":        {image.Symlink("dev", climb)},
		"dev-absolute":         {image.Symlink("dev", outside)},
		"proc-is-a-link":       {image.Symlink("proc", climb)},
		"sys-is-a-link":        {image.Symlink("sys", climb)},
		"dev-null-core":        {image.Dir("dev"), image.Symlink("dev/null", "/proc/sys/kernel/core_pattern")},
		"dev-console-core":     {image.Dir("dev"), image.Symlink("dev/console", "/proc/sys/kernel/core_pattern")},
		"dev-pts-link":         {image.Dir("dev"), image.Symlink("dev/pts", climb)},
		"dev-shm-link":         {image.Dir("dev"), image.Symlink("dev/shm", climb)},
		"etc-is-a-link":        {image.Symlink("etc", climb)},
		"resolv-conf-is-link":  {image.Dir("etc"), image.Symlink("etc/resolv.conf", c.dir+"/file")},
		"hosts-is-a-link":      {image.Dir("etc"), image.Symlink("etc/hosts", "../../../../../.."+c.dir+"/file")},
		"passwd-is-a-link":     {image.Dir("etc"), image.Symlink("etc/passwd", c.dir+"/file")},
		"volume-target-link":   {image.Symlink("vol", climb)},
		"volume-parent-link":   {image.Symlink("vol", climb)},
		"sys-fs-cgroup-link":   {image.Dir("sys"), image.Dir("sys/fs"), image.Symlink("sys/fs/cgroup", climb)},
		"termination-log-link": {image.Dir("dev"), image.Symlink("dev/termination-log", c.dir+"/file")},
	} {
		t.Run(name, func(t *testing.T) {
			n.importImage("localhost/"+name+":1", func(s *image.Spec) {
				s.Config.Volumes = map[string]struct{}{"/../../.." + outside: {}, "/vol": {}}
				s.Config.Labels = map[string]string{
					"io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.container.terminationMessagePath": c.dir + "/file", "run.oci.hooks.prestart": "/bin/hostile",
				}
			}, files)
			mount := "/vol"
			if name == "volume-parent-link" {
				mount = "/vol/below"
			}
			n.apply(podOf(name, "localhost/"+name+":1", "echo x > /dev/null; echo x > /etc/resolv.conf; touch /vol/a /dev/b /dev/shm/c /sys/d /etc/e 2>/dev/null; true",
				"volumeMounts: [{name: v, mountPath: "+mount+"}]", "volumes: [{name: v, emptyDir: {}}]"))
			n.eventually("the pod has ended or cannot start", func() error {
				p := n.pod(name)
				if p == nil || len(p.Status.ContainerStatuses) == 0 {
					return errors.New("it has no status")
				}
				if st := p.Status.ContainerStatuses[0].State; st.Terminated == nil && (st.Waiting == nil || st.Waiting.Reason == "ContainerCreating") {
					return fmt.Errorf("it is %+v", st)
				}
				return nil
			})
			c.t = t
			c.check(name)
			if p := n.pod(name); len(p.Labels) != 1 || len(p.Annotations) > 0 {
				t.Errorf("the image's labels became the pod's: %v %v", p.Labels, p.Annotations)
			}
			n.ok("delete", "pod", name)
		})
	}
}

// A neighbour that flips a folder and a link at every moment cannot make a
// subPath mount the host's files (CVE-2021-30465, CVE-2017-1002101).
func TestSubPathRace(t *testing.T) {
	n := newNode(t, "subpath")
	c := n.canary()
	n.importImage(hostileImage, nil)
	shared := filepath.Join(n.Dir, "shared")
	if err := errors.Join(os.MkdirAll(filepath.Join(shared, "dir"), 0o777), os.Symlink(c.dir, filepath.Join(shared, "link")), os.WriteFile(filepath.Join(shared, "dir", "file"), []byte("own"), 0o644)); err != nil {
		t.Fatal(err)
	}
	volume := fmt.Sprintf("volumes: [{name: v, hostPath: {path: %s}}]", shared)
	n.apply(podOf("flip", hostileImage, "exec hostile flip /v/dir /v/link", "volumeMounts: [{name: v, mountPath: /v}]", volume))
	n.waitReady("app=flip", 1)
	saw := map[string]int{}
	for i := range 40 {
		name := fmt.Sprintf("reader%d", i)
		n.apply(podOf(name, hostileImage, "cat /inside/file; echo written > /inside/file; mkdir -p /inside/empty/made", "volumeMounts: [{name: v, mountPath: /inside, subPath: dir}]", volume+"\nhostNetwork: true"))
		n.eventually("the reader has ended or cannot start", func() error {
			p := n.pod(name)
			if p == nil || len(p.Status.ContainerStatuses) == 0 {
				return errors.New("it has no status")
			}
			st := p.Status.ContainerStatuses[0].State
			switch {
			case st.Terminated != nil:
				saw["ran"]++
			case st.Waiting != nil && st.Waiting.Reason != "ContainerCreating":
				saw["refused"]++
			default:
				return fmt.Errorf("it is %+v", st)
			}
			return nil
		})
		if out, _, _ := n.CLI("", "logs", name); strings.Contains(out, "alive") {
			t.Fatalf("%s read the host's file", name)
		}
		n.ok("delete", "pod", name)
	}
	c.check("the race")
	t.Logf("%v", saw)
}

// Output of a command is cut off, not collected without end (CVE-2022-31030), and a
// command that takes too long ends with all that it started.
func TestExecOfBoundedSize(t *testing.T) {
	n := newNode(t, "bounded")
	k := newKubelet(t, n)
	sandbox, container := k.up("yes", "while :; do sleep 1; done")
	before := n.memory("pausa", "serve")
	_, err := k.execSync(container, 3, "sh", "-c", "sleep 4241 & (trap '' TERM HUP; sleep 4242) & yes 0123456789012345678901234567890123456789")
	if err == nil {
		t.Error("a command that takes too long gave no error")
	}
	if after := n.memory("pausa", "serve"); after > before+64<<20 {
		t.Errorf("the daemon's memory rose from %d to %d bytes", before, after)
	}
	n.eventually("nothing is left of the command", func() error {
		procs, err := n.Processes()
		if err != nil {
			return err
		}
		for _, p := range procs {
			if p.State == "Z" || strings.Contains(p.Cmdline, "sleep 424") || strings.HasPrefix(p.Cmdline, "yes") {
				return fmt.Errorf("there is %+v", p)
			}
		}
		return nil
	})
	k.down(sandbox, container)
}

// memory is the resident memory of one of our programs, in bytes.
func (n *node) memory(comm, argument string) int64 {
	n.t.Helper()
	raw, err := os.ReadFile(n.program(comm, argument) + "/status")
	if err != nil {
		n.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "VmRSS:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		n.t.Fatal(err)
	}
	return kb << 10
}

// openFiles is how many descriptors one of our programs has.
func (n *node) openFiles(comm, argument string) int {
	n.t.Helper()
	fds, err := os.ReadDir(n.program(comm, argument) + "/fd")
	if err != nil {
		n.t.Fatal(err)
	}
	return len(fds)
}

// program is the folder below /proc of one of our programs on the host.
func (n *node) program(comm, argument string) string {
	n.t.Helper()
	procs, err := n.Processes()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range procs {
		if p.Comm == comm && strings.Contains(p.Cmdline, argument) {
			return fmt.Sprintf("/proc/%d", p.OuterPid)
		}
	}
	n.t.Fatalf("no %s runs", comm)
	return ""
}

// A pod that starts processes without end hits its own limit, not the host's.
func TestForkBomb(t *testing.T) {
	n := newNode(t, "bomb")
	n.importImage(hostileImage, nil)
	n.apply(podOf("bomb", hostileImage, "exec hostile bomb", "", ""))
	n.eventually("the limit is reached", func() error {
		out, _, _ := n.CLI("", "logs", "bomb") // an error while it is made
		var started int
		if _, err := fmt.Sscanf(out, "started %d", &started); err != nil {
			return fmt.Errorf("it says %q", out)
		}
		if started > 4096 {
			t.Errorf("%d processes were started", started)
		}
		return nil
	})
	n.ok("delete", "pod", "bomb")
}

// A volume in the place of /proc would take the runtime's own writes (CVE-2019-19921, CVE-2025-52881).
func TestProcIsNotShadowed(t *testing.T) {
	n := newNode(t, "proc")
	for i, path := range []string{"/proc", "/proc/self", "/proc/self/attr", "/../proc/1"} {
		name := fmt.Sprintf("p%d", i)
		_, stderr, code := n.CLI(podOf(name, busybox, "exec sleep 100000", "volumeMounts: [{name: v, mountPath: "+path+"}]", "volumes: [{name: v, emptyDir: {}}]"), "apply", "-f", "-")
		if code != 0 {
			if !strings.Contains(stderr, "mountPath") {
				t.Errorf("%s is refused without a reason: %s", path, stderr)
			}
			continue
		}
		n.eventually("the container is refused", func() error {
			p := n.pod(name)
			if p == nil || len(p.Status.ContainerStatuses) == 0 {
				return errors.New("it has no status")
			}
			st := p.Status.ContainerStatuses[0]
			if st.State.Running != nil {
				t.Fatalf("a container runs with a volume at %s", path)
			}
			if !strings.Contains(fmt.Sprint(st.State, st.LastTerminationState), "/proc") {
				return fmt.Errorf("it is %+v", st.State)
			}
			return nil
		})
	}
}

// Clients that come and go leave no descriptor open in the daemon or the keeper (CVE-2025-64329).
func TestClientsLeaveNothing(t *testing.T) {
	n := newNode(t, "clients")
	n.apply(shellPod("sh", "while :; do echo line; sleep 0.1; done"))
	n.waitReady("app=sh", 1)
	come := func(times int) {
		for i := range times {
			args := [][]string{{"attach", "sh"}, {"exec", "-i", "sh", "--", "cat"}, {"logs", "-f", "sh"}}[i%3]
			client := n.CLICommand(t.Context(), args...)
			// The client itself is killed, in the middle of things, not the nsenter that waits for it.
			at := slices.Index(client.Args, "--") + 1
			cmd := n.Command(t.Context(), slices.Concat([]string{"timeout", "-s", "KILL", fmt.Sprintf("0.%03d", 20+i%60)}, client.Args[at:])...)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			_ = cmd.Run()
			stdin.Close()
		}
	}
	come(6) // what is made once
	before := map[string]int{}
	for _, p := range []string{"pausa serve", "pausa-keeper "} {
		comm, arg, _ := strings.Cut(p, " ")
		before[p] = n.openFiles(comm, arg)
	}
	come(150)
	for p, had := range before {
		comm, arg, _ := strings.Cut(p, " ")
		n.eventually("the files of "+p+" are closed", func() error {
			if has := n.openFiles(comm, arg); has > had {
				return fmt.Errorf("it has %d open files, and had %d", has, had)
			}
			return nil
		})
	}
}
