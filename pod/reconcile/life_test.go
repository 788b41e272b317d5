package reconcile

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

const probedPod = `
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: p}}
spec:
  containers:
  - name: c
    image: busybox
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {exec: {command: [probe]}, periodSeconds: 1, failureThreshold: 2}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {selector: {app: p}, ports: [{port: 80, targetPort: http}]}
`

// tickUntil moves the clock until a condition holds.
func (w *world) tickUntil(what string, ok func() bool) {
	w.t.Helper()
	w.until(what, func() bool {
		if ok() {
			return true
		}
		w.clock.advance(100 * time.Millisecond)
		return false
	})
}

func TestReadinessGatesTheService(t *testing.T) {
	w := newWorld(t)
	w.pods.answer("probe", 1)
	w.apply(probedPod)
	w.until("it runs", func() bool { return w.pods.count("c", runtime.Running) == 1 })
	w.quiet()
	w.clock.advance(5 * time.Second)
	w.quiet()
	st := w.pod("p").Status.ContainerStatuses[0]
	if st.Ready || !*st.Started || w.ready("p")() || w.table.endpoints("s") != 0 {
		t.Errorf("not asked with success, but %+v, %d endpoints", st, w.table.endpoints("s"))
	}
	w.pods.answer("probe", 0)
	w.tickUntil("it is ready", w.ready("p"))
	w.until("it gets traffic", func() bool { return w.table.endpoints("s") == 1 })

	// A daemon that starts again does not take the traffic away.
	w.quiet()
	w.stop()
	w.start()
	w.until("it is ready after a restart", w.ready("p"))
	w.quiet()
	if w.table.endpoints("s") != 1 {
		t.Error("the restart took the endpoint")
	}
	w.pods.answer("probe", 1)
	w.tickUntil("it is not ready", func() bool { return !w.ready("p")() })
	w.until("it gets no traffic", func() bool { return w.table.endpoints("s") == 0 })
	if n := w.pods.count("c", runtime.Running); n != 1 {
		t.Error("readiness ended the container")
	}
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Pod", All: true, Wait: true}); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(w.run, "probes")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestLivenessRestarts(t *testing.T) {
	w := newWorld(t)
	w.apply(strings.Replace(strings.Replace(probedPod, "readinessProbe", "livenessProbe", 1), "spec:\n", "spec:\n  restartPolicy: OnFailure\n", 1))
	w.until("it is ready", w.ready("p"))
	w.quiet()
	w.pods.answer("probe", 1)
	w.tickUntil("it is restarted", func() bool {
		p := w.pod("p")
		return p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	last := w.pod("p").Status.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || !strings.HasPrefix(last.Message, "the liveness probe failed: the command ends with 1") {
		t.Errorf("last state %+v", last)
	}
	w.tickUntil("the second restart waits", func() bool {
		s := w.pod("p").Status.ContainerStatuses[0].State.Waiting
		return s != nil && s.Reason == "CrashLoopBackOff"
	})
}

func TestSidecars(t *testing.T) {
	w := newWorld(t)
	w.pods.answer("probe", 1)
	w.apply(`
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  restartPolicy: Never
  initContainers:
  - {name: one, image: b, restartPolicy: Always, startupProbe: {exec: {command: [probe]}, periodSeconds: 1, failureThreshold: 100}, lifecycle: {preStop: {exec: {command: [bye]}}}}
  - {name: two, image: b, restartPolicy: Always}
  - {name: init, image: b}
  containers:
  - {name: main, image: b, lifecycle: {preStop: {exec: {command: [bye]}}}}
`)
	w.until("the first sidecar runs", func() bool { return w.pods.count("one", runtime.Running) == 1 })
	w.quiet()
	w.clock.advance(3 * time.Second)
	w.quiet()
	if n := len(w.pods.Containers()); n != 1 {
		t.Errorf("%d containers before the sidecar has started", n)
	}
	w.pods.answer("probe", 0)
	w.tickUntil("init runs beside both", func() bool { return w.pods.count("two", runtime.Running)+w.pods.count("init", runtime.Running) == 2 })
	w.quiet()
	w.pods.end(t, "init", 0)
	w.until("it is ready", w.ready("p"))
	w.quiet()
	w.pods.end(t, "two", 0)
	w.until("a sidecar that ends is started again, whatever the policy", func() bool {
		return w.pods.count("two", runtime.Running) == 1 && w.ready("p")()
	})
	w.quiet()
	n := len(w.pods.history())
	w.pods.end(t, "main", 0)
	w.until("the pod has succeeded", func() bool { return w.pod("p").Status.Phase == corev1.PodSucceeded })
	w.quiet()
	want := []string{"StopContainer two", "Exec one bye", "StopContainer one", "Stop"}
	if diff := cmp.Diff(want, w.pods.history()[n:]); diff != "" {
		t.Errorf("after the main container:\n%s", diff)
	}
}

const hookedPod = `
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: p}}
spec:
  terminationGracePeriodSeconds: 10
  containers:
  - {name: c, image: b, lifecycle: {postStart: {exec: {command: [block]}}, preStop: {exec: {command: [block]}}}}
`

func TestHooks(t *testing.T) {
	w := newWorld(t)
	block := make(chan struct{})
	w.pods.block = block
	w.apply(hookedPod)
	w.until("it runs", func() bool { return w.pods.count("c", runtime.Running) == 1 })
	w.until("its hook runs", func() bool { return slices.Contains(w.pods.history(), "Exec c block") })
	if w.ready("p")() {
		t.Error("ready before the end of postStart")
	}
	close(block)
	w.until("it is ready", w.ready("p"))
	w.quiet()

	// A hook that hangs leaves two seconds of the grace period for the container.
	w.pods.mu.Lock()
	w.pods.block = make(chan struct{})
	n := len(w.pods.calls)
	w.pods.mu.Unlock()
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Pod", All: true}); err != nil {
		t.Fatal(err)
	}
	w.until("preStop runs", func() bool { return len(w.pods.history()) == n+1 })
	w.clock.advance(9 * time.Second)
	time.Sleep(20 * time.Millisecond) // time to do what must not be done
	if len(w.pods.history()) != n+1 {
		t.Errorf("before the grace period is over: %v", w.pods.history()[n:])
	}
	w.clock.advance(time.Second)
	w.until("the pod is gone", w.gone("p"))
	w.quiet()
	if diff := cmp.Diff([]string{"Exec c block", "StopContainer c", "Remove"}, w.pods.history()[n:]); diff != "" {
		t.Error(diff)
	}
}

func TestPostStartFails(t *testing.T) {
	w := newWorld(t)
	w.pods.answer("block", 1)
	w.apply(hookedPod)
	w.until("it is restarted and waits", func() bool {
		s := w.pod("p").Status.ContainerStatuses[0]
		return s.RestartCount == 1 && s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff"
	})
}

// A pod that is made anew ends the former one with its own hook, although the object is another.
func TestFormerPodKeepsItsHook(t *testing.T) {
	w := newWorld(t)
	w.apply(hookedPod)
	w.until("it is ready", w.ready("p"))
	w.quiet()
	n := len(w.pods.history())
	w.apply(strings.Replace(strings.Replace(hookedPod, ", preStop: {exec: {command: [block]}}", "", 1), "spec:\n", "spec:\n  hostname: other\n", 1))
	w.until("the former one is asked", func() bool { return len(w.pods.history()) > n+1 })
	w.until("the new one is ready", w.ready("p"))
	if h := w.pods.history()[n:]; h[0] != "Exec c block" || h[1] != "StopContainer c" {
		t.Errorf("calls %v", h)
	}
	w.quiet()
}

func TestBackoffOutlivesTheDaemon(t *testing.T) {
	w := newWorld(t)
	w.apply(strings.Replace(onePod, "POLICY", "Always", 1))
	restarts := func(n int32, running bool) func() bool {
		return func() bool {
			s := w.pod("p").Status.ContainerStatuses[0]
			return s.RestartCount == n && (s.State.Running != nil) == running
		}
	}
	w.until("it runs", restarts(0, true))
	w.quiet()
	w.pods.end(t, "c", 1)
	w.until("it runs again at once", restarts(1, true))
	w.quiet()
	w.pods.end(t, "c", 1)
	w.until("it waits", restarts(1, false))
	for range 3 {
		w.quiet()
		w.stop()
		w.start()
		w.until("the new daemon lets it wait", func() bool {
			s := w.pod("p").Status.ContainerStatuses[0].State.Waiting
			return s != nil && s.Reason == "CrashLoopBackOff" && strings.HasPrefix(s.Message, "back-off 10s")
		})
		w.quiet()
		if n := w.pods.count("c", runtime.Running); n != 0 {
			t.Fatal("the start of the daemon was one more restart")
		}
	}
	w.clock.advance(10 * time.Second)
	w.until("it runs when its time has come", restarts(2, true))
}

func TestDerivedBackoff(t *testing.T) {
	at := time.Unix(1000, 0)
	attempt := func(n uint32, ran time.Duration) pod.Container {
		return pod.Container{Config: pod.ContainerConfig{Attempt: n}, StartedAt: at, Exit: &runtime.Exit{FinishedAt: at.Add(ran)}}
	}
	for _, c := range []struct {
		attempts []pod.Container
		want     time.Duration
	}{
		{[]pod.Container{attempt(0, 0)}, 0},
		{[]pod.Container{attempt(1, 0), attempt(0, 0)}, 10 * time.Second},
		{[]pod.Container{attempt(3, 0), attempt(2, 0)}, 40 * time.Second},
		{[]pod.Container{attempt(4_000_000_000, 0)}, 300 * time.Second},
		{[]pod.Container{attempt(9, 0), attempt(8, time.Hour)}, 10 * time.Second},
	} {
		if got := derived(c.attempts); got != c.want {
			t.Errorf("after %d restarts: %s, want %s", c.attempts[0].Config.Attempt, got, c.want)
		}
	}
}

func TestTerminationMessage(t *testing.T) {
	w := newWorld(t)
	w.apply(strings.Replace(onePod, "POLICY, containers: [{name: c, image: busybox}]",
		"Never, containers: [{name: c, image: b, terminationMessagePolicy: FallbackToLogsOnError}, {name: d, image: b, terminationMessagePath: /last/words}]", 1))
	w.until("both run", func() bool { return w.pods.count("c", runtime.Running)+w.pods.count("d", runtime.Running) == 2 })
	w.quiet()
	p := w.pod("p")
	for _, c := range w.pods.Containers() {
		inside := map[string]string{"c": "/dev/termination-log", "d": "/last/words"}[c.Config.Name]
		m := c.Config.Mounts[len(c.Config.Mounts)-1]
		if m.Destination != inside || m.Readonly {
			t.Errorf("mount of %s: %+v", c.Config.Name, m)
		}
		if c.Config.Name == "d" {
			if err := os.WriteFile(m.Source, []byte("I was tired"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	log := filepath.Join(w.e.logDir(p), "c", "0.log")
	if err := os.WriteFile(log, []byte("2026-11-22T12:00:00Z stdout F one\n2026-11-22T12:00:01Z stderr P tw\n2026-11-22T12:00:01Z stderr F o\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.pods.end(t, "c", 3)
	w.pods.end(t, "d", 0)
	w.until("it has ended", func() bool { return w.pod("p").Status.Phase == corev1.PodFailed })
	st := w.pod("p").Status.ContainerStatuses
	if a, b := st[0].State.Terminated.Message, st[1].State.Terminated.Message; a != "one\ntwo\n" || b != "I was tired" {
		t.Errorf("messages %q and %q", a, b)
	}
}

func TestLogTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(strings.Repeat("2026-11-22T12:00:00Z stdout F 12345678901234567890123456789\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := logTail(path); len(got) != logTailBytes || !strings.HasSuffix(got, "\n12345678901234567890123456789\n") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
	if got := logTail(path + "x"); got != "" {
		t.Errorf("of nothing: %q", got)
	}
}

func TestServiceLinks(t *testing.T) {
	w := newWorld(t)
	w.apply(`
apiVersion: v1
kind: Service
metadata: {name: my-db}
spec: {clusterIP: 10.96.0.7, ports: [{name: sql-x, port: 5432}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{port: 1}]}
`)
	got := map[string]string{}
	p := &corev1.Pod{}
	p.Namespace = "default"
	for _, v := range w.e.serviceLinks(p) {
		got[v.Name] = v.Value
	}
	want := map[string]string{
		"MY_DB_SERVICE_HOST": "10.96.0.7", "MY_DB_SERVICE_PORT": "5432", "MY_DB_SERVICE_PORT_SQL_X": "5432", "MY_DB_SERVICE_PORT_DNS": "53",
		"MY_DB_PORT": "tcp://10.96.0.7:5432", "MY_DB_PORT_5432_TCP": "tcp://10.96.0.7:5432", "MY_DB_PORT_5432_TCP_PROTO": "tcp",
		"MY_DB_PORT_5432_TCP_PORT": "5432", "MY_DB_PORT_5432_TCP_ADDR": "10.96.0.7",
		"MY_DB_PORT_53_UDP": "udp://10.96.0.7:53", "MY_DB_PORT_53_UDP_PROTO": "udp", "MY_DB_PORT_53_UDP_PORT": "53", "MY_DB_PORT_53_UDP_ADDR": "10.96.0.7",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	no := false
	p.Spec.EnableServiceLinks = &no
	if got := w.e.serviceLinks(p); len(got) != 0 {
		t.Errorf("with enableServiceLinks false: %v", got)
	}
}

func TestNodeName(t *testing.T) {
	w := newWorld(t)
	text := strings.Replace(onePod, "POLICY", "Always", 1)
	w.apply(text)
	if got := w.pod("p").Spec.NodeName; got != "node" {
		t.Errorf("node name %q", got)
	}
	named := strings.Replace(text, "spec: {", "spec: {nodeName: node, ", 1)
	if r := w.apply(named); r[0].Outcome != Unchanged {
		t.Errorf("what was read back: %+v", r[0])
	}
	_, err := w.e.Apply(context.Background(), w.decode(strings.Replace(named, "nodeName: node", "nodeName: other", 1)), false)
	if err == nil || !strings.Contains(err.Error(), "spec.nodeName is other, and this host is node") {
		t.Errorf("for another host: %v", err)
	}
}

const rolling = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  replicas: 2
  minReadySeconds: 5
  progressDeadlineSeconds: 60
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec:
      containers:
      - {name: c, image: IMAGE, readinessProbe: {exec: {command: [PROBE]}, periodSeconds: 1}}
`

func (w *world) rollout(name string) appsv1.DeploymentStatus {
	w.t.Helper()
	list, err := w.e.Get(manifest.KindDeployment, "default", name, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return list[0].Value().(*appsv1.Deployment).Status
}

func progressing(st appsv1.DeploymentStatus) string {
	for _, c := range st.Conditions {
		if c.Type == appsv1.DeploymentProgressing {
			return string(c.Status) + " " + c.Reason
		}
	}
	return ""
}

// A broken template leaves the old pods serving, and says so after its deadline.
func TestBrokenRollout(t *testing.T) {
	w := newWorld(t)
	of := func(image, probe string) string {
		return strings.NewReplacer("IMAGE", image, "PROBE", probe).Replace(rolling)
	}
	w.apply(of("one", "probe"))
	w.tickUntil("both are ready", func() bool { return w.rollout("d").ReadyReplicas == 2 })
	if n := w.rollout("d").AvailableReplicas; n != 0 {
		t.Errorf("%d are available before minReadySeconds", n)
	}
	w.tickUntil("both are available", func() bool { return w.rollout("d").AvailableReplicas == 2 })
	w.until("the rollout is done", func() bool { return progressing(w.rollout("d")) == "True NewReplicaSetAvailable" })
	w.quiet()
	w.pods.answer("broken", 1)
	w.apply(of("two", "broken"))
	w.until("a new pod runs", func() bool { return w.pods.count("c", runtime.Running) == 3 })
	if p := progressing(w.rollout("d")); p != "True ReplicaSetUpdated" {
		t.Errorf("progressing: %s", p)
	}
	w.tickUntil("the deadline is over", func() bool { return progressing(w.rollout("d")) == "False ProgressDeadlineExceeded" })
	w.quiet()
	if st := w.rollout("d"); st.AvailableReplicas != 2 || st.UpdatedReplicas != 1 || st.Replicas != 3 {
		t.Errorf("status %+v", st)
	}
	w.apply(of("three", "probe"))
	w.tickUntil("a good template replaces all", func() bool {
		st := w.rollout("d")
		return st.UpdatedReplicas == 2 && st.Replicas == 2 && progressing(st) == "True NewReplicaSetAvailable"
	})

	// Long after, a pod that fails is no failed rollout.
	w.quiet()
	w.clock.advance(time.Hour)
	w.quiet()
	w.pods.answer("probe", 1)
	w.tickUntil("pods fail", func() bool { return w.rollout("d").ReadyReplicas == 0 })
	if p := progressing(w.rollout("d")); p != "True NewReplicaSetAvailable" {
		t.Errorf("progressing: %s", p)
	}
}
