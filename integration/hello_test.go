//go:build integration

package integration

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/integration/host"
)

// web is a Deployment of two pods with two containers each: one writes the page
// over localhost's other half, the other serves it; and a Service of both families.
const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: front
        image: localhost/busybox:latest
        command: [sh, -c, "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho Content-Type: text/plain; echo; wget -q -O - http://127.0.0.1:9000/' > /www/cgi-bin/name; chmod 755 /www/cgi-bin/name; exec httpd -f -p 8080 -h /www"]
        ports: [{name: http, containerPort: 8080}]
      - name: back
        image: localhost/busybox:latest
        command: [sh, -c, "mkdir /www; echo $NAME > /www/index.html; echo back is up; exec httpd -f -p 127.0.0.1:9000 -h /www"]
        env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
`

// answers calls a URL until every pod has answered.
func (n *node) answers(from string, pods []corev1.Pod, call func() (string, error)) {
	n.t.Helper()
	seen := map[string]int{}
	n.eventually(fmt.Sprintf("all %d pods answer %s", len(pods), from), func() error {
		out, err := call()
		if err != nil {
			return err
		}
		seen[strings.TrimSpace(out)]++
		if len(seen) < len(pods) {
			return fmt.Errorf("only %v did", seen)
		}
		return nil
	})
	for name := range seen {
		if !slices.ContainsFunc(pods, func(p corev1.Pod) bool { return p.Name == name }) {
			n.t.Errorf("%s got the answer %q of no pod; all: %v", from, name, slices.Collect(maps.Keys(seen)))
		}
	}
}

func (n *node) wget(url string) func() (string, error) {
	return func() (string, error) { return n.Output("timeout", "5", "busybox", "wget", "-q", "-O", "-", url) }
}

func (n *node) wgetFrom(pod, url string) func() (string, error) {
	return func() (string, error) {
		out, stderr, code := n.CLI("", "exec", pod, "-c", "front", "--", "timeout", "5", "wget", "-q", "-O", "-", url)
		if code != 0 {
			return "", fmt.Errorf("exit status %d: %s", code, stderr)
		}
		return out, nil
	}
}

// The whole path: pods, localhost between containers, a Service from the host,
// from a pod and from another host, logs, deletion.
func TestService(t *testing.T) {
	n := newHost(t, "svc")
	other := newHost(t, "other")
	if err := host.Join(n.Host, other.Host, 1); err != nil {
		t.Fatal(err)
	}
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	n.baseline()
	n.apply(web)
	pods := n.waitReady("app=web", 2)
	svc := n.service("web")
	if len(svc.Spec.ClusterIPs) != 2 {
		t.Fatalf("cluster IPs %v, want one of each family", svc.Spec.ClusterIPs)
	}
	const path = "/cgi-bin/name"
	v4, v6 := svc.Spec.ClusterIPs[0], svc.Spec.ClusterIPs[1]
	n.answers("the host", pods, n.wget("http://"+v4+path))
	n.answers("the host over IPv6", pods, n.wget("http://["+v6+"]"+path))
	n.answers("a pod, itself among the endpoints", pods, n.wgetFrom(pods[0].Name, "http://"+v4+path))
	n.answers("a pod over IPv6", pods, n.wgetFrom(pods[1].Name, "http://["+v6+"]"+path))
	n.answers("another host", pods, other.wget(fmt.Sprintf("http://10.253.1.1:%d%s", svc.Spec.Ports[0].NodePort, path)))
	n.answers("another host over IPv6", pods, other.wget(fmt.Sprintf("http://[fd53:1::1]:%d%s", svc.Spec.Ports[0].NodePort, path)))

	for _, p := range pods {
		if log := n.ok("logs", p.Name, "-c", "back"); log != "back is up\n" {
			t.Errorf("log of %s: %q", p.Name, log)
		}
	}
	if _, err := n.wget("http://" + v4 + ":81" + path)(); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port that the Service does not have: %v, want connection refused", err)
	}
	n.ok("delete", "deployment", "web")
	if _, err := n.wget("http://" + v4 + path)(); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a Service without endpoints: %v, want connection refused", err)
	}
}

func TestHelloExample(t *testing.T) {
	n := newNode(t, "hello")
	file, err := filepath.Abs("../examples/hello.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n.ok("apply", "-f", file)
	pods := n.waitReady("", 2)
	for _, p := range pods {
		if len(p.Spec.Containers) != 2 || p.Status.PodIP == "" {
			t.Errorf("%s has %d containers and the address %q", p.Name, len(p.Spec.Containers), p.Status.PodIP)
		}
	}
	svc := n.service("hello")
	url := fmt.Sprintf("http://%s:%d/", svc.Spec.ClusterIP, svc.Spec.Ports[0].Port)
	seen := map[string]bool{}
	n.eventually("both pods answer", func() error {
		out, err := n.wget(url)()
		if err == nil {
			seen[out] = true
		}
		if len(seen) < 2 {
			return fmt.Errorf("answers %v, %w", seen, err)
		}
		return nil
	})
	out := n.ok("exec", pods[0].Name, "-c", "web", "--", "wget", "-q", "-O", "-", "http://hello/")
	if !strings.Contains(out, "hello from ") {
		t.Errorf("the Service by its name from a pod: %q", out)
	}
	n.ok("delete", "-f", file)
	if left := n.pods(""); len(left) != 0 {
		t.Errorf("pods after delete -f: %v", left)
	}
}

// Applying what is there already changes nothing: not a process is started anew.
func TestApplyTwice(t *testing.T) {
	n := newNode(t, "twice")
	n.apply(web)
	n.waitReady("app=web", 2)
	before := n.processTable()
	out := n.apply(web)
	if strings.Count(out, "unchanged") != 2 {
		t.Errorf("the second apply says %q", out)
	}
	n.waitReady("app=web", 2)
	if after := n.processTable(); !maps.Equal(before, after) {
		t.Errorf("processes before %v\nafter %v", before, after)
	}
}

// processTable is every process of the host's pods by pid.
func (n *node) processTable() map[int]string {
	n.t.Helper()
	procs, err := n.Processes()
	if err != nil {
		n.t.Fatal(err)
	}
	out := map[int]string{}
	for _, p := range procs {
		out[p.Pid] = p.Comm
	}
	return out
}

func TestScale(t *testing.T) {
	n := newNode(t, "scale")
	n.apply(web)
	n.waitReady("app=web", 2)
	n.apply(strings.Replace(web, "replicas: 2", "replicas: 4", 1))
	n.waitReady("app=web", 4)
	n.apply(strings.Replace(web, "replicas: 2", "replicas: 1", 1))
	n.waitReady("app=web", 1)
}
