//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/integration/host"
	"github.com/pausa-run/pausa/integration/mkimage/image"
)

const busybox = "localhost/busybox:latest"

func TestMain(m *testing.M) {
	host.Main()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "integration: these tests make namespaces, mounts and cgroups: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// binaries is the folder of the built programs: PAUSA_TEST_BIN, or bin of this checkout.
func binaries(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("PAUSA_TEST_BIN")
	if dir == "" {
		dir = "../bin"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pausa", "pausa-keeper"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatalf("%v: run 'make build' first", err)
		}
	}
	return dir
}

// archive is the busybox image, made once.
var archive = sync.OnceValues(func() ([]byte, error) {
	s, err := image.Busybox("")
	if err != nil {
		return nil, err
	}
	s.Name = busybox
	s.Config.Cmd = []string{"sh"}
	return image.Bytes(s)
})

// node is a host with a daemon, for one test.
type node struct {
	*host.Host
	t    *testing.T
	base host.Snapshot
}

// newHost makes a host without a daemon. Its end is checked: no cgroup, mount or process may hold it.
func newHost(t *testing.T, name string) *node {
	t.Helper()
	h, err := host.Start(name, binaries(t))
	if err != nil {
		t.Fatal(err)
	}
	h.Env = []string{
		"PAUSA_NETWORK_CNI_CONF_DIR=" + h.Dir + "/cni", "PAUSA_IMAGES_REGISTRY_CONFIG=" + h.Dir + "/certs.d",
		"PAUSA_LOG_LEVEL=debug", "PAUSA_NODE_NAME=" + name,
	}
	n := &node{Host: h, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log of host %s:\n%s", name, h.LogTail())
		}
		if err := h.Close(); err != nil {
			t.Errorf("close host %s: %v", name, err)
		}
	})
	return n
}

// newNode makes a host, starts the daemon, imports busybox, and checks at the
// end of the test that nothing is left once all is deleted.
func newNode(t *testing.T, name string) *node {
	t.Helper()
	n := newHost(t, name)
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	n.baseline()
	return n
}

// baseline remembers what the host has now; the end of the test compares.
func (n *node) baseline() {
	n.t.Helper()
	var err error
	if n.base, err = n.Snapshot(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if !n.t.Failed() { // else the first failure is the one to read
			n.checkNothingLeft()
		}
	})
}

func (n *node) importBusybox() {
	n.t.Helper()
	raw, err := archive()
	if err != nil {
		n.t.Fatal(err)
	}
	n.importArchive(raw)
}

func (n *node) importArchive(raw []byte) {
	n.t.Helper()
	path := filepath.Join(n.Dir, "image.tar")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.ok("images", "import", path)
}

// checkNothingLeft empties the host and compares it with what it was at the start.
func (n *node) checkNothingLeft() {
	n.t.Helper()
	n.ok("delete", "--all", "-A")
	left, err := n.Leaks(n.base, 20*time.Second, infrastructure)
	if err != nil {
		n.t.Error(err)
	}
	for _, l := range left {
		n.t.Errorf("left on host %s: %s", n.Name, l)
	}
	if err := errors.Join(n.KillDaemon(syscall.SIGTERM), n.KillKeeper(syscall.SIGTERM)); err != nil {
		n.t.Error(err)
	}
	n.eventually("no process is left on host "+n.Name, func() error {
		procs, err := n.Processes()
		if err == nil && len(procs) > 0 {
			err = fmt.Errorf("without daemon and keeper there is still %+v", procs)
		}
		return err
	})
}

// infrastructure tells what the first pod makes and the host keeps.
func infrastructure(line string) bool {
	kind, what, _ := strings.Cut(line, " ")
	switch kind {
	case "link":
		return what == "pausa0"
	case "address":
		return strings.HasPrefix(what, "pausa0 ")
	case "nft":
		return !strings.HasPrefix(what, "element") // tables, chains and empty sets
	case "cgroup":
		name := filepath.Base(what) // a kubelet makes these
		return name == "kubepods" || name == "besteffort" || name == "burstable"
	case "mount", "file":
		return furniture(strings.TrimPrefix(what, host.RunDir+"/"))
	default:
		return false
	}
}

