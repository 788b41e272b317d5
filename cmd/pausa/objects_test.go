package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestApplyGetDelete(t *testing.T) {
	f := startFake(t)
	file := write(t, "hello.yaml", helloManifest)
	f.run(t, "apply", "--dry-run", "-f", file).want(t, 0, "pod/hello created (dry run)\n", "")
	f.run(t, "get", "all").want(t, 0, "", "No resources found in default namespace.\n")
	f.run(t, "apply", "-f", file).want(t, 0, "pod/hello created\nservice/hello created\ndeployment.apps/front created\n", "")
	f.run(t, "apply", "-f", file).want(t, 0, "pod/hello unchanged\n", "")
	f.runWith(t, strings.ReplaceAll(helloManifest, "replicas: 2", "replicas: 3"), "apply", "-f", "-").
		want(t, 0, "deployment.apps/front configured\n", "")
	f.run(t, "get", "pods", "hello", "nope").want(t, 1, "hello", `error: pods "nope" not found`)
	f.run(t, "get", "pod", "nope", "--ignore-not-found", "-o", "yaml").want(t, 0, "", "")
	f.run(t, "get", "deploy", "nope").want(t, 1, "", `error: deployments.apps "nope" not found`)
	f.run(t, "delete", "pod", "hello").want(t, 0, "pod \"hello\" deleted\n", "")
	f.run(t, "delete", "pod", "hello").want(t, 1, "", "error: pods \"hello\" not found\n")
	f.run(t, "delete", "pod", "hello", "--ignore-not-found").want(t, 0, "", "")
	f.run(t, "delete", "-f", file).want(t, 1, "service \"hello\" deleted\ndeployment.apps \"front\" deleted\n", `pods "hello" not found`)
	f.run(t, "delete", "-f", file, "--ignore-not-found").want(t, 0, "", "")
}

func TestDeleteRequests(t *testing.T) {
	f := startFake(t)
	f.run(t, "apply", "-f", write(t, "a.yaml", helloManifest)).want(t, 0, "created", "")
	f.run(t, "delete", "pods", "-l", "app=hello", "--wait=false", "--grace-period", "5").want(t, 0, "pod \"hello\" deleted", "")
	last := f.deletes[0]
	if last.GetAll() || last.GetWait() || last.GetGraceSeconds() != 5 || last.GetLabelSelector() != "app=hello" || last.GetNamespace() != "default" {
		t.Errorf("request: %v", last)
	}
	f.run(t, "delete", "--all", "-A", "--force").want(t, 0, "service \"hello\" deleted from namespace default", "")
	last = f.deletes[1]
	if !last.GetAll() || last.GetKind() != "" || last.GetNamespace() != "" || !last.GetWait() || last.GraceSeconds == nil || last.GetGraceSeconds() != 0 {
		t.Errorf("request: %v", last)
	}
	f.run(t, "delete", "pods", "--all").want(t, 0, "", "No resources found")
}

func TestDeleteNamespaceLast(t *testing.T) {
	f := startFake(t)
	file := write(t, "ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n"+
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: shop}\ndata: {a: b}\n")
	f.run(t, "apply", "-f", file).want(t, 0, "namespace/shop created\nconfigmap/c created\n", "")
	f.run(t, "delete", "-f", file).want(t, 0, "configmap \"c\" deleted\nnamespace \"shop\" deleted\n", "")
}

func TestApplyRefusals(t *testing.T) {
	f := startFake(t)
	dir := t.TempDir()
	f.run(t, "apply", "-f", dir).want(t, 1, "", "no manifests in "+dir)
	f.run(t, "apply").want(t, 2, "", "error: name a manifest with -f")
	f.run(t, "apply", "x.yaml").want(t, 2, "", `unexpected argument "x.yaml": name files with -f`)
	f.run(t, "apply", "-f", "/no/such/file").want(t, 1, "", "/no/such/file: no such file")
	f.runWith(t, "", "apply", "-f", "-").want(t, 1, "", "empty")
	bad := write(t, "bad.yaml", strings.Replace(helloManifest, "containers:\n", "contaners:\n", 1))
	r := f.run(t, "apply", "-f", bad)
	r.want(t, 1, "", bad+":5: ")
	if !strings.Contains(r.err, "containers") {
		t.Errorf("no nearest name in %s", r.err)
	}
	refuse := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {fake: refuse}}\n"
	f.runWith(t, refuse, "apply", "-f", "-").want(t, 1, "", "error: configmap/a: refused by the fake\n")
	f.runWith(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: x}\n", "apply", "-n", "y", "-f", "-").
		want(t, 1, "", `is in namespace "x", not "y"`)
	if len(f.objects) != 0 {
		t.Errorf("something was stored: %v", f.objects)
	}
}

