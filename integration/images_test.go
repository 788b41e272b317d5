//go:build integration

package integration

import (
	"archive/tar"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

const dataImage = "localhost/data:1"

// importData brings an image here that has no program.
func (n *node) importData() {
	n.t.Helper()
	raw, err := image.Bytes(image.Spec{Name: dataImage, Layers: []image.Layer{{
		image.Text("top", "the top\n"), image.Dir("models"), image.Text("models/a", "model a\n"), image.Symlink("models/out", "/etc/hostname"),
	}}})
	if err != nil {
		n.t.Fatal(err)
	}
	n.okStdin(string(raw), "images", "import", "-")
}

const imageVolumes = `
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: ` + busybox + `
    command: [sh, -c, "while :; do sleep 1; done"]
    volumeMounts:
    - {name: data, mountPath: /whole}
    - {name: data, mountPath: /models, subPath: models}
    - {name: data, mountPath: /file, subPath: models/a}
  volumes:
  - {name: data, image: {reference: "` + dataImage + `"}}
`

func TestImageVolumes(t *testing.T) {
	n := newNode(t, "imagevolumes")
	n.importData()
	n.apply(imageVolumes)
	n.waitReady("", 1)
	inside := func(script string) string {
		t.Helper()
		return n.ok("exec", "reader", "--", "sh", "-c", script)
	}
	look := func(when string) {
		t.Helper()
		if got, want := inside("cat /whole/top /whole/models/a /models/a /file; ls /models"), "the top\nmodel a\nmodel a\nmodel a\na\nout\n"; got != want {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
		for _, path := range []string{"/whole/new", "/whole/top", "/models/new", "/file"} {
			if got := inside("(echo x >" + path + ") 2>&1 || true"); !strings.Contains(got, "Read-only file system") {
				t.Errorf("%s: writing %s: %q", when, path, got)
			}
		}
	}
	look("at first")
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.restart()
	look("after kill -9 of the daemon")
	n.fails("", 1, []string{dataImage, "is a volume of container"}, "images", "rm", dataImage)
	n.ok("images", "prune", "--all")
	if list := n.ok("images", "list"); !strings.Contains(list, "localhost/data") {
		t.Errorf("the image of a volume was pruned:\n%s", list)
	}
	n.ok("delete", "pod", "reader")
	n.ok("images", "rm", dataImage)
}

func TestImageVolumesThatCannotBe(t *testing.T) {
	n := newNode(t, "badvolumes")
	n.importData()
	bad := func(name, volume, mount, reason string, words ...string) {
		t.Helper()
		n.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: %s, command: [sleep, "1000"], volumeMounts: [{name: v, %s}]}]
  volumes: [{name: v, image: {%s}}]
`, name, busybox, mount, volume))
		n.waitsFor(name, reason, words...)
	}
	bad("absent", `reference: "localhost/none:1"`, "mountPath: /v", "ErrImagePull ImagePullBackOff", "localhost/none:1", "not on this host")
	bad("never", `reference: "r.example/none:1", pullPolicy: Never`, "mountPath: /v", "ErrImageNeverPull", "r.example/none:1")
	bad("nosub", `reference: "`+dataImage+`"`, "mountPath: /v, subPath: no/such", "CreateContainerConfigError", "no path", "no/such")
	bad("outside", `reference: "`+dataImage+`"`, "mountPath: /v, subPath: models/out", "CreateContainerConfigError", "no path", "models/out")
}

// waitsFor waits until the container of a pod waits for one of the reasons, and
// looks for the words in its message.
func (n *node) waitsFor(name, reasons string, words ...string) {
	n.t.Helper()
	n.eventually(name+" waits for "+reasons, func() error {
		p := n.pod(name)
		if p == nil || len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Waiting == nil {
			return errors.New("it does not wait")
		}
		w := p.Status.ContainerStatuses[0].State.Waiting
		if !slices.Contains(strings.Fields(reasons), w.Reason) {
			return fmt.Errorf("it waits for %s: %s", w.Reason, w.Message)
		}
		for _, word := range words {
			if !strings.Contains(w.Message, word) {
				n.t.Errorf("%s: no word of %q in %q", name, word, w.Message)
			}
		}
		return nil
	})
}

func TestCRIImageVolume(t *testing.T) {
	n := newNode(t, "criimagevolume")
	n.importData()
	k := newKubelet(t, n)
	st, err := k.images.ImageStatus(k.ctx, &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: dataImage}})
	if err != nil {
		t.Fatal(err)
	}
	mount := func(path, sub string) *criv1.Mount {
		return &criv1.Mount{ContainerPath: path, Image: &criv1.ImageSpec{Image: st.Image.Id, UserSpecifiedImage: dataImage}, ImageSubPath: sub, Readonly: true}
	}
	sandbox, container := k.upWith("volume", "while :; do sleep 1; done", mount("/whole", ""), mount("/models", "models"))
	read := func() {
		t.Helper()
		ex, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: container, Cmd: []string{"sh", "-c", "cat /whole/top /models/a; (echo x >/models/a) 2>&1"}})
		if err != nil || string(ex.Stdout) != "the top\nmodel a\nsh: can't create /models/a: Read-only file system\n" {
			t.Errorf("%v, %v", ex, err)
		}
	}
	read()
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.restart()
	read()
	if _, err := k.images.RemoveImage(k.ctx, &criv1.RemoveImageRequest{Image: &criv1.ImageSpec{Image: dataImage}}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("removing the image of a volume: %v", err)
	}
	k.down(sandbox, container)
	if _, err := k.images.RemoveImage(k.ctx, &criv1.RemoveImageRequest{Image: &criv1.ImageSpec{Image: dataImage}}); err != nil {
		t.Error(err)
	}
	if out, err := n.Output("grep", "-c", "images/rootfs/", "/proc/self/mountinfo"); err == nil {
		t.Errorf("%s mounts are left", strings.TrimSpace(out))
	}
}

// credentialed lets in who has the password of the repository's first folder.
func credentialed(w http.ResponseWriter, q *http.Request) bool {
	team, _, _ := strings.Cut(strings.TrimPrefix(q.URL.Path, "/v2/"), "/")
	user, password, _ := q.BasicAuth()
	if team == "free" || q.URL.Path == "/v2/" || user == team && password == "secret of "+team {
		return true
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

func pulledPod(name, image, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: %q, command: [sleep, "1000"]}]
  %s
`, name, image, more)
}

