//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// specNode is a host with a seccomp profile of its own, which forbids to make folders.
func specNode(t *testing.T, name string) *node {
	t.Helper()
	n := newHost(t, name)
	profiles := filepath.Join(n.Dir, "seccomp")
	if err := os.MkdirAll(filepath.Join(profiles, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	const profile = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(filepath.Join(profiles, "sub", "nomkdir.json"), []byte(profile), 0o644); err != nil {
		t.Fatal(err)
	}
	n.settings(fmt.Sprintf("[security]\nseccomp_profiles = %q\n", profiles))
	n.restart()
	n.importBusybox()
	n.baseline()
	return n
}

// in runs a script in a container of the pod own.
func (n *node) in(pod, container, script string) string {
	n.t.Helper()
	return n.ok("exec", pod, "-c", container, "--", "sh", "-c", script)
}

// Fields of a pod that say who it is, what it may do and what it sees.
func TestPodSpec(t *testing.T) {
	n := specNode(t, "podspec")
	n.apply(fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: hush}
---
apiVersion: v1
kind: Pod
metadata: {name: own, labels: {app: own, tier: front}}
spec:
  terminationGracePeriodSeconds: 1
  hostUsers: false
  hostname: me
  subdomain: db
  setHostnameAsFQDN: true
  os: {name: linux}
  nodeSelector: {kubernetes.io/os: linux}
  tolerations: [{operator: Exists}]
  resources: {limits: {memory: 96Mi}}
  securityContext: {fsGroup: 2000}
  containers:
  - name: a
    image: %[1]s
    command: [sh, -c, "trap 'echo interrupted; exit 0' INT; while :; do sleep 1; done"]
    env: [{name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    lifecycle: {stopSignal: SIGINT}
    securityContext: {seccompProfile: {type: Localhost, localhostProfile: sub/nomkdir.json}, procMount: Unmasked}
    volumeMounts:
    - {name: work, mountPath: /work, subPathExpr: "$(WHO)/data", bindMountOptions: [noexec]}
    - {name: facts, mountPath: /facts}
    - {name: all, mountPath: /all}
  - name: b
    image: %[1]s
    command: [sh, -c, "while :; do sleep 1; done"]
    volumeMounts: [{name: work, mountPath: /work}]
  volumes:
  - {name: work, emptyDir: {}}
  - name: facts
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: memory, resourceFieldRef: {containerName: a, resource: limits.cpu}}]}
  - name: all
    projected:
      defaultMode: 0440
      sources: [{configMap: {name: settings}}, {secret: {name: key, items: [{key: password, path: deep/password}]}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]
`, busybox))
	n.waitReady("app=own", 1)
	for _, c := range []struct{ container, script, want string }{
		{"a", "mkdir /tmp/x 2>&1 || true", "mkdir: can't create directory '/tmp/x': Operation not permitted\n"},
		{"b", "mkdir /tmp/x && echo made", "made\n"},
		{"a", "awk '{print $1, $2, $3}' /proc/self/uid_map", "0 1073741824 65536\n"},
		{"a", "hostname; grep -c 'me.db.default.svc.cluster.local	me$' /etc/hosts | tr 2 1", "me.db.default.svc.cluster.local\n1\n"},
		{"a", "cp /bin/busybox /work/x; /work/x true 2>&1 | grep -o 'Permission denied'", "Permission denied\n"},
		{"b", "cat /work/own/data/x | wc -c; stat -c '%u %g' /work/own/data/x", "*\n0 2000\n"},
		{"a", "cat /facts/labels", "app=\"own\"\ntier=\"front\""},
		{"a", "cat /all/color /all/deep/password /all/name; stat -Lc ' %a %u' /all/name", "bluehushown 440 0\n"},
		{"a", "touch /all/x 2>&1 | grep -o 'Read-only file system'", "Read-only file system\n"},
		{"a", "grep -c ' /proc/[a-z]' /proc/self/mountinfo || true", "0\n"},
		{"b", "test $(grep -c ' /proc/[a-z]' /proc/self/mountinfo) -gt 3 && echo masked", "masked\n"},
	} {
		out := n.in("own", c.container, c.script)
		if want, any := strings.CutPrefix(c.want, "*"); out != c.want && (!any || !strings.HasSuffix(out, want)) {
			t.Errorf("%s in %s: %q, want %q", c.script, c.container, out, c.want)
		}
	}
	if limit := n.memoryOf("pod*"); limit != fmt.Sprint(96<<20) {
		t.Errorf("memory limit of the pod %s, want 96 Mi", limit)
	}
	p := n.pod("own")
	if p.Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("class %s", p.Status.QOSClass)
	}
	n.apply(strings.Replace(shellPod("noprofile", "exit 0"), "  - name: main\n", "  - name: main\n    securityContext: {seccompProfile: {type: Localhost, localhostProfile: none.json}}\n", 1))
	n.waitsFor("noprofile", "CreateContainerConfigError", "seccomp profile none.json")
}

// What a container's exit leads to, and a pod whose time is over.
func TestRestartRules(t *testing.T) {
	n := newNode(t, "rules")
	n.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: again}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: %[1]s, command: [sh, -c, "echo round >> /w/rounds"], volumeMounts: [{name: w, mountPath: /w}]}
  containers:
  - name: main
    image: %[1]s
    command: [sh, -c, "test $(wc -l < /w/rounds) -gt 1 && exit 0; exit 88"]
    volumeMounts: [{name: w, mountPath: /w}]
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [88]}}]
  - name: other
    image: %[1]s
    command: [sh, -c, "until test $(wc -l < /w/rounds) -gt 1; do sleep 0.1; done"]
    volumeMounts: [{name: w, mountPath: /w}]
  volumes: [{name: w, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  activeDeadlineSeconds: 1
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: %[1]s, command: [sleep, "100000"]}]
`, busybox))
	p := n.waitPhase("again", corev1.PodSucceeded)
	if s := p.Status.ContainerStatuses[0]; s.RestartCount != 1 {
		t.Errorf("main was restarted %d times, want once", s.RestartCount)
	}
	p = n.waitPhase("late", corev1.PodFailed)
	if s := p.Status.ContainerStatuses[0]; p.Status.Reason != "DeadlineExceeded" || s.State.Terminated == nil {
		t.Errorf("late: %s %s, %+v", p.Status.Reason, p.Status.Message, s)
	}
}

