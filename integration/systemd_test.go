//go:build integration

package integration

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/integration/host"
)

// dropIn has the run folder on disk, where a reboot leaves it as no tmpfs does.
const dropIn = `[Service]
Environment=PAUSA_RUN=/var/lib/pausa-run PAUSA_SOCKET=` + host.Socket + ` PAUSA_LOG_LEVEL=debug PAUSA_NODE_NAME=vm
RuntimeDirectory=pausa
RuntimeDirectoryPreserve=yes
`

// systemdNode is the VM that the test runs in, with pausa as a service of systemd.
func systemdNode(t *testing.T) *node {
	t.Helper()
	if os.Getenv("PAUSA_TEST_VM") == "" {
		t.Skip("needs a machine of its own with systemd as process 1: make vm-systemd")
	}
	h, err := host.Here("vm", "/usr/local/bin")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Host: h, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", n.machine("journalctl", "-b", "-u", "pausa", "--no-pager", "-n", "60"))
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// machine runs a command on the machine and gives what it says.
func (n *node) machine(args ...string) string {
	n.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		n.t.Errorf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// install does what an administrator does, and starts the service.
func (n *node) install() {
	n.t.Helper()
	for _, name := range []string{"pausa", "pausa-keeper"} {
		n.machine("install", "-D", "-m", "0755", filepath.Join(binaries(n.t), name), "/usr/local/bin/"+name)
	}
	n.machine("install", "-D", "-m", "0644", "../pausa.service", "/etc/systemd/system/pausa.service")
	if err := os.MkdirAll("/etc/systemd/system/pausa.service.d", 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile("/etc/systemd/system/pausa.service.d/test.conf", []byte(dropIn), 0o644); err != nil {
		n.t.Fatal(err)
	}
	n.machine("systemctl", "daemon-reload")
	n.machine("systemctl", "enable", "--now", "pausa")
	n.importBusybox()
}

func (n *node) answering() {
	n.t.Helper()
	n.eventually("the daemon answers", func() error {
		_, stderr, code := n.CLI("", "info")
		if code != 0 {
			return errors.New(stderr)
		}
		return nil
	})
}

// units are the scopes and slices of containers that systemd knows.
func (n *node) units() string {
	n.t.Helper()
	return n.machine("systemctl", "list-units", "--all", "--no-legend", "--plain", "--no-pager", "pausa-*.scope", "pausa-*.slice")
}

// property is one property of a unit.
func (n *node) property(unit, name string) string {
	n.t.Helper()
	return n.machine("systemctl", "show", "--value", "-p", name, unit)
}

const slice = "kubepods-burstable-podx.slice"

// systemdPod is a pod as a kubelet with the systemd driver makes it, and a container with limits.
func systemdPod(k *kubelet, name, parent, script string, r *criv1.LinuxContainerResources) (sandbox, container string) {
	k.n.t.Helper()
	pod, config := k.sandboxConfig(name), k.containerConfig(script)
	pod.Linux.CgroupParent = parent
	config.Annotations = map[string]string{"org.systemd.property.MemoryMax": "uint64 1"} // must count for nothing
	config.Linux.Resources = r
	return k.launch(pod, config)
}

// TestSystemd: with systemd as process 1, containers are scopes in slices.
func TestSystemd(t *testing.T) {
	n := systemdNode(t)
	n.install()
	n.answering()
	k := newKubelet(t, n)
	if c, err := k.runtime.RuntimeConfig(k.ctx, &criv1.RuntimeConfigRequest{}); err != nil || c.Linux.CgroupDriver != criv1.CgroupDriver_SYSTEMD {
		t.Errorf("cgroup driver %v, %v, want SYSTEMD", c, err)
	}
	for _, parent := range []string{"/kubepods/podx", "/other.slice/" + slice, "kube--pods.slice"} {
		config := k.sandboxConfig("bad")
		config.Linux.CgroupParent = parent
		if _, err := k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: config}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("cgroup parent %s: %v, want InvalidArgument", parent, err)
		}
	}
	limits := &criv1.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512}
	sandbox, container := systemdPod(k, "limits", slice, "while :; do sleep 1; done", limits)
	scope := "pausa-" + container + ".scope"
	if got := n.property(scope, "Slice"); got != slice {
		t.Errorf("the scope is in %s, want %s", got, slice)
	}
	n.checkLimits(k, container, scope, 64<<20)

	// What is changed in place is changed in the unit, so that a reload keeps it.
	if _, err := k.runtime.UpdateContainerResources(k.ctx, &criv1.UpdateContainerResourcesRequest{
		ContainerId: container, Linux: &criv1.LinuxContainerResources{MemoryLimitInBytes: 128 << 20},
	}); err != nil {
		t.Error(err)
	}
	n.machine("systemctl", "daemon-reload")
	n.checkLimits(k, container, scope, 128<<20)

	n.execsLeaveNothing(k, container)
	n.machine("systemctl", "restart", "pausa")
	n.answering()
	n.checkLimits(k, container, scope, 128<<20)
	k.down(sandbox, container)

	sandbox, container = systemdPod(k, "own", "", "while :; do sleep 1; done", nil)
	if got, want := n.property("pausa-"+container+".scope", "Slice"), "pausa-pod"+sandbox+".slice"; got != want {
		t.Errorf("the scope is in %s, want %s", got, want)
	}
	k.down(sandbox, container)
	n.oomIsReported(k)
	n.eventually("systemd has no unit of a container or pod", func() error {
		if units := n.units(); units != "" {
			return errors.New(units)
		}
		return nil
	})
	n.machine("systemctl", "stop", slice)
}

