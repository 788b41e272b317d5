package manifest

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func updating() bool { return flag.Lookup("update").Value.String() == "true" }

func TestMain(m *testing.M) {
	flag.Bool("update", false, "rewrite golden files and docs/support.md")
	flag.Parse()
	os.Exit(m.Run())
}

// golden compares text with a file, or rewrites the file with -update.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if updating() {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), renew with -update if it is meant:\n%s", path, diff)
	}
}

func TestErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*[nl]") // .yaml and .json
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			_, err = Decode(f, filepath.Base(file))
			if err == nil {
				t.Fatal("no error")
			}
			golden(t, file+".want", err.Error()+"\n")
		})
	}
}

func TestSupportMatrix(t *testing.T) {
	golden(t, "../../docs/support.md", SupportMatrix())
}

// Nobody is left to wonder: what a pod cannot have is refused with a reason.
func TestEveryPodFieldIsDecided(t *testing.T) {
	for _, s := range slices.Concat(podSections(), containerSections(), volumeSections()) {
		known := rules()[reflect.TypeOf(s.of)]
		for _, f := range fieldsOf(reflect.TypeOf(s.of)) {
			if _, ok := known[f.name]; !ok && f.name != "kind" && f.name != "apiVersion" {
				t.Errorf("%s.%s is neither supported nor refused with a reason", s.path, f.name)
			}
		}
	}
}

func decode(t *testing.T, text string) []Object {
	t.Helper()
	objects, err := Decode(strings.NewReader(text), "test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestDecode(t *testing.T) {
	objects := decode(t, `# a comment only
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: a, creationTimestamp: null}
  spec:
    containers:
    - &c
      name: x
      image: busybox
      resources: {limits: {cpu: 1, memory: 64Mi}}
      ports: [{containerPort: 8080, name: http}]
      env: [{name: A, value: "1"}, {name: EMPTY}]
    - {<<: *c, name: y, ports: []}
  status: {phase: Running, whatever: 1}
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: c}
  data: {empty: , text: "a\nb"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, namespace: shop}
spec:
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec: {containers: [{name: x, image: "busybox:1.36"}]}
---
`)
	var refs []string
	for _, o := range objects {
		refs = append(refs, o.Ref().String()+" from "+o.Source.String())
	}
	if diff := cmp.Diff([]string{"Pod a from test.yaml:6", "ConfigMap c from test.yaml:19", "Deployment shop/d from test.yaml:24"}, refs); diff != "" {
		t.Error(diff)
	}
	p := objects[0].Value().(*corev1.Pod)
	if len(p.Spec.Containers) != 2 || p.Spec.Containers[1].Name != "y" || p.Spec.Containers[1].Resources.Limits.Memory().Value() != 64<<20 {
		t.Errorf("merge keys: %+v", p.Spec.Containers)
	}
	if p.Status.Phase != "" {
		t.Error("status was taken from a manifest")
	}
	if d := objects[2].Value().(*appsv1.Deployment); d.Spec.Replicas != nil {
		t.Error("Decode must not fill in defaults")
	}
}

func TestJSONText(t *testing.T) {
	objects := decode(t, "{\n\t\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"c\"},\n\t\"data\": {\"a\": \"\\/\\ud83d\\ude00\"}}\n{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"n\"}}")
	if got := objects[0].Value().(*corev1.ConfigMap).Data["a"]; got != "/\U0001F600" {
		t.Errorf("data: %q", got)
	}
	if objects[1].Source.Line != 4 {
		t.Errorf("source: %s", objects[1].Source)
	}
	flow := decode(t, "{apiVersion: v1, kind: Namespace, metadata: {name: flow}}")
	if flow[0].Name() != "flow" {
		t.Errorf("flow YAML: %v", flow[0].Ref())
	}
}

// A name that has a line already is kept: the daemon gets single objects from the command line.
func TestFixedSource(t *testing.T) {
	_, err := Decode(strings.NewReader(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[]}}`), "hello.yaml:12")
	if err == nil || err.Error() != "hello.yaml:12: Pod.spec.containers: is required: at least one container" {
		t.Errorf("got %v", err)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, o := range decode(t, `
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {x: y}}
spec: {containers: [{name: x, image: i, securityContext: {runAsUser: 5}}]}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {a: b}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {ports: [{port: 80, targetPort: web}]}
`) {
		Default(o)
		data, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		// What was given defaults must decode strictly: people apply what they got.
		again, err := Decode(strings.NewReader(string(data)), "again")
		if err != nil {
			t.Fatal(err)
		}
		Default(again[0])
		if diff := cmp.Diff(o.Value(), again[0].Value()); diff != "" {
			t.Errorf("%s (-first +again):\n%s", o.Ref(), diff)
		}
		loaded, err := Load(data)
		if err != nil || loaded.Ref() != o.Ref() {
			t.Errorf("load: %v, %v", loaded.Ref(), err)
		}
	}
}

func TestDefaults(t *testing.T) {
	objects := decode(t, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec: {hostNetwork: true, containers: [{name: x, image: busybox, ports: [{containerPort: 80}], resources: {limits: {cpu: 2}}}, {name: y, image: "r:5000/b:1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {ports: [{port: 80}]}
`)
	Default(objects[0])
	Default(objects[1])
	d := objects[0].Value().(*appsv1.Deployment).Spec
	s := d.Template.Spec
	got := []any{
		*d.Replicas, d.Strategy.Type, d.Strategy.RollingUpdate.MaxSurge.String(), s.RestartPolicy, s.DNSPolicy, *s.TerminationGracePeriodSeconds,
		s.Containers[0].ImagePullPolicy, s.Containers[1].ImagePullPolicy, s.Containers[0].Ports[0].HostPort, s.Containers[0].Resources.Requests.Cpu().String(), objects[0].Namespace(),
	}
	want := []any{
		int32(1), appsv1.RollingUpdateDeploymentStrategyType, "25%", corev1.RestartPolicyAlways, corev1.DNSClusterFirst, int64(30),
		corev1.PullAlways, corev1.PullIfNotPresent, int32(80), "2", "default",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	p := objects[1].Value().(*corev1.Service).Spec.Ports[0]
	if p.Protocol != corev1.ProtocolTCP || p.TargetPort.IntValue() != 80 {
		t.Errorf("service port: %+v", p)
	}
}

