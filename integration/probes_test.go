//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// probed is two pods that say that they are ready while /www/ready exists.
const probed = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: probed}
spec:
  replicas: 2
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: probed}}
  template:
    metadata: {labels: {app: probed}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: localhost/busybox:latest
        command: [sh, -c]
        args:
        - |
          mkdir -p /www; echo VERSION > /www/index.html; sleep 0.3
          touch /www/ready; exec httpd -f -p 8080 -h /www
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /PATH, port: http}, periodSeconds: 1, failureThreshold: 1}
        lifecycle: {preStop: {sleep: {seconds: 1}}}
---
apiVersion: v1
kind: Service
metadata: {name: probed}
spec: {selector: {app: probed}, ports: [{port: 80, targetPort: http}]}
`

func version(v, path string) string {
	return strings.NewReplacer("VERSION", v, "PATH", path).Replace(probed)
}

// A readiness probe over http, from inside the pod's network, gates the Service; a
// new template comes without one failed request, and a broken one not at all.
func TestReadinessAndRollingUpdate(t *testing.T) {
	n := newNode(t, "probes")
	n.apply(version("one", "ready"))
	pods := n.waitReady("app=probed", 2)
	svc := n.service("probed")
	get := n.wget("http://" + svc.Spec.ClusterIP + "/")

	// One pod that says no gets nothing.
	n.ok("exec", pods[0].Name, "--", "sh", "-c", "rm /www/ready; echo no > /www/index.html")
	n.eventually("one pod is not ready", func() error {
		if isReady(*n.pod(pods[0].Name)) {
			return fmt.Errorf("it is")
		}
		return nil
	})
	for range 20 {
		if out, err := get(); err != nil || out != "one\n" {
			t.Fatalf("answer %q, %v", out, err)
		}
	}
	n.ok("exec", pods[0].Name, "--", "sh", "-c", "touch /www/ready; echo one > /www/index.html")
	n.waitReady("app=probed", 2)

	// Requests go on all the time while the template changes.
	stop, failed := make(chan struct{}), make(chan string, 1)
	counts := map[string]int{}
	go func() {
		bad := ""
		for {
			select {
			case <-stop:
				failed <- bad
				return
			default:
			}
			out, err := get()
			if err != nil {
				bad += err.Error() + "\n"
			}
			counts[strings.TrimSpace(out)]++
		}
	}()
	n.apply(version("two", "ready"))
	n.eventually("all pods are new", func() error {
		for _, p := range n.pods("app=probed") {
			if !strings.Contains(p.Spec.Containers[0].Args[0], "echo two") || !isReady(p) {
				return fmt.Errorf("%s is old or not ready", p.Name)
			}
		}
		return nil
	})
	// A template that never becomes ready changes nothing for the clients.
	n.apply(version("three", "nowhere"))
	n.eventually("a broken pod runs", func() error {
		if c := len(n.pods("app=probed")); c != 3 {
			return fmt.Errorf("%d pods", c)
		}
		return nil
	})
	time.Sleep(2 * time.Second) // its probes fail meanwhile
	close(stop)
	if bad := <-failed; bad != "" {
		t.Errorf("failed requests:\n%s", bad)
	}
	if counts["one"] == 0 || counts["two"] == 0 || counts["three"] > 0 {
		t.Errorf("answers %v", counts)
	}
	t.Logf("answers without a failure: %v", counts)
}

// A liveness probe restarts its container; preStop runs before the end, also of a sidecar.
func TestLivenessAndHooks(t *testing.T) {
	n := newNode(t, "live")
	dir := n.Dir + "/words"
	n.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: live, labels: {app: live}}
spec:
  terminationGracePeriodSeconds: 5
  initContainers:
  - name: side
    image: %[1]s
    restartPolicy: Always
    command: [sh, -c, "trap 'echo side ends >> /words/log; exit 0' TERM; echo side starts >> /words/log; touch /tmp/up; while :; do sleep 0.1; done"]
    startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1}
    volumeMounts: [{name: words, mountPath: /words}]
  containers:
  - name: main
    image: %[1]s
    command: [sh, -c, "echo main starts >> /words/log; echo last words > /dev/termination-log; touch /tmp/well; trap 'exit 7' TERM; while :; do sleep 0.1; done"]
    livenessProbe: {exec: {command: [test, -e, /tmp/well]}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 1}
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo main is asked >> /words/log"]}}}
    volumeMounts: [{name: words, mountPath: /words}]
  volumes: [{name: words, hostPath: {path: %[2]s, type: DirectoryOrCreate}}]
`, busybox, dir))
	n.waitReady("app=live", 1)
	n.ok("exec", "live", "-c", "main", "--", "rm", "/tmp/well")
	n.eventually("main is restarted", func() error {
		s := n.pod("live").Status.ContainerStatuses[0]
		if s.RestartCount != 1 || s.State.Running == nil {
			return fmt.Errorf("%+v", s)
		}
		if l := s.LastTerminationState.Terminated; l == nil || l.ExitCode != 7 || l.Message != "last words\n" {
			return fmt.Errorf("last state %+v", l)
		}
		return nil
	})
	n.ok("delete", "pod", "live")
	out, err := n.Output("cat", dir+"/log")
	want := "side starts\nmain starts\nmain is asked\nmain starts\nmain is asked\nside ends\n"
	if err != nil || out != want {
		t.Errorf("order %q, %v\nwant  %q", out, err, want)
	}
}
