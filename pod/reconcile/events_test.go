package reconcile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/event"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

// newEventWorld is a world whose events are kept.
func newEventWorld(t *testing.T, change func(*Options)) (*world, *event.Recorder) {
	events := event.Open(event.Options{Node: "node"})
	return newWorldWith(t, func(o *Options) {
		o.Events = events
		change(o)
	}), events
}

// told are the events as "kind/name[field] Type Reason xCount: message".
func told(r *event.Recorder) []string {
	var out []string
	for _, e := range r.List() {
		k := e.Kubernetes("node")
		out = append(out, fmt.Sprintf("%s/%s[%s] %s %s x%d: %s", e.Object.Kind, e.Object.Name, e.Object.Field, k.Type, e.Reason, e.Count, e.Message))
	}
	return out
}

// tells moves the clock by steps until there is an event that begins as given.
func (w *world) tells(r *event.Recorder, prefix string, step time.Duration) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if slices.ContainsFunc(told(r), func(s string) bool { return strings.HasPrefix(s, prefix) }) {
			return
		}
		w.clock.advance(step)
	}
	w.t.Fatalf("no event %q among\n%s", prefix, strings.Join(told(r), "\n"))
}

func TestEventsOfAPodsLife(t *testing.T) {
	registry := &fakeRegistry{users: map[string]string{}}
	w, events := newEventWorld(t, func(o *Options) { o.Pull = registry.pull })
	w.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {initContainers: [{name: i, image: "missing:1", command: [sleep]}], containers: [{name: c, image: "busybox:1"}]}}`)
	w.until("the first one runs", func() bool { return w.pods.count("i", runtime.Running) == 1 })
	w.pods.end(t, "i", 0)
	w.until("it is ready", w.ready("p"))
	w.quiet()
	if _, err := w.e.Delete(t.Context(), DeleteOptions{Kind: "Pod", Namespace: "default", Name: "p"}); err != nil {
		t.Fatal(err)
	}
	w.until("it is gone", w.gone("p"))
	want := []string{
		`Pod/p[spec.initContainers{i}] Normal Pulling x1: Pulling image "missing:1"`,
		`Pod/p[spec.initContainers{i}] Normal Pulled x1: Successfully pulled image "missing:1" in 0s`,
		`Pod/p[spec.initContainers{i}] Normal Created x1: Created container: i`,
		`Pod/p[spec.initContainers{i}] Normal Started x1: Started container i`,
		`Pod/p[spec.containers{c}] Normal Pulled x1: Container image "busybox:1" already present on machine`,
		`Pod/p[spec.containers{c}] Normal Created x1: Created container: c`,
		`Pod/p[spec.containers{c}] Normal Started x1: Started container c`,
		`Pod/p[spec.containers{c}] Normal Killing x1: Stopping container c`,
	}
	if got := told(events); !slices.Equal(got, want) {
		t.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if list := events.List(); len(list) > 0 && (list[0].Object.UID == "" || list[0].Object.UID != list[7].Object.UID) {
		t.Errorf("uids %q and %q", list[0].Object.UID, list[7].Object.UID)
	}
}

func TestEventsOfFailures(t *testing.T) {
	const one = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: %q%s}]}}"
	for what, c := range map[string]struct {
		image, more string
		prepare     func(*world, *fakeRegistry)
		want        []string
	}{
		"pull": {"missing:1", "", func(_ *world, r *fakeRegistry) { r.fail = errors.New("no route") }, []string{
			`Pod/p[spec.containers{c}] Warning Failed x1: Failed to pull image "missing:1": no route`,
			`Pod/p[spec.containers{c}] Normal BackOff x1: Back-off pulling image "missing:1"`,
			`Pod/p[spec.containers{c}] Warning Failed x2: Failed to pull`,
		}},
		"never":   {"missing:1", ", imagePullPolicy: Never", nil, []string{`Pod/p[spec.containers{c}] Warning ErrImageNeverPull x1: Container image "missing:1" is not present with pull policy of Never`}},
		"create":  {"busybox", "", func(w *world, _ *fakeRegistry) { w.pods.fail["CreateContainer c"] = errors.New("disk full") }, []string{"Pod/p[spec.containers{c}] Warning Failed x1: Error: disk full"}},
		"sandbox": {"busybox", "", func(w *world, _ *fakeRegistry) { w.pods.fail["Run"] = errors.New("no address is left") }, []string{"Pod/p[] Warning FailedCreatePodSandBox x1: Failed to create pod sandbox: no address is left"}},
		"crash": {"busybox", ", command: [nosuch]", nil, []string{
			"Pod/p[spec.containers{c}] Normal Created x2: Created container: c",
			"Pod/p[spec.containers{c}] Warning BackOff x1: Back-off restarting failed container c in pod p",
			"Pod/p[spec.containers{c}] Warning BackOff x2",
		}},
		"readiness": {"busybox", ", readinessProbe: {exec: {command: [probe]}, periodSeconds: 1}", func(w *world, _ *fakeRegistry) { w.pods.answer("probe", 1) }, []string{
			"Pod/p[spec.containers{c}] Warning Unhealthy x3: Readiness probe failed: the command ends with 1",
		}},
		"liveness": {"busybox", ", livenessProbe: {exec: {command: [probe]}, periodSeconds: 1, failureThreshold: 2}", func(w *world, _ *fakeRegistry) { w.pods.answer("probe", 1) }, []string{
			"Pod/p[spec.containers{c}] Warning Unhealthy x2: Liveness probe failed: the command ends with 1",
			"Pod/p[spec.containers{c}] Normal Killing x1: Container c is restarted: the liveness probe failed",
		}},
		"postStart": {"busybox", ", lifecycle: {postStart: {exec: {command: [probe]}}}", func(w *world, _ *fakeRegistry) { w.pods.answer("probe", 1) }, []string{"Pod/p[spec.containers{c}] Warning FailedPostStartHook x"}},
	} {
		t.Run(what, func(t *testing.T) {
			registry := &fakeRegistry{users: map[string]string{}}
			w, events := newEventWorld(t, func(o *Options) { o.Pull = registry.pull })
			if c.prepare != nil {
				c.prepare(w, registry)
			}
			w.apply(fmt.Sprintf(one, c.image, c.more))
			for _, want := range c.want {
				w.tells(events, want, 100*time.Millisecond)
			}
		})
	}
}

func TestEventsOfTheSandboxAndMemory(t *testing.T) {
	w, events := newEventWorld(t, func(*Options) {})
	w.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: busybox}]}}`)
	w.until("it is ready", w.ready("p"))
	w.pods.mu.Lock()
	for _, c := range w.pods.ctrs {
		c.Status, c.Exit = runtime.Exited, &runtime.Exit{ID: c.ID, Code: 137, OOMKilled: true, OOMKills: 1, OOMLimit: runtime.OOMContainer, FinishedAt: w.clock.Now()}
		w.pods.tell(pod.EventStopped, c.PodID, c.ID)
	}
	w.pods.mu.Unlock()
	w.tells(events, "Pod/p[spec.containers{c}] Warning OOMKilling x1: Container c was killed for its memory: ", 0)
	w.pods.mu.Lock()
	for id := range w.pods.pods {
		w.pods.stop(id)
	}
	w.pods.mu.Unlock()
	w.tells(events, "Pod/p[] Normal SandboxChanged x1: Pod sandbox changed, it will be killed and re-created.", 0)
}