func TestKindFor(t *testing.T) {
	for word, want := range map[string]string{"po": "Pod", "PODS": "Pod", "svc": "Service", "deployments.apps": "Deployment", "ep": "Endpoints", "ns": "Namespace"} {
		if got, err := KindFor(word); err != nil || got != want {
			t.Errorf("%s: %q, %v", word, got, err)
		}
	}
	for word, want := range map[string]string{
		"jobs": "kind Job is not supported yet", "deploymnt": `unknown kind "deploymnt"; did you mean "deployment"?`, "zzzzzzzz": `unknown kind "zzzzzzzz"`,
	} {
		if _, err := KindFor(word); err == nil || err.Error() != want {
			t.Errorf("%s: %v", word, err)
		}
	}
}

// An alias bomb stays within the bound on values.
func TestAliasBomb(t *testing.T) {
	bomb := "apiVersion: v1\nkind: List\nx: &x0 [{apiVersion: v1}]\n"
	prev := "x0"
	for i := range 12 {
		next := "y" + string(rune('a'+i))
		bomb += next + ": &" + next + " {apiVersion: v1, kind: List, items: [" + strings.TrimSuffix(strings.Repeat("*"+prev+",", 10), ",") + "]}\n"
		prev = next
	}
	bomb += "items: [*" + prev + "]\n"
	if _, err := Decode(strings.NewReader(bomb), "bomb.yaml"); err == nil || !strings.Contains(err.Error(), "more than 200000 values") {
		t.Errorf("got %.300v", err)
	}
}

func FuzzDecode(f *testing.F) {
	files, _ := filepath.Glob("testdata/bad/*[nl]")
	more, _ := filepath.Glob("../../examples/*.yaml")
	for _, file := range append(files, more...) {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, err := Decode(strings.NewReader(string(data)), "fuzz.yaml")
		for _, o := range objects {
			Default(o)
			if verr := Validate(o); verr != nil && err == nil {
				t.Fatalf("valid without defaults, not with them: %v", verr)
			}
			data, merr := json.Marshal(o)
			if merr != nil {
				t.Fatal(merr)
			}
			if _, lerr := Load(data); lerr != nil {
				t.Fatal(lerr)
			}
		}
	})
}