func TestApplyFolder(t *testing.T) {
	f := startFake(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"b.yml": "b", "a.json": "a", "notes.txt": "x", "sub/c.yaml": "c"} {
		text = `{"apiversion":"v1","kind":"ConfigMap","metadata":{"name":"` + text + `"}}`
		text = strings.Replace(text, "apiversion", "apiVersion", 1)
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.run(t, "apply", "-f", dir, "-n", "shop").want(t, 0, "configmap/a created\nconfigmap/b created\n", "")
	f.run(t, "apply", "-R", "-f", dir, "-n", "shop", "-o", "name").want(t, 0, "configmap/a\nconfigmap/b\nconfigmap/c\n", "")
	f.run(t, "get", "cm", "-n", "shop", "-o", "name").want(t, 0, "configmap/a\nconfigmap/b\nconfigmap/c\n", "")
	f.run(t, "get", "cm").want(t, 0, "", "No resources found in default namespace.")
}

func TestStructuredOutput(t *testing.T) {
	f := startFake(t)
	f.run(t, "apply", "-f", write(t, "a.yaml", helloManifest)).want(t, 0, "created", "")
	for _, format := range []string{"json", "yaml"} {
		r := f.run(t, "get", "pod/hello", "-o"+format)
		r.want(t, 0, "", "")
		var pod struct {
			APIVersion, Kind string
			Status           struct{ Phase, PodIP string }
		}
		if err := yaml.Unmarshal([]byte(r.out), &pod); err != nil || pod.Kind != "Pod" || pod.APIVersion != "v1" || pod.Status.Phase != "Running" {
			t.Errorf("%s: %+v, %v", format, pod, err)
		}
		r = f.run(t, "get", "all", "-o", format)
		var list struct {
			APIVersion, Kind string
			Items            []map[string]any
		}
		if err := yaml.Unmarshal([]byte(r.out), &list); err != nil || list.Kind != "List" || list.APIVersion != "v1" || len(list.Items) != 3 {
			t.Errorf("%s: %+v, %v", format, list, err)
		}
	}
	r := f.run(t, "get", "secrets", "-o", "json")
	var list struct{ Items []any }
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || list.Items == nil || len(list.Items) != 0 || r.code != 0 {
		t.Errorf("empty list: %s, %v", r.out, err)
	}
}

func TestWait(t *testing.T) {
	f := startFake(t)
	f.slow = true
	f.runWith(t, podText("a", "localhost/busybox"), "apply", "-f", "-").want(t, 0, "created", "")
	f.run(t, "wait", "--for=condition=Ready", "pod/a").want(t, 0, "pod/a condition met\n", "")
	if f.looks < 3 {
		t.Errorf("it looked %d times only", f.looks)
	}
	f.run(t, "wait", "--for=condition=ready=false", "pod/a", "--timeout", "0s").
		want(t, 1, "", "error: timed out after 0s waiting for condition ready=False on pods/a")
	f.run(t, "wait", "--for=delete", "pod/a", "--timeout=1ms").want(t, 1, "", "timed out")
	f.run(t, "wait", "--for=delete", "pod/b").want(t, 0, "pod/b deleted\n", "")
	f.run(t, "wait", "--for=condition=Ready", "pod/b").want(t, 1, "", `pods "b" not found`)
	f.run(t, "wait", "--for=condition=Ready", "pods", "-l", "app=none").want(t, 1, "", "no objects match")
	f.run(t, "wait", "--for=condition=Ready", "pods", "--all").want(t, 0, "pod/a condition met", "")
	f.run(t, "wait", "pod/a").want(t, 2, "", "say what to wait for")
	f.run(t, "wait", "--for=jsonpath=x", "pod/a").want(t, 2, "", "must be condition=NAME or delete")
	f.run(t, "wait", "--for=condition=Ready=maybe", "pod/a").want(t, 2, "", "true, false or unknown")
}

func podText(name, image string, args ...string) string {
	data, _ := json.Marshal(args)
	return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `"},"spec":{"restartPolicy":"Never",` +
		`"containers":[{"name":"main","image":"` + image + `","args":` + strings.Replace(string(data), "null", "[]", 1) + `}]}}`
}
