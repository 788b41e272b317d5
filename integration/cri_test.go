//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubelet is what a kubelet does, over the socket.
type kubelet struct {
	n       *node
	runtime criv1.RuntimeServiceClient
	images  criv1.ImageServiceClient
	ctx     context.Context
}

func newKubelet(t *testing.T, n *node) *kubelet {
	t.Helper()
	conn, err := n.Dial()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // an emulated machine takes its time
	t.Cleanup(func() {
		cancel()
		conn.Close()
	})
	return &kubelet{n, criv1.NewRuntimeServiceClient(conn), criv1.NewImageServiceClient(conn), ctx}
}

func (k *kubelet) sandboxConfig(name string) *criv1.PodSandboxConfig {
	return &criv1.PodSandboxConfig{
		Metadata:     &criv1.PodSandboxMetadata{Name: name, Namespace: "kube", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(k.n.Dir, "logs", name),
		Labels:       map[string]string{"app": name},
		DnsConfig:    &criv1.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}},
		Linux:        &criv1.LinuxPodSandboxConfig{CgroupParent: k.n.CgroupParent + "/kubepods"},
	}
}

// up runs a pod of one container.
func (k *kubelet) up(name, script string) (sandbox, container string) {
	k.n.t.Helper()
	return k.upWith(name, script)
}

// upWith runs a pod of one container with mounts.
func (k *kubelet) upWith(name, script string, mounts ...*criv1.Mount) (sandbox, container string) {
	k.n.t.Helper()
	config := k.containerConfig(script)
	config.Mounts = mounts
	return k.launch(k.sandboxConfig(name), config)
}

// containerConfig is the container "main" with busybox's shell.
func (k *kubelet) containerConfig(script string) *criv1.ContainerConfig {
	return &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: "main"},
		Image:    &criv1.ImageSpec{Image: busybox},
		Command:  []string{"sh", "-c", script},
		LogPath:  "main.log",
		Linux:    &criv1.LinuxContainerConfig{SecurityContext: &criv1.LinuxContainerSecurityContext{}},
	}
}

// launch runs a pod and starts a container in it.
func (k *kubelet) launch(pod *criv1.PodSandboxConfig, config *criv1.ContainerConfig) (sandbox, container string) {
	t := k.n.t
	t.Helper()
	if pod.LogDirectory != "" {
		if err := os.MkdirAll(pod.LogDirectory, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sb, err := k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: pod})
	if err != nil {
		t.Fatal(err)
	}
	c, err := k.runtime.CreateContainer(k.ctx, &criv1.CreateContainerRequest{PodSandboxId: sb.PodSandboxId, SandboxConfig: pod, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.runtime.StartContainer(k.ctx, &criv1.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return sb.PodSandboxId, c.ContainerId
}

// The life of a pod as a kubelet drives it.
func TestCRIPodLife(t *testing.T) {
	n := newNode(t, "cri")
	k := newKubelet(t, n)
	v, err := k.runtime.Version(k.ctx, &criv1.VersionRequest{})
	if err != nil || v.RuntimeName == "" || v.RuntimeVersion == "" || v.RuntimeApiVersion == "" || v.Version != "0.1.0" {
		t.Errorf("version %v, %v", v, err)
	}
	sandbox, container := k.up("life", "echo started; trap 'exit 9' TERM; while :; do sleep 0.1; done")
	st, err := k.runtime.PodSandboxStatus(k.ctx, &criv1.PodSandboxStatusRequest{PodSandboxId: sandbox})
	if err != nil || st.Status.State != criv1.PodSandboxState_SANDBOX_READY || st.Status.Network.GetIp() == "" {
		t.Fatalf("status of the pod %v, %v", st, err)
	}
	ex, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: container, Cmd: []string{"sh", "-c", "cat /etc/resolv.conf; echo e >&2; exit 3"}, Timeout: 30})
	if err != nil || ex.ExitCode != 3 || string(ex.Stderr) != "e\n" || !strings.Contains(string(ex.Stdout), "nameserver 10.96.0.10") {
		t.Errorf("ExecSync %v, %v", ex, err)
	}
	if _, err := k.runtime.StopContainer(k.ctx, &criv1.StopContainerRequest{ContainerId: container, Timeout: 20}); err != nil {
		t.Fatal(err)
	}
	cs, err := k.runtime.ContainerStatus(k.ctx, &criv1.ContainerStatusRequest{ContainerId: container})
	if err != nil || cs.Status.State != criv1.ContainerState_CONTAINER_EXITED || cs.Status.ExitCode != 9 {
		t.Errorf("status of the stopped container %v, %v", cs, err)
	}
	raw, err := os.ReadFile(filepath.Join(n.Dir, "logs", "life", "main.log"))
	if err != nil || !strings.HasSuffix(string(raw), " stdout F started\n") {
		t.Errorf("log %q, %v", raw, err)
	}
	k.down(sandbox, container)
}

// down removes a pod the way a kubelet does, everything twice.
func (k *kubelet) down(sandbox, container string) {
	t := k.n.t
	t.Helper()
	for range 2 {
		_, err1 := k.runtime.StopContainer(k.ctx, &criv1.StopContainerRequest{ContainerId: container})
		_, err2 := k.runtime.RemoveContainer(k.ctx, &criv1.RemoveContainerRequest{ContainerId: container})
		_, err3 := k.runtime.StopPodSandbox(k.ctx, &criv1.StopPodSandboxRequest{PodSandboxId: sandbox})
		_, err4 := k.runtime.RemovePodSandbox(k.ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: sandbox})
		for _, err := range []error{err1, err2, err3, err4} {
			if err != nil {
				t.Error(err)
			}
		}
	}
	_, err := k.runtime.PodSandboxStatus(k.ctx, &criv1.PodSandboxStatusRequest{PodSandboxId: sandbox})
	if status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed pod: %v, want NotFound", err)
	}
	_, err = k.runtime.ContainerStatus(k.ctx, &criv1.ContainerStatusRequest{ContainerId: container})
	if status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed container: %v, want NotFound", err)
	}
	if err := os.RemoveAll(filepath.Join(k.n.Dir, "logs")); err != nil {
		t.Error(err)
	}
}

