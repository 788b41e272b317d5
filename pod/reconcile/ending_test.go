package reconcile

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/runtime"
)

// The first rule that fits an exit counts, else the container's own policy, else the pod's.
func TestRestartRules(t *testing.T) {
	for name, c := range map[string]struct {
		pod, container string
		code           int
		phase          corev1.PodPhase // "" if it runs again
	}{
		"own policy over the pod's":          {"Always", "restartPolicy: Never", 3, "Failed"},
		"own policy restarts":                {"Never", "restartPolicy: Always", 0, ""},
		"own policy is content with success": {"Always", "restartPolicy: OnFailure", 0, "Succeeded"},
		"a rule that fits":                   {"Never", "restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42, 43]}}]", 43, ""},
		"a rule that does not":               {"Never", "restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]", 43, "Failed"},
		"a rule for all others":              {"Never", "restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: NotIn, values: [0]}}]", 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {restartPolicy: " + c.pod + ", containers: [{name: c, image: b, " + c.container + "}]}\n")
			w.until("it runs", func() bool { return w.pods.count("c", runtime.Running) == 1 })
			w.quiet()
			w.pods.end(t, "c", c.code)
			if c.phase == "" {
				w.until("it is restarted", func() bool { return w.pods.count("c", runtime.Running) == 1 })
				return
			}
			w.until("it has ended", func() bool { return w.pod("p").Status.Phase == c.phase })
		})
	}
}

// A container whose exit asks for it takes the whole pod back to its init containers.
func TestRestartAllContainers(t *testing.T) {
	const text = `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  restartPolicy: Never
  initContainers: [{name: first, image: b}]
  containers:
  - name: main
    image: b
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [88]}}]
  - {name: other, image: b}
`
	w := newWorld(t)
	w.apply(text)
	round := func() {
		t.Helper()
		w.until("the init container runs", func() bool { return w.pods.count("first", runtime.Running) == 1 })
		w.quiet()
		w.pods.end(t, "first", 0)
		w.until("both run", func() bool {
			return w.pods.count("main", runtime.Running) == 1 && w.pods.count("other", runtime.Running) == 1
		})
		w.quiet()
	}
	round()
	calls := len(w.pods.history())
	w.pods.end(t, "main", 88)
	round()
	got := w.pods.history()[calls:]
	want := []string{
		"StopContainer other", "RemoveContainer", "RemoveContainer", "RemoveContainer", "CreateContainer first", "StartContainer first",
	}
	if diff := cmp.Diff(want, got[:min(len(want), len(got))]); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if n := len(w.pods.Pods()); n != 1 {
		t.Errorf("%d sandboxes, want the same one", n)
	}
	if st := w.pod("p").Status.ContainerStatuses[0]; st.RestartCount != 1 {
		t.Errorf("restart count %d, want 1", st.RestartCount)
	}
	// The next one waits, with nothing else running meanwhile.
	w.pods.end(t, "main", 88)
	w.until("it waits", func() bool {
		s := w.pod("p").Status.ContainerStatuses[0].State.Waiting
		return s != nil && s.Reason == reasonCrashLoop && w.pods.count("other", runtime.Running) == 0
	})
	w.quiet()
	w.clock.advance(10 * time.Second)
	round()
	// Any other exit is the end of it.
	w.pods.end(t, "main", 1)
	w.pods.end(t, "other", 0)
	w.until("it has failed", func() bool { return w.pod("p").Status.Phase == corev1.PodFailed })
}

// A pod that has had its time is ended and says so, also by a daemon that was away.
func TestActiveDeadline(t *testing.T) {
	text := "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {activeDeadlineSeconds: 60, containers: [{name: c, image: b}]}\n"
	late := func(w *world) func() bool {
		return func() bool {
			st := w.pod("p").Status
			return st.Phase == corev1.PodFailed && st.Reason == "DeadlineExceeded" && st.Message != "" && w.pods.count("c", runtime.Running) == 0
		}
	}
	w := newWorld(t)
	w.apply(text)
	w.until("it is ready", w.ready("p"))
	w.quiet()
	w.clock.advance(59 * time.Second)
	w.quiet()
	if st := w.pod("p").Status; st.Phase != corev1.PodRunning {
		t.Fatalf("too early: %+v", st)
	}
	w.clock.advance(time.Second)
	w.until("it has ended", late(w))

	away := newWorld(t)
	away.apply(text)
	away.until("it is ready", away.ready("p"))
	away.quiet()
	away.stop()
	away.clock.advance(time.Hour)
	away.start()
	away.until("it has ended", late(away))
	away.quiet()
	if strings.Contains(strings.Join(away.pods.history(), " "), "CreateContainer c StartContainer c CreateContainer") {
		t.Error("it was started again")
	}
}
