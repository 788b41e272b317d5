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
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/runtime"
)

const twoContainers = `
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: p}}
spec:
  initContainers:
  - {name: init, image: busybox}
  containers:
  - {name: web, image: busybox, ports: [{name: http, containerPort: 8080}]}
  - {name: backend, image: busybox}
  volumes: [{name: v, emptyDir: {}}]
`

func TestPodLife(t *testing.T) {
	w := newWorld(t)
	w.apply(twoContainers)
	w.until("init runs", func() bool { return w.pods.count("init", runtime.Running) == 1 })
	w.quiet()
	if n := w.pods.count("web", runtime.Running); n != 0 {
		t.Error("web runs before init has ended")
	}
	st := w.pod("p").Status
	if st.Phase != corev1.PodPending || st.ContainerStatuses[0].State.Waiting.Reason != "PodInitializing" || st.InitContainerStatuses[0].State.Running == nil {
		t.Errorf("status while initializing: %+v", st)
	}
	w.pods.end(t, "init", 0)
	w.until("the pod is ready", w.ready("p"))
	st = w.pod("p").Status
	if st.Phase != corev1.PodRunning || st.PodIP == "" || st.HostIP != "192.0.2.1" || st.InitContainerStatuses[0].State.Terminated.Reason != "Completed" {
		t.Errorf("status when ready: %+v", st)
	}
	uid := string(w.pod("p").UID)
	for _, dir := range []string{"pods/" + uid + "/volumes/v", "logs/default_p_" + uid + "/web", "objects/Pod/default/p.json"} {
		if _, err := os.Stat(filepath.Join(w.state, dir)); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Pod", Namespace: "default", Name: "p", Wait: true}); err != nil {
		t.Fatal(err)
	}
	w.quiet()
	if left := files(t, w.state); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if len(w.pods.Pods())+len(w.pods.Containers()) > 0 {
		t.Error("sandbox or containers are left")
	}
	if i, j := slices.Index(w.pods.history(), "StopContainer web"), slices.Index(w.pods.history(), "Remove"); i < 0 || j < i {
		t.Errorf("containers are asked to stop before the sandbox goes: %v", w.pods.history())
	}
}