// furniture tells files and mounts under RUN that are made once.
func furniture(path string) bool {
	for _, pattern := range []string{
		"events.json", "images", "images/rootfs", "network/netns", "network/cni/results", "network/ipam/*/cursor/*", "network/routes.json", "keeper/filters-*", "keeper/seccomp*", "keeper/oci/*",
	} {
		if ok, _ := filepath.Match(pattern, path); ok {
			return true
		}
	}
	return false
}

// ok runs the command line and fails the test unless it exits with 0.
func (n *node) ok(args ...string) string {
	n.t.Helper()
	return n.okStdin("", args...)
}

func (n *node) okStdin(stdin string, args ...string) string {
	n.t.Helper()
	out, stderr, code := n.CLI(stdin, args...)
	if code != 0 {
		n.t.Fatalf("pausa %s: exit status %d\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

// fails runs the command line, expects the exit status and every word in its
// error, and nothing of it in the daemon's panics.
func (n *node) fails(stdin string, want int, words []string, args ...string) {
	n.t.Helper()
	out, stderr, code := n.CLI(stdin, args...)
	if code != want {
		n.t.Errorf("pausa %s: exit status %d, want %d\n%s%s", strings.Join(args, " "), code, want, out, stderr)
	}
	for _, w := range words {
		if !strings.Contains(out+stderr, w) {
			n.t.Errorf("pausa %s: no word of %q in:\n%s%s", strings.Join(args, " "), w, out, stderr)
		}
	}
}

// apply declares a manifest.
func (n *node) apply(manifest string) string {
	n.t.Helper()
	return n.okStdin(manifest, "apply", "-f", "-")
}

// pods are the pods that match a selector ("" all), in every namespace.
func (n *node) pods(selector string) []corev1.Pod {
	n.t.Helper()
	args := []string{"get", "pods", "-A", "-o", "json"}
	if selector != "" {
		args = append(args, "-l", selector)
	}
	var list corev1.PodList
	if err := json.Unmarshal([]byte(n.ok(args...)), &list); err != nil {
		n.t.Fatalf("read pods: %v", err)
	}
	return list.Items
}

// pod is one pod of the default namespace; nil when there is none.
func (n *node) pod(name string) *corev1.Pod {
	n.t.Helper()
	for _, p := range n.pods("") {
		if p.Name == name && p.Namespace == "default" {
			return &p
		}
	}
	return nil
}

// service is one Service of the default namespace.
func (n *node) service(name string) corev1.Service {
	n.t.Helper()
	var s corev1.Service
	if err := json.Unmarshal([]byte(n.ok("get", "service", name, "-o", "json")), &s); err != nil {
		n.t.Fatalf("read service: %v", err)
	}
	return s
}

// eventually repeats a check until it passes; the limit is a lost cause, not a promise.
func (n *node) eventually(what string, check func() error) {
	n.t.Helper()
	limit := time.Minute
	if os.Getenv("PAUSA_TEST_VM") != "" { // emulated, and perhaps on a busy machine
		limit = 5 * time.Minute
	}
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("waited in vain until %s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// waitReady waits until count pods match and are ready.
func (n *node) waitReady(selector string, count int) []corev1.Pod {
	n.t.Helper()
	var pods []corev1.Pod
	n.eventually(fmt.Sprintf("%d pods %s are ready", count, selector), func() error {
		pods = n.pods(selector)
		if len(pods) != count {
			return fmt.Errorf("there are %d", len(pods))
		}
		for _, p := range pods {
			if !isReady(p) {
				return fmt.Errorf("%s is %s: %+v", p.Name, p.Status.Phase, p.Status.ContainerStatuses)
			}
		}
		return nil
	})
	return pods
}

// waitPhase waits until a pod of the default namespace is in a phase.
func (n *node) waitPhase(name string, phase corev1.PodPhase) *corev1.Pod {
	n.t.Helper()
	var p *corev1.Pod
	n.eventually(name+" is "+string(phase), func() error {
		if p = n.pod(name); p == nil {
			return errors.New("there is no such pod")
		}
		if p.Status.Phase != phase {
			return fmt.Errorf("it is %s: %+v", p.Status.Phase, p.Status.ContainerStatuses)
		}
		return nil
	})
	return p
}

func isReady(p corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// shellPod is a pod of one container "main" that runs a shell script.
func shellPod(name, script string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %s
    command: [sh, -c]
    args: [%q]
`, name, busybox, script)
}
