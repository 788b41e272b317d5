package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: "busybox:1", ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, type: NodePort, ports: [{port: 80, targetPort: http, nodePort: 30080}]}
`

func (w *world) deployment() appsv1.DeploymentStatus {
	list, err := w.e.Get(manifest.KindDeployment, "default", "web", nil)
	if err != nil {
		return appsv1.DeploymentStatus{}
	}
	return list[0].Value().(*appsv1.Deployment).Status
}

func (w *world) settled(n int32) func() bool {
	return func() bool {
		st := w.deployment()
		return st.ReadyReplicas == n && st.UpdatedReplicas == n && st.Replicas == n
	}
}

func TestDeployment(t *testing.T) {
	w := newWorld(t)
	w.apply(web)
	w.until("4 pods are ready", w.settled(4))
	w.until("4 endpoints are written", func() bool { return w.table.endpoints("web") == 4 })
	before := w.uids()

	// A rolling update never has fewer than 3 ready pods or more than 5 in all.
	var low, high []int
	w.pods.mu.Lock()
	w.pods.after = func(string) {
		ready, all := 0, 0
		for _, o := range w.e.objects.list(manifest.KindPod, "") {
			p := o.Value().(*corev1.Pod)
			st := w.e.statusOf(p)
			if isReady(p, &st) {
				ready++
			}
			if p.DeletionTimestamp == nil {
				all++
			}
		}
		if ready < 3 {
			low = append(low, ready)
		}
		if all > 5 {
			high = append(high, all)
		}
	}
	w.pods.mu.Unlock()
	w.apply(strings.Replace(web, "busybox:1", "busybox:2", 1))
	w.until("all pods are new", func() bool {
		for _, uid := range w.uids() {
			if slices.Contains(before, uid) {
				return false
			}
		}
		return w.settled(4)()
	})
	w.quiet()
	if len(low)+len(high) > 0 {
		t.Errorf("ready pods fell to %v, pods rose to %v", low, high)
	}

	w.apply(strings.Replace(strings.Replace(web, "busybox:1", "busybox:2", 1), "replicas: 4", "replicas: 1", 1))
	w.until("one pod is left", func() bool { return w.settled(1)() && len(w.pods.Pods()) == 1 })
	w.until("one endpoint is left", func() bool { return w.table.endpoints("web") == 1 })

	// A pod that is deleted is made again.
	list, _ := w.e.Get(manifest.KindPod, "default", "", labels.SelectorFromSet(labels.Set{"app": "web"}))
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Pod", Namespace: "default", Name: list[0].Name(), Wait: true}); err != nil {
		t.Fatal(err)
	}
	w.until("there is another pod", w.settled(1))

	if _, err := w.e.Delete(context.Background(), DeleteOptions{All: true, Wait: true}); err != nil {
		t.Fatal(err)
	}
	w.quiet()
	if left := files(t, w.state); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if n := w.table.endpoints("web"); n != -1 {
		t.Error("the service is left in the table")
	}
}

func (w *world) uids() (out []string) {
	list, _ := w.e.Get(manifest.KindPod, "", "", nil)
	for _, o := range list {
		out = append(out, string(o.Meta().UID))
	}
	return out
}

func TestRollout(t *testing.T) {
	make := func(want int32, strategy appsv1.DeploymentStrategyType, hostPort bool) *appsv1.Deployment {
		d := &appsv1.Deployment{}
		d.Spec.Replicas, d.Spec.Strategy.Type = &want, strategy
		if strategy == appsv1.RollingUpdateDeploymentStrategyType {
			q := intstr.FromString("25%")
			d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &q, MaxUnavailable: &q}
		}
		if hostPort {
			d.Spec.Template.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{HostPort: 80}}}}
		}
		return d
	}
	// Pods: N new and ready, n new, O old and ready, o old.
	for _, c := range []struct {
		name     string
		d        *appsv1.Deployment
		pods     string
		ending   int
		create   int
		deleting string
	}{
		{"first", make(2, "RollingUpdate", false), "", 0, 2, ""},
		{"content", make(2, "RollingUpdate", false), "NN", 0, 0, ""},
		{"scale down takes unready first", make(1, "RollingUpdate", false), "NnN", 0, 0, "nN"},
		{"update surges", make(4, "RollingUpdate", false), "OOOO", 0, 1, "O"},
		{"update waits", make(4, "RollingUpdate", false), "nOOO", 1, 1, ""},
		{"update goes on", make(4, "RollingUpdate", false), "NOOO", 0, 1, "O"},
		{"unready old pods help nobody", make(2, "RollingUpdate", false), "oo", 0, 1, "oo"},
		{"one replica surges", make(1, "RollingUpdate", false), "O", 0, 1, ""},
		{"one replica waits", make(1, "RollingUpdate", false), "On", 0, 0, ""},
		{"one replica goes", make(1, "RollingUpdate", false), "ON", 0, 0, "O"},
		{"host ports never surge", make(1, "RollingUpdate", true), "O", 0, 0, "O"},
		{"host ports wait for the end", make(1, "RollingUpdate", true), "", 1, 0, ""},
		{"recreate", make(2, "Recreate", false), "OO", 0, 0, "OO"},
		{"recreate waits", make(2, "Recreate", false), "", 2, 0, ""},
		{"recreate makes", make(2, "Recreate", false), "", 0, 2, ""},
	} {
		var live []replica
		for i, r := range c.pods {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: string(r)}}
			p.CreationTimestamp = metav1.Unix(int64(i), 0)
			live = append(live, replica{pod: p, fresh: r == 'N' || r == 'n', available: r == 'N' || r == 'O'})
		}
		create, remove := rollout(c.d, live, c.ending)
		gone := ""
		for _, r := range remove {
			gone += r.pod.Name
		}
		if create != c.create || gone != c.deleting {
			t.Errorf("%s: create %d, delete %q; want %d, %q", c.name, create, gone, c.create, c.deleting)
		}
	}
}

// The last pod serves until its containers have stopped, and leaves the endpoints
// before its address goes; the table is written only when something has changed.
func TestEndpoints(t *testing.T) {
	w := newWorld(t)
	w.table.setLog(func(s string) {
		w.pods.mu.Lock()
		defer w.pods.mu.Unlock()
		w.pods.calls = append(w.pods.calls, s)
	})
	w.apply(strings.Replace(web, "replicas: 4", "replicas: 1", 1))
	w.until("the endpoint is written", func() bool { return w.table.endpoints("web") == 1 })
	list, err := w.e.Get(manifest.KindEndpoints, "default", "web", nil)
	if err != nil || list[0].Value().(*corev1.Endpoints).Subsets[0].Ports[0].Port != 8080 { //nolint:staticcheck // read only
		t.Errorf("endpoints: %v, %v", list, err)
	}
	w.quiet()
	n := w.table.syncs
	w.clock.advance(resyncEvery)
	w.quiet()
	if w.table.syncs != n {
		t.Error("the table was written without a change")
	}
	calls := len(w.pods.history())
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Deployment", Namespace: "default", Name: "web", Wait: true}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"Sync", "StopContainer c", "Sync", "Remove"}, w.pods.history()[calls:]); diff != "" {
		t.Error(diff)
	}
	w.table.watch <- "nft"
	w.until("a flushed table is written again", func() bool { w.table.mu.Lock(); defer w.table.mu.Unlock(); return w.table.fresh == 1 })
}

func TestServiceAddresses(t *testing.T) {
	w := newWorld(t)
	w.apply(web)
	get := func() corev1.ServiceSpec {
		list, err := w.e.Get(manifest.KindService, "default", "web", nil)
		if err != nil {
			t.Fatal(err)
		}
		return list[0].Value().(*corev1.Service).Spec
	}
	ip := get().ClusterIP
	if !strings.HasPrefix(ip, "10.96.0.") || get().Ports[0].NodePort != 30080 {
		t.Fatalf("spec: %+v", get())
	}
	w.stop()
	w.start()
	if r := w.apply(web); r[1].Outcome != Unchanged || get().ClusterIP != ip {
		t.Errorf("after a restart: %+v, %s", r, get().ClusterIP)
	}
	// The allocator knows what is stored: nobody else gets it, now or later.
	for text, want := range map[string]string{
		"{ports: [{port: 80}], clusterIP: " + ip + "}":            "web",
		"{ports: [{port: 80, nodePort: 30080}], type: NodePort}":  "web",
		"{ports: [{port: 80}], clusterIP: 192.168.9.9}":           "192.168.9.9",
		"{ports: [{port: 80, nodePort: 99}], type: NodePort}":     "99",
		"{ports: [{port: 80}], ipFamilies: [IPv6]}":               "v6",
		"{ports: [{port: 80}], ipFamilyPolicy: RequireDualStack}": "v6",
	} {
		objects := w.decode("apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: " + text + "\n")
		r, err := w.e.Apply(context.Background(), objects, false)
		if err == nil || !errors.Is(err, pod.ErrExists) || !strings.Contains(strings.ToLower(err.Error()), want) || r[0].Err == nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	if n := len(w.e.objects.list(manifest.KindService, "")); n != 1 {
		t.Errorf("%d services are stored", n)
	}
}

func TestApplyRefusals(t *testing.T) {
	w := newWorld(t)
	w.apply(`