// files lists what is below dir, besides the folders that are always there.
func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		if !slices.Contains([]string{".", "objects", "pods", "logs"}, rel) {
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestApplyTwice(t *testing.T) {
	w := newWorld(t)
	text := strings.Replace(twoContainers, "  initContainers:\n  - {name: init, image: busybox}\n", "", 1)
	if r := w.apply(text); r[0].Outcome != Created {
		t.Errorf("first: %+v", r)
	}
	w.until("the pod is ready", w.ready("p"))
	w.quiet()
	calls, version := w.pods.history(), w.pod("p").ResourceVersion
	if r := w.apply(text); r[0].Outcome != Unchanged {
		t.Errorf("second: %+v", r)
	}
	w.quiet()
	if diff := cmp.Diff(calls, w.pods.history()); diff != "" {
		t.Errorf("applying the same again did something:\n%s", diff)
	}
	if w.pod("p").ResourceVersion != version {
		t.Error("applying the same again was stored")
	}

	// Labels change nothing that runs.
	uid := w.pod("p").UID
	if r := w.apply(strings.Replace(text, "app: p", "app: q", 1)); r[0].Outcome != Configured || r[0].Note != "" {
		t.Errorf("labels: %+v", r)
	}
	w.quiet()
	if diff := cmp.Diff(calls, w.pods.history()); diff != "" {
		t.Errorf("changing labels did something:\n%s", diff)
	}

	// An image restarts its container alone.
	r := w.apply(strings.Replace(text, "web, image: busybox", "web, image: other", 1))
	if r[0].Outcome != Configured || r[0].Note != "containers whose image changed are restarted" {
		t.Errorf("image: %+v", r)
	}
	w.until("web has the new image", func() bool {
		p := w.pod("p")
		return p.Status.ContainerStatuses[0].RestartCount == 1 && isReady(p, &p.Status)
	})
	w.quiet()
	if diff := cmp.Diff([]string{"StopContainer web", "CreateContainer web", "StartContainer web"}, w.pods.history()[len(calls):]); diff != "" {
		t.Error(diff)
	}

	// Anything else makes another pod.
	r = w.apply(strings.Replace(text, "spec:\n", "spec:\n  hostname: other\n", 1))
	if r[0].Note != "the pod is re-created: spec.hostname changed" {
		t.Errorf("hostname: %+v", r)
	}
	w.until("the new pod is ready", func() bool { return w.pod("p").UID != uid && w.ready("p")() })
	w.quiet()
	if n := len(w.pods.Pods()); n != 1 {
		t.Errorf("%d sandboxes", n)
	}
	for _, f := range files(t, w.state) {
		if strings.Contains(f, string(uid)) {
			t.Errorf("the former pod left %s", f)
		}
	}
}

// Other resources reach a running container, by a restart where its policy wants
// one, unless the pod would be of another class.
func TestApplyResizes(t *testing.T) {
	w := newWorld(t)
	of := func(cpu, limits string) string {
		return strings.Replace(onePod, "{name: c, image: busybox}", "{name: c, image: busybox, resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}], "+
			"resources: {requests: {cpu: "+cpu+"}, limits: {"+limits+"}}}", 1)
	}
	onePod := func(text string) string { return strings.Replace(text, "POLICY", "Always", 1) }
	w.apply(onePod(of("100m", "cpu: 1, memory: 64Mi")))
	w.until("the pod is ready", w.ready("p"))
	uid := w.pod("p").UID
	for _, step := range []struct {
		cpu, limits string
		calls       []string
		want        runtime.Resources
	}{
		{"200m", "cpu: 2, memory: 64Mi", []string{"Update c"}, runtime.Resources{CPUShares: 204, CPUQuota: 200_000, CPUPeriod: 100_000, MemoryLimit: 64 << 20}},
		{"200m", "memory: 64Mi", []string{"Update c"}, runtime.Resources{CPUShares: 204, CPUQuota: -1, CPUPeriod: 100_000, MemoryLimit: 64 << 20}},
		{"200m", "memory: 96Mi", []string{"StopContainer c", "CreateContainer c", "StartContainer c"}, runtime.Resources{CPUShares: 204, MemoryLimit: 96 << 20}},
	} {
		w.quiet()
		calls := len(w.pods.history())
		if r := w.apply(onePod(of(step.cpu, step.limits))); r[0].Note != "running containers are resized" {
			t.Errorf("%s: %+v", step.limits, r[0])
		}
		w.until("it has "+step.limits, func() bool {
			p := w.pod("p")
			return isReady(p, &p.Status) && same(p.Status.ContainerStatuses[0].Resources, p.Spec.Containers[0].Resources)
		})
		w.quiet()
		if diff := cmp.Diff(step.calls, w.pods.history()[calls:]); diff != "" {
			t.Errorf("%s: %s", step.limits, diff)
		}
		got := w.pods.running(t, "c").Config.Resources
		step.want.PidsLimit, step.want.OOMScoreAdj = got.PidsLimit, got.OOMScoreAdj
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s: %s", step.limits, diff)
		}
	}
	if r := w.apply(onePod(of("200m", "cpu: 200m, memory: 96Mi"))); !strings.Contains(r[0].Note, "re-created") && w.pod("p").UID == uid {
		t.Errorf("another class: %+v", r[0])
	}
}

const onePod = `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {restartPolicy: POLICY, containers: [{name: c, image: busybox}]}
`

