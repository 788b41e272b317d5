//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// newNodeWith is newNode with a file of settings.
func newNodeWith(t *testing.T, name, settings string) *node {
	t.Helper()
	n := newHost(t, name)
	n.settings(settings)
	n.restart()
	n.importBusybox()
	n.baseline()
	return n
}

// settings writes the daemon's file, which is read at its next start.
func (n *node) settings(text string) {
	n.t.Helper()
	path := filepath.Join(n.Dir, "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.Env = append(n.Env, "PAUSA_CONFIG="+path)
}

// A pod names the OCI runtime that makes its containers.
func TestRuntimeHandlers(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip(err)
	}
	n := newNodeWith(t, "handlers", fmt.Sprintf(
		"[runtimes.pausa]\naliases = [\"plain\"]\n[runtimes.runc]\npath = %q\naliases = [\"test-handler\"]\n[runtimes.gone]\npath = \"/no/such/runtime\"\n", runc))
	if out, stderr, code := n.CLI("", "run", "--rm", "--runtime", "test-handler", busybox, "--", "sh", "-c", "echo by runc; exit 7"); code != 7 || !strings.Contains(out, "by runc") {
		t.Errorf("run: %d\n%s%s", code, out, stderr)
	}
	n.fails("", 1, []string{"spec.runtimeClassName", `"kata" not found`, "pausa, plain, gone, runc, test-handler"}, "run", "--rm", "--runtime", "kata", busybox)
	n.fails("", 1, []string{"runtime handler gone", "/no/such/runtime"}, "run", "--rm", "--runtime", "gone", busybox)
	if out := n.ok("info"); !strings.Contains(out, "pods of runtime handler gone cannot be started") {
		t.Errorf("info does not name the missing program:\n%s", out)
	}
	k := newKubelet(t, n)
	st, err := k.runtime.Status(k.ctx, &criv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range st.RuntimeHandlers {
		names = append(names, h.Name)
		if self := h.Name == "" || h.Name == "pausa" || h.Name == "plain"; h.GetFeatures().GetUserNamespaces() != self || !h.GetFeatures().GetRecursiveReadOnlyMounts() {
			t.Errorf("features of %q: %v (runc 1.1 maps no ids, and makes recursive read-only mounts)", h.Name, h.Features)
		}
	}
	if got := strings.Join(names, ","); got != ",pausa,plain,runc,test-handler" {
		t.Errorf("handlers %q", got)
	}
	_, err = k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: k.sandboxConfig("x"), RuntimeHandler: "kata"})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "runtime_handler") || !strings.Contains(err.Error(), "test-handler") {
		t.Errorf("unknown handler: %v", err)
	}
	n.outlivesKills("runc")
}

// outlivesKills runs a pod of a handler over the death of daemon and keeper.
func (n *node) outlivesKills(handler string) {
	t := n.t
	t.Helper()
	n.apply(strings.Replace(shellPod("stay", "while :; do echo tick; sleep 0.2; done"), "spec:", "spec:\n  runtimeClassName: "+handler, 1))
	before := n.waitReady("app=stay", 1)[0]
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := n.KillKeeper(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.restart()
	after := n.waitReady("app=stay", 1)[0]
	if a, b := before.Status.ContainerStatuses[0], after.Status.ContainerStatuses[0]; a.ContainerID != b.ContainerID || b.RestartCount != 0 {
		t.Errorf("container %s became %s after %d restarts", a.ContainerID, b.ContainerID, b.RestartCount)
	}
	if out := n.ok("exec", "stay", "--", "cat", "/proc/1/cmdline"); !strings.Contains(out, "tick") {
		t.Errorf("exec after the kills: %q", out)
	}
	n.ok("delete", "pod", "stay")
	n.apply(strings.Replace(shellPod("ends", "exit 5"), "spec:", "spec:\n  restartPolicy: Never\n  runtimeClassName: "+handler, 1))
	if p := n.waitPhase("ends", corev1.PodFailed); p.Status.ContainerStatuses[0].State.Terminated.ExitCode != 5 {
		t.Errorf("status %+v", p.Status.ContainerStatuses)
	}
}

// cdiSpec gives a device node, a variable, a mount, and a hook that leaves a file on the host.
const cdiSpec = `
cdiVersion: "0.6.0"
kind: example.com/thing
devices:
- name: one
  containerEdits:
    deviceNodes: [{path: /dev/thing, hostPath: /dev/full}]
containerEdits:
  env: [THING=yes]
  mounts: [{hostPath: %[1]s/lib, containerPath: /opt/thing, options: [ro, rbind]}]
  hooks: [{hookName: createRuntime, path: /bin/sh, args: [sh, -c, "cat > %[1]s/hook"]}]
`

func TestCDIDevices(t *testing.T) {
	n := newHost(t, "cdi")
	dir := filepath.Join(n.Dir, "cdi")
	for path, text := range map[string]string{"cdi/example.yaml": fmt.Sprintf(cdiSpec, n.Dir), "lib/marker": "from the host\n"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(n.Dir, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n.settings(fmt.Sprintf("[cdi]\nspec_dirs = [%q]\n", dir))
	n.restart()
	n.importBusybox()
	n.baseline()

	use := func(name, device string) string {
		script := "echo $THING; cat /opt/thing/marker; echo x > /dev/thing || echo full; sleep 600"
		return strings.Replace(shellPod(name, script), "metadata: {", "metadata: {annotations: {cdi.k8s.io/dev: example.com/thing="+device+"}, ", 1)
	}
	n.apply(use("thing", "one"))
	n.waitReady("app=thing", 1)
	n.eventually("the container has the device", func() error {
		if out := n.ok("logs", "thing"); !strings.Contains(out, "yes\nfrom the host\n") || !strings.Contains(out, "full") {
			return fmt.Errorf("log %q", out)
		}
		return nil
	})
	if state, err := os.ReadFile(filepath.Join(n.Dir, "hook")); err != nil || !strings.Contains(string(state), `"status":"creat`) {
		t.Errorf("the hook got %q, %v", state, err)
	}
	n.apply(use("none", "two"))
	n.eventually("the pod tells which device is missing, and where it was looked for", func() error {
		if out := n.ok("describe", "pod", "none"); !strings.Contains(out, "example.com/thing=two") || !strings.Contains(out, dir) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	n.fails(use("bad", "a b"), 1, []string{"metadata.annotations", "a b"}, "apply", "-f", "-")

	k := newKubelet(t, n)
	sandbox, err := k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: k.sandboxConfig("cdi")})
	if err != nil {
		t.Fatal(err)
	}
	create := func(device string) (string, error) {
		c, err := k.runtime.CreateContainer(k.ctx, &criv1.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, Config: &criv1.ContainerConfig{
			Metadata: &criv1.ContainerMetadata{Name: "main"}, Image: &criv1.ImageSpec{Image: busybox},
			Command: []string{"sleep", "600"}, CDIDevices: []*criv1.CDIDevice{{Name: "example.com/thing=" + device}},
		}})
		return c.GetContainerId(), err
	}
	if _, err := create("two"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "example.com/thing=two") {
		t.Errorf("unknown device: %v", err)
	}
	id, err := create("one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.runtime.StartContainer(k.ctx, &criv1.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	ex, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo $THING; test -c /dev/thing"}})
	if err != nil || ex.ExitCode != 0 || string(ex.Stdout) != "yes\n" {
		t.Errorf("exec %v, %v", ex, err)
	}
	k.down(sandbox.PodSandboxId, id)
}
