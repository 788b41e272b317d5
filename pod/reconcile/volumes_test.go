package reconcile

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
)

// parse reads fields of a struct as a manifest has them.
func parse(t *testing.T, fields string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte("{"+fields+"}"), into); err != nil {
		t.Fatal(err)
	}
}

// declared is one pod, with defaults, and the objects beside it.
func declared(t *testing.T, text string) (*corev1.Pod, lookup) {
	t.Helper()
	objects, err := manifest.Decode(strings.NewReader(text), "test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	byRef := map[manifest.Ref]manifest.Object{}
	var p *corev1.Pod
	for _, o := range objects {
		manifest.Default(o)
		o.Meta().ResourceVersion = "1"
		byRef[o.Ref()] = o
		if v, ok := o.Value().(*corev1.Pod); ok {
			v.UID, p = "u-1", v
		}
	}
	return p, func(kind, namespace, name string) (manifest.Object, bool) {
		o, ok := byRef[manifest.Ref{Kind: kind, Namespace: namespace, Name: name}]
		return o, ok
	}
}

func TestEnvironment(t *testing.T) {
	p, find := declared(t, `
{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {A: "1", B: two}}
---
{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {key: hidden}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app.io/x: y}}
spec:
  containers:
  - name: c
    image: b
    resources: {limits: {cpu: 1500m, memory: 64Mi}}
    envFrom: [{prefix: M_, configMapRef: {name: m}}, {secretRef: {name: none, optional: true}}]
    env:
    - {name: M_B, value: over}
    - {name: PLAIN, value: "$(M_A)-$(M_B)-$(NONE)-$$(M_A)-$5-$("}
    - {name: SECRET, valueFrom: {secretKeyRef: {name: s, key: key}}}
    - {name: GONE, valueFrom: {secretKeyRef: {name: s, key: other, optional: true}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app.io/x']"}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: MILLI, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
`)
	got, err := environment(p, &p.Spec.Containers[0], nil, podFacts{podIPs: []string{"10.1.0.2", "fd00::2"}}, find)
	if err != nil {
		t.Fatal(err)
	}
	want := []pod.EnvVar{
		{Name: "M_A", Value: "1"},
		{Name: "M_B", Value: "over"},
		{Name: "PLAIN", Value: "1-over-$(NONE)-$(M_A)-$5-$("},
		{Name: "SECRET", Value: "hidden"},
		{Name: "NAME", Value: "p"},
		{Name: "LABEL", Value: "y"},
		{Name: "IP", Value: "10.1.0.2"},
		{Name: "CPU", Value: "2"},
		{Name: "MILLI", Value: "1500"},
		{Name: "MEM", Value: "64"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestVolumes(t *testing.T) {
	needRoot(t)
	state, run := t.TempDir(), t.TempDir()
	v := newVolumes(state, run)
	p, find := declared(t, `
{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: one, b: two}, binaryData: {z: AAE=}}
---
{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {password: hidden}}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  securityContext: {fsGroup: 2000}
  containers: [{name: c, image: b, volumeMounts: [{name: d, mountPath: /d, subPath: x/y}, {name: m, mountPath: /m/}]}]
  volumes:
  - {name: d, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: m, configMap: {name: m, items: [{key: a, path: sub/a}, {key: z, path: z, mode: 0400}]}}
  - {name: s, secret: {secretName: s, defaultMode: 0440}}
  - {name: o, secret: {secretName: none, optional: true}}
`)
	if err := v.prepare(p, find); err != nil {
		t.Fatal(err)
	}
	at := func(i int) string { return v.path("u-1", &p.Spec.Volumes[i]) }
	if data, err := os.ReadFile(at(2) + "/sub/a"); err != nil || string(data) != "one" {
		t.Errorf("configMap: %q, %v", data, err)
	}
	if info, err := os.Stat(at(3) + "/password"); err != nil || info.Mode() != 0o440 {
		t.Errorf("secret: %v, %v", info, err)
	}
	if !onTmpfs(at(3)) || !onTmpfs(at(1)) || !strings.HasPrefix(at(3), run) {
		t.Error("secrets and memory belong on tmpfs")
	}
	if info, err := os.Stat(at(0)); err != nil || info.Mode() != fs.ModeDir|fs.ModeSetgid|0o777 {
		t.Errorf("emptyDir: %v, %v", info, err)
	}
	// What the pod did to its folder stays.
	if err := os.Chmod(at(0), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := v.prepare(p, find); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(at(0)); info.Mode().Perm() != 0o700 {
		t.Error("preparing again changed the mode of an emptyDir")
	}
	mounts, err := v.mounts(p, &p.Spec.Containers[0], nil)
	if err != nil || mounts[0].Readonly || !mounts[1].Readonly || mounts[1].Destination != "/m" {
		t.Fatalf("mounts: %+v, %v", mounts, err)
	}
	if err := os.WriteFile(mounts[0].Source+"/f", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(at(0) + "/x/y/f"); err != nil {
		t.Errorf("the subPath is not in the volume: %v", err)
	}
	if err := v.remove("u-1"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{state + "/pods", run + "/volumes"} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("left in %s: %v, %v", dir, entries, err)
		}
	}
	if err := v.remove("u-1"); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
	if err := v.remove(types.UID("../x")); err == nil {
		t.Error("a uid with a slash was taken")
	}
}

// Changed content appears at one moment, and what is gone from the object goes from the volume.
func TestWriteFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(files map[string]file) {
		t.Helper()
		if err := writeFiles(dir, files, nil); err != nil {
			t.Fatal(err)
		}
	}
	write(map[string]file{"a": {content: []byte("1"), mode: 0o644}, "sub/b": {content: []byte("2"), mode: 0o644}})
	first, _ := os.Readlink(dir + "/..data")
	write(map[string]file{"a": {content: []byte("1"), mode: 0o644}, "sub/b": {content: []byte("2"), mode: 0o644}})
	if again, _ := os.Readlink(dir + "/..data"); again != first {
		t.Error("the same content was written again")
	}
	write(map[string]file{"a": {content: []byte("3"), mode: 0o600}})
	data, err := os.ReadFile(dir + "/a")
	if err != nil || string(data) != "3" {
		t.Errorf("a: %q, %v", data, err)
	}
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimRight(e.Name(), "0123456789T_"))
	}
	if diff := cmp.Diff([]string{"..data", "..data", "a"}, names); diff != "" {
		t.Error(diff)
	}
}

// No link in a volume leads a subPath out of it.
func TestSubPathStaysInside(t *testing.T) {
	needRoot(t)
	root, outside := t.TempDir(), t.TempDir()
	if err := os.WriteFile(outside+"/canary", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"abs": outside, "rel": "../" + filepath.Base(outside), "deep": "../../../../../../.." + outside, "proc": "/proc/self/root" + outside} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
		pin := filepath.Join(t.TempDir(), "pins", "0")
		if err := pinSubPath(root, name, pin); err != nil {
			continue // refusing is as good
		}
		if _, err := os.Stat(pin + "/canary"); err == nil {
			t.Errorf("%s leads out of the volume", name)
		}
		if err := removeTree(filepath.Dir(pin)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(outside + "/canary"); err != nil {
		t.Error("removing a pin removed what was mounted on it")
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := makeHostPath(file, corev1.HostPathFileOrCreate); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		kind corev1.HostPathType
		ok   bool
	}{
		{dir, "Directory", true},
		{file, "Directory", false},
		{file, "File", true},
		{dir, "File", false},
		{dir + "/no", "File", false},
		{"/dev/null", "CharDevice", true},
		{"/dev/null", "BlockDevice", false},
		{file, "Socket", false},
		{dir + "/new", "DirectoryOrCreate", true},
		{dir + "/any", "", true},
	} {
		if err := makeHostPath(c.path, c.kind); (err == nil) != c.ok {
			t.Errorf("%s as %q: %v", c.path, c.kind, err)
		}
	}
}

func TestProjectedVolumes(t *testing.T) {
	needRoot(t)
	state, run := t.TempDir(), t.TempDir()
	v := newVolumes(state, run)
	p, find := declared(t, `
{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: one, b: two}}
---
{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {password: hidden}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: "x"}, annotations: {note: 'n"'}}
spec:
  containers:
  - name: c
    image: b
    resources: {limits: {cpu: 1500m}}
    volumeMounts:
    - {name: d, mountPath: /d, readOnly: true, recursiveReadOnly: Enabled, bindMountOptions: [noexec]}
    - {name: e, mountPath: /e, subPathExpr: $(WHO)/data, mountPropagation: HostToContainer}
  volumes:
  - {name: d, downwardAPI: {defaultMode: 0400, items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: notes, fieldRef: {fieldPath: metadata.annotations}}, {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}, {path: name, user: 7, mode: 0440, fieldRef: {fieldPath: metadata.name}}]}}
  - name: all
    projected:
      sources:
      - {configMap: {name: m, items: [{key: a, path: conf/a}]}}
      - {secret: {name: s}}
      - {secret: {name: none, optional: true}}
      - {downwardAPI: {items: [{path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}}
  - {name: e, emptyDir: {mode: 01750}}
  - {name: plain, projected: {sources: [{configMap: {name: m}}], defaultUser: 9}}
`)
	if err := v.prepare(p, find); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string {
		for i := range p.Spec.Volumes {
			if p.Spec.Volumes[i].Name == name {
				return v.path("u-1", &p.Spec.Volumes[i])
			}
		}
		return ""
	}
	for path, want := range map[string]string{
		"d/labels": `app="x"`, "d/notes": `note="n\""`, "d/cpu": "1500", "d/name": "p",
		"all/conf/a": "one", "all/password": "hidden", "all/note": `n"`, "plain/b": "two",
	} {
		name, rest, _ := strings.Cut(path, "/")
		if data, err := os.ReadFile(filepath.Join(at(name), rest)); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v; want %q", path, data, err, want)
		}
	}
	for path, want := range map[string][2]uint32{"d/name": {7, 0o440}, "d/cpu": {0, 0o400}, "plain/b": {9, 0o644}, "e": {0, 0o1750}} {
		name, rest, _ := strings.Cut(path, "/")
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(at(name), rest), &st); err != nil || st.Uid != want[0] || st.Mode&0o7777 != want[1] {
			t.Errorf("%s: owner %d, mode %o, %v; want %d, %o", path, st.Uid, st.Mode&0o7777, err, want[0], want[1])
		}
	}
	if !onTmpfs(at("all")) || onTmpfs(at("plain")) != onTmpfs(state) {
		t.Error("a volume with a secret belongs on tmpfs, one without where the others are")
	}

	mounts, err := v.mounts(p, &p.Spec.Containers[0], map[string]string{"WHO": "me"})
	if err != nil || !mounts[0].RecursiveRO || !mounts[0].Readonly || mounts[0].Options[0] != "noexec" || mounts[1].Propagation != "rslave" {
		t.Fatalf("mounts %+v, %v", mounts, err)
	}
	if _, err := os.Stat(at("e") + "/me/data"); err != nil {
		t.Error(err)
	}
	for _, vars := range []map[string]string{nil, {"WHO": "../x"}, {"WHO": "/"}} {
		m := &corev1.VolumeMount{SubPathExpr: "$(WHO)"}
		if sub, err := subPath(m, vars); err == nil {
			t.Errorf("subPathExpr with %v is %q", vars, sub)
		}
	}

	// Changed labels are in the file soon.
	p.Labels["app"], p.ResourceVersion = "y", "2"
	if err := v.refresh(p, find); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(at("d") + "/labels"); err != nil || !strings.HasPrefix(string(data), `app="y"`) {
		t.Errorf("labels: %q, %v", data, err)
	}
	if err := v.remove("u-1"); err != nil {
		t.Fatal(err)
	}
}