// The kubelet's back-off: at once, then 10 s doubling to 300 s, forgotten after ten minutes of running.
func TestBackoff(t *testing.T) {
	w := newWorld(t)
	w.apply(strings.Replace(onePod, "POLICY", "Always", 1))
	running := func(n int32) func() bool {
		return func() bool {
			st := w.pod("p").Status.ContainerStatuses
			return len(st) == 1 && st[0].State.Running != nil && st[0].RestartCount == n
		}
	}
	w.until("it runs", running(0))
	for n, delay := range []time.Duration{0, 10, 20, 40, 80, 160, 300, 300} {
		delay *= time.Second
		w.quiet()
		w.pods.end(t, "c", 1)
		if delay > 0 {
			w.until("it waits", func() bool {
				s := w.pod("p").Status.ContainerStatuses[0]
				return s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff" && s.LastTerminationState.Terminated.ExitCode == 1
			})
			w.quiet()
			w.clock.advance(delay - time.Second)
			w.quiet()
			if c := w.pods.count("c", runtime.Running); c != 0 {
				t.Fatalf("restart %d came before %s", n, delay)
			}
			w.clock.advance(time.Second)
		}
		w.until("it runs again", running(int32(n+1)))
	}
	w.quiet()
	w.clock.advance(10 * time.Minute)
	w.quiet()
	w.pods.end(t, "c", 1)
	w.until("it runs at once", running(9))
	w.quiet()
	if n := len(w.pods.Containers()); n != 2 {
		t.Errorf("%d attempts are kept, want the last and the one before", n)
	}
	_, last, err1 := w.e.FindContainer("default", "p", "", false)
	_, prev, err2 := w.e.FindContainer("default", "p", "c", true)
	if err1 != nil || err2 != nil || !strings.HasSuffix(last, "/c/9.log") || !strings.HasSuffix(prev, "/c/8.log") {
		t.Errorf("logs: %s %v, %s %v", last, err1, prev, err2)
	}
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy string
		code   int
		phase  corev1.PodPhase
	}{{"Never", 0, "Succeeded"}, {"Never", 3, "Failed"}, {"OnFailure", 0, "Succeeded"}, {"OnFailure", 3, ""}} {
		t.Run(c.policy+string(rune('0'+c.code)), func(t *testing.T) {
			w := newWorld(t)
			w.apply(strings.Replace(onePod, "POLICY", c.policy, 1))
			w.until("it runs", func() bool { return w.pods.count("c", runtime.Running) == 1 })
			w.quiet()
			w.pods.end(t, "c", c.code)
			if c.phase == "" {
				w.until("it is restarted", func() bool { return w.pods.count("c", runtime.Running) == 1 })
				return
			}
			w.until("it has ended", func() bool { return w.pod("p").Status.Phase == c.phase })
			w.quiet()
			// After a reboot the records are gone, and it must not run again.
			w.stop()
			w.pods.mu.Lock()
			clear(w.pods.pods)
			clear(w.pods.ctrs)
			n := len(w.pods.calls)
			w.pods.mu.Unlock()
			w.start()
			w.quiet()
			if st := w.pod("p").Status; st.Phase != c.phase || st.ContainerStatuses[0].State.Terminated.ExitCode != int32(c.code) {
				t.Errorf("after a reboot: %+v", st)
			}
			if more := w.pods.history()[n:]; len(more) > 0 {
				t.Errorf("after a reboot: %v", more)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	for name, c := range map[string]struct{ spec, reason, message string }{
		"never":   {"{name: c, image: 'localhost/missing', imagePullPolicy: Never}", "ErrImageNeverPull", "image localhost/missing is not on this host and imagePullPolicy is Never; import it with: pausa images import"},
		"missing": {"{name: c, image: 'missing:1'}", "ErrImagePull ImagePullBackOff", "image missing:1 is not on this host and cannot be pulled; import it with: pausa images import"},
		"config":  {"{name: c, image: busybox, env: [{name: A, valueFrom: {configMapKeyRef: {name: m, key: k}}}]}", "CreateContainerConfigError", "env A: ConfigMap default/m does not exist; apply it, or set optional: true"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [" + c.spec + "]}\n")
			w.until("it waits", func() bool {
				s := w.pod("p").Status.ContainerStatuses[0].State.Waiting
				return s != nil && strings.Contains(c.reason, s.Reason) && s.Message == c.message
			})
			if _, _, err := w.e.FindContainer("default", "p", "c", false); err == nil || !strings.Contains(err.Error(), c.message) {
				t.Errorf("logs say %v", err)
			}
		})
	}
	t.Run("command", func(t *testing.T) {
		w := newWorld(t)
		w.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: b, command: [nosuch]}]}\n")
		w.until("it crash-loops", func() bool {
			s := w.pod("p").Status.ContainerStatuses[0]
			return s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff" && s.LastTerminationState.Terminated.Reason == "StartError"
		})
	})
	t.Run("sandbox", func(t *testing.T) {
		w := newWorld(t)
		w.pods.mu.Lock()
		w.pods.fail["Run"] = os.ErrPermission
		w.pods.mu.Unlock()
		w.apply(strings.Replace(onePod, "POLICY", "Always", 1))
		w.until("it says why", func() bool {
			st := w.pod("p").Status
			return st.Reason == "FailedCreatePodSandBox" && st.Message == "permission denied"
		})
		w.pods.mu.Lock()
		delete(w.pods.fail, "Run")
		w.pods.mu.Unlock()
		w.quiet()
		w.clock.advance(10 * time.Second)
		w.until("it is ready", w.ready("p"))
		if st := w.pod("p").Status; st.Reason != "" {
			t.Errorf("still says %s", st.Reason)
		}
	})
}

// A dead sandbox is replaced, with the restarts counted on.
func TestSandboxDies(t *testing.T) {
	w := newWorld(t)
	w.apply(strings.Replace(onePod, "POLICY", "Always", 1))
	w.until("it is ready", w.ready("p"))
	w.quiet()
	w.pods.mu.Lock()
	for _, p := range w.pods.pods {
		w.pods.stop(p.ID)
	}
	w.pods.mu.Unlock()
	w.until("it runs in another sandbox", func() bool {
		p := w.pod("p")
		return isReady(p, &p.Status) && p.Status.ContainerStatuses[0].RestartCount == 1
	})
	w.quiet()
	if n := len(w.pods.Pods()); n != 1 {
		t.Errorf("%d sandboxes", n)
	}
}