// What only some kernels have: AppArmor, huge pages, killing a whole container.
func TestPodSpecOfKernel(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/security/apparmor/profiles"); err != nil {
		t.Skip("needs a kernel with AppArmor: make vm")
	}
	n := specNode(t, "podspec")
	load := exec.Command("apparmor_parser", "--replace", "--skip-cache")
	load.Stdin = strings.NewReader("profile pausa-test-nowrite { file, signal, ptrace, deny /tmp/** w, }\n")
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("load a profile: %v: %s", err, out)
	}
	if err := os.WriteFile("/proc/sys/vm/nr_hugepages", []byte("8"), 0); err != nil {
		t.Fatal(err)
	}
	n.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: kern, labels: {app: kern}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {appArmorProfile: {type: Localhost, localhostProfile: pausa-test-nowrite}}
  containers:
  - name: a
    image: %[1]s
    command: [sh, -c, "while :; do sleep 1; done"]
    resources: {limits: {cpu: 1, memory: 64Mi, hugepages-2Mi: 4Mi}}
    volumeMounts: [{name: huge, mountPath: /huge}]
  - {name: b, image: %[1]s, command: [sleep, "100000"], securityContext: {appArmorProfile: {type: Unconfined}}}
  - {name: c, image: %[1]s, command: [sleep, "100000"], securityContext: {appArmorProfile: {type: RuntimeDefault}}}
  - name: oom
    image: %[1]s
    command: [sh, -c, "sleep 100000 & exec tail /dev/zero"]
    resources: {limits: {memory: 16Mi}}
    restartPolicy: Never
  volumes: [{name: huge, emptyDir: {medium: HugePages}}]
`, busybox))
	n.eventually("the containers run, and one was killed", func() error {
		p := n.pod("kern")
		if p == nil || len(p.Status.ContainerStatuses) != 4 {
			return errors.New("no status")
		}
		for i, s := range p.Status.ContainerStatuses {
			if i < 3 && s.State.Running == nil || i == 3 && s.State.Terminated == nil {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	if s := n.pod("kern").Status.ContainerStatuses[3].State.Terminated; s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("the container beyond its memory: %+v", s)
	}
	for container, want := range map[string]string{"a": "pausa-test-nowrite (enforce)", "b": "unconfined", "c": "pausa-default (enforce)"} {
		if out := strings.TrimSpace(n.in("kern", container, "cat /proc/1/attr/current")); out != want {
			t.Errorf("AppArmor profile of %s is %q, want %q", container, out, want)
		}
	}
	if out := n.in("kern", "a", "touch /tmp/x 2>&1 || true; touch /var/x && echo made"); !strings.Contains(out, "Permission denied") || !strings.HasSuffix(out, "made\n") {
		t.Errorf("what the profile forbids: %q", out)
	}
	if out := n.in("kern", "a", "grep ' /huge ' /proc/mounts"); !strings.Contains(out, "hugetlbfs") || !strings.Contains(out, "pagesize=2M") {
		t.Errorf("/huge is %q", out)
	}
	for file, want := range map[string]string{"hugetlb.2MB.max": fmt.Sprint(4 << 20), "memory.oom.group": "1"} {
		found, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", n.CgroupParent, "pod*", "*", file))
		values := map[string]bool{}
		for _, path := range found {
			raw, _ := os.ReadFile(path)
			values[strings.TrimSpace(string(raw))] = true
		}
		if !values[want] {
			t.Errorf("%s has the values %v in %d groups, want %s", file, values, len(found), want)
		}
	}
	n.apply(strings.Replace(shellPod("noprofile", "exit 0"), "  - name: main\n", "  - name: main\n    securityContext: {appArmorProfile: {type: Localhost, localhostProfile: never-loaded}}\n", 1))
	n.waitsFor("noprofile", "CreateContainerError CreateContainerConfigError", "AppArmor profile never-loaded", "apparmor_parser")
}