// oomIsReported: systemd takes a scope's group away as soon as its last process
// has ended, in a race with the keeper that reads what happened.
func (n *node) oomIsReported(k *kubelet) {
	n.t.Helper()
	for i := range 5 {
		sandbox, container := systemdPod(k, fmt.Sprintf("oom%d", i), "", "exec tail /dev/zero", &criv1.LinuxContainerResources{MemoryLimitInBytes: 16 << 20})
		n.eventually("the container has ended", func() error {
			s, err := k.runtime.ContainerStatus(k.ctx, &criv1.ContainerStatusRequest{ContainerId: container})
			if err != nil || s.Status.State != criv1.ContainerState_CONTAINER_EXITED {
				return errors.Join(fmt.Errorf("status %v", s), err)
			}
			if s.Status.Reason != "OOMKilled" || s.Status.ExitCode != 137 {
				n.t.Errorf("reason %s, exit code %d, message %q: want OOMKilled, 137", s.Status.Reason, s.Status.ExitCode, s.Status.Message)
			}
			return nil
		})
		k.down(sandbox, container)
	}
}

// checkLimits compares the kernel's word and systemd's with what was asked for.
func (n *node) checkLimits(k *kubelet, container, scope string, memory int) {
	n.t.Helper()
	want := fmt.Sprint(memory)
	props := map[string]string{"MemoryMax": want}
	files := map[string]string{"memory.max": want, "cpu.max": "50000 100000"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil { // v1
		props = map[string]string{"MemoryLimit": want}
		files = map[string]string{"memory.limit_in_bytes": want, "cpu.cfs_quota_us": "50000", "cpu.shares": "512"}
	}
	props["CPUQuotaPerSecUSec"] = "500ms"
	for name, want := range props {
		if got := n.property(scope, name); got != want {
			n.t.Errorf("%s of the scope is %s, want %s", name, got, want)
		}
	}
	group := n.property(scope, "ControlGroup")
	for name, want := range files {
		found, _ := filepath.Glob("/sys/fs/cgroup" + group + "/" + name)
		if len(found) == 0 {
			found, _ = filepath.Glob("/sys/fs/cgroup/*" + group + "/" + name)
		}
		if len(found) == 0 {
			n.t.Errorf("the kernel has no %s for %s", name, group)
			continue
		}
		raw, err := os.ReadFile(found[0])
		if got := strings.TrimSpace(string(raw)); got != want {
			n.t.Errorf("%s is %q, %v, want %q", found[0], got, err, want)
		}
	}
}

// execsLeaveNothing: an exec whose time is over goes with all it has started.
func (n *node) execsLeaveNothing(k *kubelet, container string) {
	n.t.Helper()
	_, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{
		ContainerId: container, Timeout: 2, Cmd: []string{"sh", "-c", "setsid sh -c 'exec sleep 7777' & exec sleep 7777"},
	})
	if status.Code(err) != codes.DeadlineExceeded {
		n.t.Errorf("exec beyond its time: %v, want DeadlineExceeded", err)
	}
	n.eventually("no process of the exec is left", func() error {
		if out, err := exec.Command("pgrep", "-f", "sleep 7777").Output(); err == nil {
			return fmt.Errorf("processes %s", out)
		}
		return nil
	})
	n.eventually("no group of the exec is left", func() error {
		left, _ := filepath.Glob("/sys/fs/cgroup/*/kubepods*/*/*/*/exec-*")
		more, _ := filepath.Glob("/sys/fs/cgroup/kubepods*/*/*/*/exec-*")
		if left = append(left, more...); len(left) > 0 {
			return fmt.Errorf("groups %v", left)
		}
		return nil
	})
}