// The daemon is killed at every step of making and deleting a pod, before and
// after the step; the next start finishes, with nothing twice and nothing left.
func TestKilledAtEveryStep(t *testing.T) {
	text := strings.Replace(twoContainers, "  initContainers:\n  - {name: init, image: busybox}\n", "", 1)
	for step := 1; ; step++ {
		reached := 0
		for _, when := range []string{"before", "after"} {
			w := newWorld(t)
			n := 0
			kill := func(string) {
				w.pods.mu.Lock()
				defer w.pods.mu.Unlock()
				if n++; n == step {
					reached++
					go w.stop() // waits for the call that is under way
					time.Sleep(5 * time.Millisecond)
				}
			}
			hook := func(f func(string)) {
				w.pods.mu.Lock()
				defer w.pods.mu.Unlock()
				if w.pods.before, w.pods.after = nil, f; when == "before" {
					w.pods.before, w.pods.after = f, nil
				}
			}
			hook(kill)
			w.apply(text)
			w.quiet()
			if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Pod", All: true}); err != nil {
				t.Fatal(err)
			}
			w.quiet()
			w.stop()
			hook(nil)
			w.start()
			w.until("the pod is gone", w.gone("p"))
			w.quiet()
			if left := files(t, w.state); len(left) > 0 || len(w.pods.Pods()) > 0 {
				t.Errorf("killed %s step %d: left %v, %v", when, step, left, w.pods.Pods())
			}

			// The same kill, without the delete: it must come up.
			w = newWorld(t)
			n = 0
			hook(kill)
			w.apply(text)
			w.quiet()
			w.stop()
			hook(nil)
			w.start()
			w.until("the pod is ready", w.ready("p"))
			w.quiet()
			if web, all := w.pods.count("web", runtime.Running), len(w.pods.Pods()); web != 1 || all != 1 {
				t.Errorf("killed %s step %d: %d containers web run in %d sandboxes", when, step, web, all)
			}
			w.stop()
		}
		if reached == 0 {
			if step < 8 {
				t.Errorf("only %d steps", step)
			}
			return
		}
	}
}

func TestForceWhileStopping(t *testing.T) {
	w := newWorld(t)
	w.pods.deaf = true
	signalled := make(chan string, 10)
	w.apply(strings.Replace(onePod, "POLICY", "Always", 1))
	w.until("it is ready", w.ready("p"))
	w.quiet()
	w.pods.before = func(call string) {
		if strings.HasPrefix(call, "Signal") {
			signalled <- call
		}
	}
	opts := DeleteOptions{Kind: "Pod", Namespace: "default", Name: "p"}
	if _, err := w.e.Delete(context.Background(), opts); err != nil {
		t.Fatal(err)
	}
	<-signalled
	if p := w.pod("p"); p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 30 || isReady(p, &p.Status) {
		t.Errorf("while stopping: %+v", p.ObjectMeta)
	}
	if _, err := w.e.Apply(context.Background(), w.decode(strings.Replace(onePod, "POLICY", "Always", 1)), false); err == nil || !strings.Contains(err.Error(), "is being deleted") {
		t.Errorf("apply while stopping: %v", err)
	}
	var now time.Duration
	opts.Grace, opts.Wait = &now, true
	if _, err := w.e.Delete(context.Background(), opts); err != nil {
		t.Fatal(err)
	}
	if len(w.pods.Pods()) != 0 {
		t.Error("the sandbox is left")
	}
}

// Sandboxes of ours without an object are removed at start; those of the CRI are not ours.
func TestOrphans(t *testing.T) {
	w := newWorld(t)
	w.apply(strings.Replace(onePod, "POLICY", "Always", 1))
	w.until("it is ready", w.ready("p"))
	w.quiet()
	w.stop()
	w.pods.mu.Lock()
	for _, p := range w.pods.pods {
		foreign := *p
		foreign.ID, foreign.Config.Name, foreign.Config.Declared = "cri", "cri", false
		w.pods.pods["cri"] = &foreign
		break
	}
	w.pods.mu.Unlock()
	if err := os.Remove(filepath.Join(w.state, "objects/Pod/default/p.json")); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.until("only the other's pod is left", func() bool { p := w.pods.Pods(); return len(p) == 1 && p[0].ID == "cri" })
	w.quiet()
	for _, f := range files(t, w.state) {
		if strings.HasPrefix(f, "logs") || strings.HasPrefix(f, "pods") {
			t.Errorf("left %s", f)
		}
	}
}