apiVersion: v1
kind: Pod
metadata: {name: first}
spec: {containers: [{name: c, image: b, ports: [{containerPort: 80, hostPort: 8080}]}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: fixed}
immutable: true
data: {a: b}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: b}]}}
`)
	w.quiet()
	for _, c := range []struct{ text, want string }{
		{
			`{apiVersion: v1, kind: Pod, metadata: {name: q}, spec: {containers: [{name: c, image: b, ports: [{containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1}]}]}}`,
			"test.yaml:1: Pod default/q: host port 127.0.0.1:8080/TCP is taken by Pod default/first; use another port, or delete that first",
		},
		{
			`{apiVersion: v1, kind: Pod, metadata: {name: q, namespace: shop}, spec: {containers: [{name: c, image: b}]}}`,
			"test.yaml:1: Pod shop/q: namespace shop does not exist; apply a Namespace of that name first or in the same file",
		},
		{`{apiVersion: v1, kind: ConfigMap, metadata: {name: fixed}, data: {a: c}}`, "test.yaml:1: ConfigMap default/fixed is immutable; delete it first"},
		{
			`{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {selector: {matchLabels: {app: q}}, template: {metadata: {labels: {app: q}}, spec: {containers: [{name: c, image: b}]}}}}`,
			"test.yaml:1: Deployment default/web: spec.selector cannot be changed; delete the Deployment first",
		},
		{
			`{apiVersion: apps/v1, kind: Deployment, metadata: {name: two}, spec: {replicas: 2, selector: {matchLabels: {app: q}}, template: {metadata: {labels: {app: q}}, spec: {containers: [{name: c, image: b, ports: [{containerPort: 1, hostPort: 1}]}]}}}}`,
			"test.yaml:1: Deployment default/two: 2 replicas cannot all have host port 1; use a Service of type NodePort or one replica",
		},
	} {
		good := "\n---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: good}}\n"
		_, err := w.e.Apply(context.Background(), w.decode(c.text+good), false)
		if err == nil || err.Error() != c.want {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
	}
	if _, err := w.e.Get(manifest.KindConfigMap, "default", "good", nil); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("part of a refused request was stored: %v", err)
	}
	r, err := w.e.Apply(context.Background(), w.decode(web), true)
	if err != nil || r[1].Outcome != Created {
		t.Errorf("dry run: %+v, %v", r, err)
	}
	if _, err := w.e.Get(manifest.KindService, "default", "web", nil); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("a dry run was stored: %v", err)
	}
}

func TestNamespace(t *testing.T) {
	w := newWorld(t)
	w.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n---\n" + strings.ReplaceAll(web, "{name: web}", "{name: web, namespace: shop}") +
		"---\n{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: shop}, stringData: {a: b}}\n")
	w.until("the pods run", func() bool { return w.pods.count("c", runtime.Running) == 4 })
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Namespace", Name: "shop", Wait: true}); err != nil {
		t.Fatal(err)
	}
	w.quiet()
	if left := files(t, w.state); len(left) > 0 || len(w.pods.Pods()) > 0 {
		t.Errorf("left: %v, %v", left, w.pods.Pods())
	}
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Namespace", Name: "default"}); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("default: %v", err)
	}
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Pod", Namespace: "default", Name: "x"}); !errors.Is(err, pod.ErrNotFound) || err.Error() != "Pod default/x not found" {
		t.Errorf("not there: %v", err)
	}
	list, err := w.e.Get("", "", "", nil)
	if err != nil || len(list) != 1 || list[0].Ref().String() != "Namespace default" {
		t.Errorf("what is always there: %v, %v", list, err)
	}
}

// Files that a crash, a disk or a hand has spoilt are set aside; the rest is there.
// A bad file that cannot even be moved, as on a full disk, does not keep the daemon from starting.
func TestStoreCorruptionWithoutRoom(t *testing.T) {
	w := newWorld(t)
	w.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: good}}")
	w.stop()
	bad := filepath.Join(w.state, "objects/ConfigMap/default/half.json")
	// What is in the way of the folder "bad" stands for what keeps it from being made.
	if err := errors.Join(os.WriteFile(bad, []byte("{"), 0o600), os.WriteFile(filepath.Join(w.state, "objects/bad"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	w.start()
	if list, err := w.e.Get(manifest.KindConfigMap, "", "", nil); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := os.Stat(bad); err != nil {
		t.Error(err)
	}
}

func TestStoreCorruption(t *testing.T) {
	w := newWorld(t)
	w.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {k: v}}\n---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: good}}\n")
	w.stop()
	dir := filepath.Join(w.state, "objects/ConfigMap/default")
	good, err := os.ReadFile(filepath.Join(dir, "good.json"))
	if err != nil {
		t.Fatal(err)
	}
	whole, _ := os.ReadFile(filepath.Join(dir, "a.json"))
	bad := map[string]string{
		"half.json":  string(whole[:len(whole)/2]),
		"empty.json": "",
		"zero.json":  strings.Repeat("\x00", 100),
		"other.json": string(good), // the name does not fit
		"kind.json":  `{"apiVersion":"v1","kind":"Widget","metadata":{"name":"kind"}}`,
		"nouid.json": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"nouid","namespace":"default"}}`,
		"wrong.json": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"wrong","namespace":"default","uid":"x"},"data":{"a/b":""}}`,
	}
	for name, text := range bad {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 { // the second time there are files of the same names in bad
		w.start()
		list, err := w.e.Get(manifest.KindConfigMap, "", "", nil)
		if err != nil || len(list) != 2 {
			t.Errorf("start %d: %v, %v", i, list, err)
		}
		w.stop()
		entries, err := os.ReadDir(filepath.Join(w.state, "objects/bad"))
		if err != nil || len(entries) != len(bad)*(i+1) {
			t.Errorf("start %d: %d files set aside, %v", i, len(entries), err)
		}
		for name, text := range bad {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestStoreWritesWhole(t *testing.T) {
	w := newWorld(t)
	w.stop()
	if err := os.Chmod(w.state+"/objects", 0o500); err != nil {
		t.Fatal(err)
	}
	// Root writes anywhere: a file where a folder has to be makes writing fail.
	if err := os.WriteFile(filepath.Join(w.state, "objects/Secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := w.e.Apply(context.Background(), w.decode("{apiVersion: v1, kind: Secret, metadata: {name: s}}"), false)
	if err == nil || r[0].Err == nil || r[0].Outcome != "" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := w.e.Get(manifest.KindSecret, "", "s", nil); err == nil {
		t.Error("what is not on disk is shown")
	}
	w.start()
}

func TestManyPodsAtOnce(t *testing.T) {
	w := newWorld(t)
	var text strings.Builder
	for i := range 100 {
		fmt.Fprintf(&text, "---\n{apiVersion: v1, kind: Pod, metadata: {name: p%d}, spec: {containers: [{name: c, image: b}]}}\n", i)
	}
	w.apply(text.String())
	w.until("all run", func() bool { return w.pods.count("c", runtime.Running) == 100 })
	w.quiet()
	if n := len(w.pods.history()); n != 300 {
		t.Errorf("%d calls for 100 pods, want 300", n)
	}
}

// A daemon killed while it writes leaves folders and a temporary file: the next one takes them away.
func TestStoreAfterAKill(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "objects", manifest.KindService, "default")
	if err := errors.Join(os.MkdirAll(folder, 0o700), os.WriteFile(filepath.Join(folder, ".tmp-web.json-1"), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "objects")); err != nil || len(left) != 0 {
		t.Errorf("left in the store: %v, %v", left, err)
	}
}