// webPods answer with their names behind a Service.
const webPods = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: localhost/busybox:latest
        command: [sh, -c, "mkdir -p /www; hostname > /www/name; exec httpd -f -p 8080 -h /www"]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`

// TestReboot: what was declared is there again after a reboot, under the same
// address, and records of processes that the reboot ended are gone.
func TestReboot(t *testing.T) {
	n := systemdNode(t)
	const remembered = "/root/cluster-ip"
	if os.Getenv("BOOT") == "1" {
		n.install()
		n.answering()
		n.apply(webPods)
		n.waitReady("app=web", 2)
		if err := os.WriteFile(remembered, []byte(n.service("web").Spec.ClusterIP), 0o600); err != nil {
			t.Fatal(err)
		}
		n.served()
		return
	}
	n.answering()
	n.waitReady("app=web", 2)
	old, err := os.ReadFile(remembered)
	if now := n.service("web").Spec.ClusterIP; err != nil || now == "" || now != string(old) {
		t.Errorf("cluster IP is %s, was %s before the reboot (%v)", now, old, err)
	}
	n.served()
	for _, folder := range []string{"pods", "keeper/pods", "keeper/containers"} {
		left, err := os.ReadDir("/var/lib/pausa-run/" + folder)
		if err != nil || len(left) != 2 {
			t.Errorf("%s has %v, %v: want two, of this boot", folder, left, err)
		}
	}
	held := 0
	for _, p := range n.pods("app=web") {
		held += len(p.Status.PodIPs)
	}
	if a := takenAddresses(t); len(a) != held {
		t.Errorf("the addresses %v are taken, but the pods have %d: those of before the reboot are free", a, held)
	}
	n.ok("delete", "--all", "-A")
	n.eventually("systemd has no unit of a container or pod, and no address is taken", func() error {
		if units, left := n.units(), takenAddresses(t); units != "" || len(left) > 0 {
			return fmt.Errorf("%s %v", units, left)
		}
		return nil
	})
}

// takenAddresses are those that the built-in network has given to pods.
func takenAddresses(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("/var/lib/pausa-run/network/ipam/*/addresses/*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// served asks the Service from the host.
func (n *node) served() {
	n.t.Helper()
	url := "http://" + n.service("web").Spec.ClusterIP + "/name"
	n.eventually("the Service answers", func() error {
		client := http.Client{Timeout: 20 * time.Second}
		answer, err := client.Get(url)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		out, err := io.ReadAll(answer.Body)
		if err == nil && !strings.HasPrefix(string(out), "web-") {
			err = fmt.Errorf("it said %q", out)
		}
		return err
	})
}