func TestEventsOfDeploymentsAndServices(t *testing.T) {
	w, events := newEventWorld(t, func(*Options) {})
	w.apply(strings.Replace(web, "replicas: 4", "replicas: 1", 1))
	w.until("it is ready", w.settled(1))
	w.tells(events, "Deployment/web[] Normal SuccessfulCreate x1: Created pod: web-", 0)
	w.tells(events, "Service/web[] Normal EndpointsReady x1: ", 0)
	w.apply(strings.Replace(web, "replicas: 4", "replicas: 0", 1))
	w.tells(events, "Deployment/web[] Normal SuccessfulDelete x1: Deleted pod: web-", 0)
	w.tells(events, "Service/web[] Warning NoReadyEndpoints x1: ", 0)
	w.until("it is gone", w.settled(0))
	// As a hand has edited the files while no daemon ran.
	w.apply(`
apiVersion: v1
kind: Service
metadata: {name: twin}
spec: {selector: {app: web}, type: NodePort, ports: [{port: 80}]}
`)
	w.stop()
	var addrs [2]string
	for i, name := range []string{"twin", "web"} {
		o, _ := w.e.objects.get(manifest.Ref{Kind: manifest.KindService, Namespace: "default", Name: name})
		addrs[i] = o.Value().(*corev1.Service).Spec.ClusterIP
	}
	path := filepath.Join(w.state, "objects/Service/default/twin.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`"nodePort": *[0-9]+`).ReplaceAllString(strings.ReplaceAll(string(data), addrs[0], addrs[1]), `"nodePort":30080`)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.tells(events, "Service/web[] Warning ClusterIPAlreadyAllocated x1: cluster IP 10.96.0.", 0)
	w.tells(events, "Service/web[] Warning PortAlreadyAllocated x1: node port 30080/TCP of default/web: it belongs to service default/twin", 0)
}