// Declared pods pull with the credentials of their imagePullSecrets, and what a
// verifier or the settings forbid is pulled neither for them nor for a kubelet.
func TestPullsOfPods(t *testing.T) {
	n := newHost(t, "podpulls")
	verifiers := filepath.Join(n.Dir, "verifiers")
	if err := os.Mkdir(verifiers, 0o700); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\ncase $2 in */unsigned:*) echo 'not signed by us'; exit 1;; esac\n"
	if err := os.WriteFile(filepath.Join(verifiers, "check"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	n.Env = append(n.Env, "PAUSA_IMAGES_VERIFIER_DIR="+verifiers)
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	n.baseline()
	spec, err := image.Busybox("")
	if err != nil {
		t.Fatal(err)
	}
	r := n.newRegistry()
	team, other, unsigned := r.push(t, "team/app:1", spec), r.push(t, "other/app:1", spec), r.push(t, "free/unsigned:1", spec)
	signed := r.push(t, "free/signed:1", spec)
	unpulled := r.push(t, "team/unpulled:1", spec) // by those who may: what is present needs no access
	r.meddle(credentialed)
	n.apply(fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: registries}
type: kubernetes.io/dockerconfigjson
stringData:
  .dockerconfigjson: '{"auths": {"%[1]s/team": {"username": "team", "password": "secret of team"}, "%[1]s": {"username": "other", "password": "secret of other"}}}'
`, r.addr))
	const withSecret = "imagePullSecrets: [{name: registries}]"
	n.apply(pulledPod("team", team, withSecret) + "---" + pulledPod("other", other, withSecret))
	n.apply(pulledPod("denied", unpulled, "imagePullSecrets: [{name: gone}]"))
	n.apply(pulledPod("unsigned", unsigned, ""))
	n.waitReady("app in (team, other)", 2)
	n.waitsFor("denied", "ErrImagePull ImagePullBackOff", "refuses access", "Secret default/gone does not exist")
	n.waitsFor("denied", "ImagePullBackOff", "Back-off 10s pulling image: ErrImagePull: ")
	n.waitsFor("unsigned", "SignatureValidationFailed ImagePullBackOff", "not signed by us")
	if out := n.ok("get", "pods"); !strings.Contains(out, "ImagePullBackOff") {
		t.Errorf("get pods:\n%s", out)
	}
	if out := n.ok("describe", "pod", "denied"); !strings.Contains(out, "Back-off") || strings.Contains(out, "secret of") {
		t.Errorf("describe:\n%s", out)
	}

	k := newKubelet(t, n)
	pull := func(ref string) error {
		_, err := k.images.PullImage(k.ctx, &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: ref}})
		return err
	}
	err = pull(unsigned)
	if s := status.Convert(err); s.Code() != codes.Unknown || !strings.HasPrefix(s.Message(), "SignatureValidationFailed: ") || !strings.Contains(s.Message(), "not signed by us") {
		t.Errorf("a kubelet's pull of what is not signed: %v", err)
	}
	if err := pull(signed); err != nil {
		t.Error(err)
	}

	if err := n.KillDaemon(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.Env = append(n.Env, "PAUSA_IMAGES_DIGEST_ONLY=true")
	n.restart()
	if err := pull(signed); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "images.digest_only") {
		t.Errorf("a kubelet's pull by a tag: %v", err)
	}
	n.ok("images", "rm", signed)
	n.apply(pulledPod("tagged", signed, ""))
	n.waitsFor("tagged", "ErrImagePull ImagePullBackOff", "images.digest_only")
}

// Device nodes in an image, in a user namespace too, lead nowhere: neither as
// the root of a container nor as a volume.
func TestDevicesInImages(t *testing.T) {
	n := newNode(t, "imagedevices")
	spec, err := image.Busybox("")
	if err != nil {
		t.Fatal(err)
	}
	spec.Name = "localhost/devices:1"
	spec.Layers = append(spec.Layers, image.Layer{
		{Path: "mem", Type: tar.TypeChar, Major: 1, Minor: 1, Mode: 0o666}, {Path: "disk", Type: tar.TypeBlock, Major: 254, Mode: 0o666},
	})
	raw, err := image.Bytes(spec)
	if err != nil {
		t.Fatal(err)
	}
	n.okStdin(string(raw), "images", "import", "-")
	k := newKubelet(t, n)
	maps := []*criv1.IDMapping{{HostId: 200_000, ContainerId: 0, Length: 65_536}}
	for name, userns := range map[string]*criv1.UserNamespace{
		"hostusers": nil, "ownusers": {Mode: criv1.NamespaceMode_POD, Uids: maps, Gids: maps},
	} {
		config := k.sandboxConfig(name)
		config.LogDirectory = ""
		config.Linux.SecurityContext = &criv1.LinuxSandboxSecurityContext{NamespaceOptions: &criv1.NamespaceOption{UsernsOptions: userns}}
		sb, err := k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: config})
		if err != nil {
			t.Fatal(err)
		}
		c, err := k.runtime.CreateContainer(k.ctx, &criv1.CreateContainerRequest{PodSandboxId: sb.PodSandboxId, SandboxConfig: config, Config: &criv1.ContainerConfig{
			Metadata: &criv1.ContainerMetadata{Name: "main"}, Image: &criv1.ImageSpec{Image: spec.Name}, Command: []string{"sleep", "1000"},
			Mounts: []*criv1.Mount{{ContainerPath: "/volume", Image: &criv1.ImageSpec{Image: spec.Name}, Readonly: true}},
			Linux:  &criv1.LinuxContainerConfig{SecurityContext: &criv1.LinuxContainerSecurityContext{NamespaceOptions: &criv1.NamespaceOption{UsernsOptions: userns}}},
		}})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := k.runtime.StartContainer(k.ctx, &criv1.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, path := range []string{"/mem", "/disk", "/volume/mem", "/volume/disk"} {
			ex, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"sh", "-c", "ls -l " + path + " | cut -c1; dd if=" + path + " of=/dev/null count=1"}})
			kind, refusal := strings.TrimSpace(string(ex.GetStdout())), string(ex.GetStderr())
			if err != nil || ex.ExitCode == 0 || kind != "c" && kind != "b" || !strings.Contains(refusal, "not permitted") && !strings.Contains(refusal, "denied") {
				t.Errorf("%s: reading %s: %v, %v", name, path, ex, err)
			}
		}
		k.down(sb.PodSandboxId, c.ContainerId)
	}
}