// Pods of a kubelet outlive the daemon and are listed as before.
func TestCRIRestart(t *testing.T) {
	n := newNode(t, "crirestart")
	k := newKubelet(t, n)
	sandbox, container := k.up("stay", "while :; do sleep 1; done")
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.eventually("the container is listed as running", func() error {
		l, err := k.runtime.ListContainers(k.ctx, &criv1.ListContainersRequest{Filter: &criv1.ContainerFilter{PodSandboxId: sandbox}})
		if err != nil {
			return err
		}
		if len(l.Containers) != 1 || l.Containers[0].State != criv1.ContainerState_CONTAINER_RUNNING {
			return fmt.Errorf("list %v", l.Containers)
		}
		return nil
	})
	// The reconcile loop must leave pods alone that it did not make.
	n.ok("delete", "--all", "-A")
	if ex, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}}); err != nil || ex.ExitCode != 0 {
		t.Errorf("exec after the restart: %v, %v", ex, err)
	}
	k.down(sandbox, container)
}

func TestCRIImages(t *testing.T) {
	n := newNode(t, "criimages")
	k := newKubelet(t, n)
	st, err := k.images.ImageStatus(k.ctx, &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: busybox}})
	if err != nil || st.Image.GetId() == "" || st.Image.GetSize() == 0 {
		t.Fatalf("status of %s: %v, %v", busybox, st, err)
	}
	if st, err := k.images.ImageStatus(k.ctx, &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: "localhost/none:1"}}); err != nil || st.Image != nil {
		t.Errorf("status of an absent image: %v, %v", st, err)
	}
	l, err := k.images.ListImages(k.ctx, &criv1.ListImagesRequest{})
	if err != nil || len(l.Images) != 1 || l.Images[0].Id != st.Image.Id {
		t.Errorf("list %v, %v", l, err)
	}
	fs, err := k.images.ImageFsInfo(k.ctx, &criv1.ImageFsInfoRequest{})
	if err != nil || len(fs.ImageFilesystems) == 0 || fs.ImageFilesystems[0].FsId.GetMountpoint() == "" {
		t.Errorf("image filesystem %v, %v", fs, err)
	}
}

// Bad requests are refused with InvalidArgument, and nothing is half-made.
func TestCRIBadRequests(t *testing.T) {
	n := newNode(t, "cribad")
	k := newKubelet(t, n)
	for name, spoil := range map[string]func(*criv1.PodSandboxConfig){
		"no metadata":      func(c *criv1.PodSandboxConfig) { c.Metadata = nil },
		"name with a path": func(c *criv1.PodSandboxConfig) { c.Metadata.Name = "../../x" },
		"uid for CNI_ARGS": func(c *criv1.PodSandboxConfig) { c.Metadata.Uid = "a;K8S_POD_NAME=b" },
		"unknown sysctl":   func(c *criv1.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.panic_on_oom": "1"} },
	} {
		config := k.sandboxConfig("bad")
		spoil(config)
		if _, err := k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: config}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
	if l, err := k.runtime.ListPodSandbox(k.ctx, &criv1.ListPodSandboxRequest{}); err != nil || len(l.Items) != 0 {
		t.Errorf("pods after refused requests: %v, %v", l, err)
	}
}

func (k *kubelet) execSync(container string, seconds int64, command ...string) (*criv1.ExecSyncResponse, error) {
	return k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: container, Cmd: command, Timeout: seconds})
}
