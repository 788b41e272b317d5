//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Volumes of every kind, seen by two containers.
func TestVolumes(t *testing.T) {
	n := newNode(t, "volumes")
	hostDir := filepath.Join(n.Dir, "shared")
	if err := os.MkdirAll(hostDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(hostDir, "from-host"), []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.apply(fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, long.txt: "two\nlines\n"}
binaryData: {raw: AAEC}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: hush}
---
apiVersion: v1
kind: Pod
metadata: {name: vol, labels: {app: vol}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: first
    image: %[1]s
    command: [sh, -c, "echo from init > /work/file"]
    volumeMounts: [{name: work, mountPath: /work}]
  containers:
  - name: a
    image: %[1]s
    command: [sh, -c, "sleep 100000"]
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: key, key: password}}}
    volumeMounts:
    - {name: work, mountPath: /work}
    - {name: host, mountPath: /host, readOnly: true}
    - {name: settings, mountPath: /settings}
    - {name: key, mountPath: /key}
  - name: b
    image: %[1]s
    command: [sh, -c, "sleep 100000"]
    volumeMounts: [{name: work, mountPath: /w}]
  volumes:
  - {name: work, emptyDir: {}}
  - {name: host, hostPath: {path: %[2]s, type: Directory}}
  - {name: settings, configMap: {name: settings}}
  - {name: key, secret: {secretName: key, defaultMode: 0400}}
`, busybox, hostDir))
	n.waitReady("app=vol", 1)
	for _, c := range []struct{ container, script, want string }{
		{"a", "cat /work/file", "from init\n"},
		{"a", "cat /host/from-host", "host"},
		{"a", "touch /host/x 2>/dev/null || echo refused", "refused\n"},
		{"a", "cat /settings/color /settings/long.txt", "bluetwo\nlines\n"},
		{"a", "od -An -tx1 /settings/raw | tr -d ' '", "000102\n"},
		{"a", "cat /key/password; stat -Lc ' %a' /key/password", "hush 400\n"},
		{"a", "echo $COLOR $PASSWORD", "blue hush\n"},
		{"b", "echo more >> /w/file; cat /w/file", "from init\nmore\n"},
		{"a", "tail -n 1 /work/file", "more\n"},
	} {
		if out := n.ok("exec", "vol", "-c", c.container, "--", "sh", "-c", c.script); out != c.want {
			t.Errorf("%s in %s: %q, want %q", c.script, c.container, out, c.want)
		}
	}
}

// A container that ends is started again, later each time; its exit codes are told.
func TestRestartPolicy(t *testing.T) {
	n := newNode(t, "restart")
	policy := func(name, policy string, code int) string {
		return strings.Replace(shellPod(name, fmt.Sprintf("echo run; exit %d", code)), "spec:", "spec:\n  restartPolicy: "+policy, 1)
	}
	n.apply(policy("never-good", "Never", 0))
	n.apply(policy("never-bad", "Never", 3))
	n.apply(policy("onfailure-good", "OnFailure", 0))
	n.apply(policy("always", "Always", 0))
	n.waitPhase("never-good", corev1.PodSucceeded)
	n.waitPhase("onfailure-good", corev1.PodSucceeded)
	p := n.waitPhase("never-bad", corev1.PodFailed)
	if s := p.Status.ContainerStatuses[0]; s.RestartCount != 0 || s.State.Terminated == nil || s.State.Terminated.ExitCode != 3 {
		t.Errorf("never-bad: %+v", s)
	}
	n.eventually("always is restarted and then held back", func() error {
		s := n.pod("always").Status.ContainerStatuses
		if len(s) == 1 && s[0].RestartCount >= 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CrashLoopBackOff" {
			return nil
		}
		return fmt.Errorf("statuses %+v", s)
	})
	if out := n.ok("logs", "always", "--previous"); out != "run\n" {
		t.Errorf("log of the container before: %q", out)
	}
}

// Init containers run one after the other, before all others.
func TestInitContainers(t *testing.T) {
	n := newNode(t, "init")
	n.apply(`
apiVersion: v1
kind: Pod
metadata: {name: steps, labels: {app: steps}}
spec:
  restartPolicy: Never
  initContainers:
  - {name: one, image: localhost/busybox:latest, command: [sh, -c, "echo one >> /w/steps"], volumeMounts: [{name: w, mountPath: /w}]}
  - {name: two, image: localhost/busybox:latest, command: [sh, -c, "echo two >> /w/steps"], volumeMounts: [{name: w, mountPath: /w}]}
  containers:
  - {name: main, image: localhost/busybox:latest, command: [sh, -c, "cat /w/steps"], volumeMounts: [{name: w, mountPath: /w}]}
  volumes: [{name: w, emptyDir: {}}]
`)
	n.waitPhase("steps", corev1.PodSucceeded)
	if out := n.ok("logs", "steps", "-c", "main"); out != "one\ntwo\n" {
		t.Errorf("steps %q", out)
	}
}

// The containers of a pod share their network, host name and, when asked, processes.
func TestSharedNamespaces(t *testing.T) {
	n := newNode(t, "shared")
	n.apply(strings.Replace(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: two}}
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 1
  containers:
  - {name: a, image: %s, command: [sh, -c, "exec sleep 111111"]}
  - {name: b, image: IMAGE, command: [sh, -c, "exec sleep 222222"]}
`, busybox), "IMAGE", busybox, 1))
	n.waitReady("app=two", 1)
	ns := func(container, kind string) string {
		return n.ok("exec", "two", "-c", container, "--", "readlink", "/proc/self/ns/"+kind)
	}
	for _, kind := range []string{"net", "uts", "ipc", "pid"} {
		if a, b := ns("a", kind), ns("b", kind); a != b {
			t.Errorf("namespace %s: %s in a, %s in b", kind, a, b)
		}
	}
	if ns("a", "mnt") == ns("b", "mnt") {
		t.Error("the containers share a mount namespace")
	}
	if out := n.ok("exec", "two", "-c", "a", "--", "ps", "-o", "args"); !strings.Contains(out, "sleep 222222") {
		t.Errorf("a does not see b's process: %s", out)
	}
	if out := n.ok("exec", "two", "-c", "a", "--", "uname", "-n"); out != "two\n" {
		t.Errorf("host name %q", out)
	}
}

func TestRunImage(t *testing.T) {
	n := newNode(t, "run")
	n.ok("run", "-d", "--name", "made-by-run", busybox, "--", "sleep", "100000")
	n.eventually("the pod runs", func() error {
		if p := n.pod("made-by-run"); p == nil || p.Status.Phase != corev1.PodRunning {
			return errors.New("it does not")
		}
		return nil
	})
	if out := n.ok("run", "--rm", busybox, "--", "echo", "hello"); out != "hello\n" {
		t.Errorf("run --rm printed %q", out)
	}
	n.fails("", 5, nil, "run", "--rm", busybox, "--", "sh", "-c", "exit 5")
	if out := n.ok("images", "list"); !strings.Contains(out, "busybox") {
		t.Errorf("images list: %s", out)
	}
	n.fails("", 1, []string{"use"}, "images", "rm", busybox)
}

func TestDeleteWaits(t *testing.T) {
	n := newNode(t, "delete")
	n.apply(shellPod("stubborn", "trap '' TERM; while :; do sleep 0.1; done"))
	n.waitReady("app=stubborn", 1)
	n.ok("delete", "pod", "stubborn")
	if n.pod("stubborn") != nil {
		t.Error("delete came back before the pod was gone")
	}
	for _, comm := range n.processTable() {
		if comm == "sh" {
			t.Error("its process runs on")
		}
	}
}
