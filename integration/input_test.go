//go:build integration

package integration

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Each wrong thing is refused with its name, the reason and the cure, and leaves nothing half-made.
func TestBadManifests(t *testing.T) {
	n := newNode(t, "bad")
	good := shellPod("good", "sleep 1000")
	for _, c := range []struct {
		name, manifest string
		words          []string
	}{
		{"no yaml", "a: b: c", []string{"stdin", "mapping values"}},
		{"empty", "", []string{"no objects"}},
		{"unknown kind", "apiVersion: v1\nkind: Pood\nmetadata: {name: x}\n", []string{"Pood", "Pod"}},
		{"unknown field", strings.Replace(good, "image:", "imagee:", 1), []string{"imagee", "image"}},
		{"wrong type", strings.Replace(good, "terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: soon", 1), []string{"terminationGracePeriodSeconds"}},
		{"not supported", strings.Replace(good, "spec:", "spec:\n  readinessGates: [{conditionType: a.b/c}]", 1), []string{"readinessGates", "support", "readinessProbe"}},
		{"no name", strings.Replace(good, "name: good,", "", 1), []string{"name"}},
		{"bad name", strings.Replace(good, "name: good,", "name: ../good,", 1), []string{"../good"}},
		{"no containers", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}\n", []string{"containers"}},
		{"selector of others", strings.Replace(web, "matchLabels: {app: web}", "matchLabels: {app: other}", 1), []string{"selector"}},
		{"mount of no volume", strings.Replace(good, "args:", "volumeMounts: [{name: nothing, mountPath: /x}]\n    args:", 1), []string{"nothing"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sub := *n
			sub.t = t
			sub.fails(c.manifest, 1, c.words, "apply", "-f", "-")
		})
	}
	// One bad object among good ones: none of them is stored.
	n.fails(good+"---\n"+strings.Replace(shellPod("other", "true"), "image:", "imagee:", 1), 1, []string{"imagee"}, "apply", "-f", "-")
	if pods := n.pods(""); len(pods) != 0 {
		t.Errorf("pods after refused manifests: %v", pods)
	}
}

// What can only be known later shows in the pod's status, and is retried.
func TestBadPods(t *testing.T) {
	n := newNode(t, "badpods")
	waiting := func(name string, reasons ...string) {
		t.Helper()
		n.eventually(name+" waits with a reason", func() error {
			p := n.pod(name)
			if p == nil || len(p.Status.ContainerStatuses) == 0 {
				return os.ErrNotExist
			}
			w := p.Status.ContainerStatuses[0].State.Waiting
			for _, r := range reasons {
				if w != nil && w.Reason == r && w.Message != "" {
					return nil
				}
			}
			return &stateError{p.Status.ContainerStatuses[0].State}
		})
	}
	n.apply(strings.Replace(shellPod("no-image", "true"), busybox, "localhost/nothing:1", 1))
	waiting("no-image", "ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff")
	n.apply(strings.Replace(shellPod("no-command", "true"), "command: [sh, -c]", "command: [/no/such/command]", 1))
	waiting("no-command", "RunContainerError", "CrashLoopBackOff", "CreateContainerError")
	n.apply(strings.Replace(shellPod("no-config", "true"), "args:", "envFrom: [{configMapRef: {name: nowhere}}]\n    args:", 1))
	waiting("no-config", "CreateContainerConfigError")
}

type stateError struct{ state corev1.ContainerState }

func (e *stateError) Error() string { return e.state.String() }

func TestHostPortTaken(t *testing.T) {
	n := newNode(t, "port")
	withPort := func(name string) string {
		return strings.Replace(shellPod(name, "exec httpd -f -p 80"), "command:", "ports: [{containerPort: 80, hostPort: 8080}]\n    command:", 1)
	}
	n.apply(withPort("first"))
	n.waitReady("app=first", 1)
	out, stderr, code := n.CLI(withPort("second"), "apply", "-f", "-")
	if code != 0 { // refused at once is as good as said in the status
		if !strings.Contains(stderr, "8080") {
			t.Errorf("the error does not name the port: %s", stderr)
		}
		return
	}
	n.eventually("the second pod says that the port is taken", func() error {
		described := n.ok("describe", "pod", "second")
		if !strings.Contains(described, "8080") || !strings.Contains(described, "taken") && !strings.Contains(described, "in use") {
			return &textError{described + out}
		}
		return nil
	})
}

type textError struct{ text string }

func (e *textError) Error() string { return e.text }

func TestNodePortTaken(t *testing.T) {
	n := newNode(t, "nodeport")
	svc := func(name string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {type: NodePort, selector: {app: x}, ports: [{port: 80, nodePort: 30080}]}\n"
	}
	n.apply(svc("first"))
	n.fails(svc("second"), 1, []string{"30080", "first"}, "apply", "-f", "-")
	n.ok("delete", "service", "first")
	n.apply(svc("second"))
}

func TestSecondDaemon(t *testing.T) {
	n := newNode(t, "second")
	out, err := n.Command(t.Context(), n.ServeArgs()...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), n.StateDir) && !strings.Contains(string(out), "/run/pausa") {
		t.Errorf("a second daemon on the same folders: %v, %s", err, out)
	}
	n.ok("get", "pods") // the first one serves on
}

func TestConfigTypo(t *testing.T) {
	n := newHost(t, "config")
	path := filepath.Join(n.Dir, "config.toml")
	if err := os.WriteFile(path, []byte("[network]\npod_cidr = [\"10.1.0.0/16\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := n.Command(t.Context(), append(n.ServeArgs(), "--config", path)...).CombinedOutput()
	for _, w := range []string{"config.toml", "pod_cidr", "pod_cidrs"} {
		if err == nil || !strings.Contains(string(out), w) {
			t.Errorf("a config with a typo: %v, no word of %q in %s", err, w, out)
		}
	}
}

func TestWithoutDaemon(t *testing.T) {
	n := newHost(t, "nodaemon")
	n.fails("", 1, []string{"not running", "pausa serve"}, "get", "pods")
}

func TestDeleteOfTheGone(t *testing.T) {
	n := newNode(t, "gone")
	n.fails("", 1, []string{"not found"}, "delete", "pod", "nobody")
	n.ok("delete", "pod", "nobody", "--ignore-not-found")
	n.fails(web, 1, []string{"not found"}, "delete", "-f", "-")
	n.okStdin(web, "delete", "-f", "-", "--ignore-not-found")
	n.fails("", 1, []string{"not found"}, "get", "pod", "nobody")
}

// The socket is root's alone.
func TestSocketMode(t *testing.T) {
	n := newNode(t, "socket")
	fi, err := os.Stat(n.Path("/run/pausa/pausa.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket %o, want 600", fi.Mode().Perm())
	}
	c, err := net.Dial("unix", n.Path("/run/pausa/pausa.sock"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
