//go:build integration

package integration

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A checkpoint as a kubelet asks for it; where CRIU does not work, the answer says what to do.
func TestCheckpoint(t *testing.T) {
	n := newNode(t, "checkpoint")
	k := newKubelet(t, n)
	sandbox, container := ownPIDs(k, "memory", "echo kept > /kept; rm /etc/group; while :; do sleep 0.2; done")
	location := filepath.Join(n.Dir, "memory.tar")
	n.eventually("the container has changed its files", func() error {
		ex, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: container, Cmd: []string{"sh", "-c", "test -e /kept && ! test -e /etc/group"}, Timeout: 60})
		if err == nil && ex.ExitCode != 0 {
			err = errors.New("not yet")
		}
		return err
	})
	_, err := k.runtime.CheckpointContainer(k.ctx, &criv1.CheckpointContainerRequest{ContainerId: container, Location: location, Timeout: 120})
	if out, works := exec.Command("criu", "check").CombinedOutput(); works != nil {
		if err == nil || !strings.Contains(err.Error(), "criu") {
			t.Errorf("without CRIU: %v", err)
		}
		k.down(sandbox, container)
		t.Skipf("CRIU does not work here (criu check: %v %.200s); make vm has a kernel with which it does", works, out)
	}
	if err != nil {
		t.Fatal(err)
	}
	names, diff := readCheckpoint(t, location)
	for _, want := range []string{"config.dump", "spec.dump", "status", "checkpoint/inventory.img", "checkpoint/pages-1.img"} {
		if !names[want] {
			t.Errorf("no %s in the archive: %v", want, names)
		}
	}
	if !diff["kept"] || !diff["etc/.wh.group"] {
		t.Errorf("changed files: %v", diff)
	}
	// It goes on.
	if ex, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: container, Cmd: []string{"cat", "/kept"}, Timeout: 60}); err != nil || string(ex.Stdout) != "kept\n" {
		t.Errorf("exec after the checkpoint: %v, %v", ex, err)
	}
	if left, _ := filepath.Glob(filepath.Join(n.Dir, ".checkpoint-*")); len(left) > 0 {
		t.Errorf("left beside the archive: %v", left)
	}
	k.down(sandbox, container)
	if _, err := k.runtime.CheckpointContainer(k.ctx, &criv1.CheckpointContainerRequest{ContainerId: container, Location: location}); status.Code(err) != codes.NotFound {
		t.Errorf("checkpoint of a removed container: %v", err)
	}
}

// A pod's checkpoint holds the containers that were named; all go on, and after an
// error the folder is empty.
func TestCheckpointPod(t *testing.T) {
	n := newNode(t, "podcheckpoint")
	k := newKubelet(t, n)
	sandbox, one := ownPIDs(k, "memory", "while :; do sleep 0.2; done")
	defer k.down(sandbox, one)
	dir := t.TempDir()
	request := &criv1.CheckpointPodRequest{PodSandboxId: sandbox, OutputPath: dir, ContainerIds: []string{one}}
	_, err := k.runtime.CheckpointPod(k.ctx, request)
	if out, works := exec.Command("criu", "check").CombinedOutput(); works != nil {
		if err == nil || !strings.Contains(err.Error(), "criu") {
			t.Errorf("without CRIU: %v", err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left after an error: %v", left)
		}
		t.Skipf("CRIU does not work here (criu check: %v %.200s)", works, out)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pod.json", "container-0/config.dump", "container-0/rootfs-diff.tar", "container-0/checkpoint/inventory.img"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if ex, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: one, Cmd: []string{"true"}, Timeout: 60}); err != nil || ex.ExitCode != 0 {
		t.Errorf("exec after the checkpoint: %v, %v", ex, err)
	}
	if _, err := k.runtime.CheckpointPod(k.ctx, request); status.Code(err) != codes.InvalidArgument {
		t.Errorf("into a folder that is not empty: %v", err)
	}
}

// A pod that is restored goes on where its checkpoint was made, in a pod of its own;
// what the checkpoint says does not change its confinement.
func TestRestorePod(t *testing.T) {
	n := newNode(t, "restorepod")
	k := newKubelet(t, n)
	if out, works := exec.Command("criu", "check").CombinedOutput(); works != nil {
		t.Skipf("CRIU does not work here (criu check: %v %.200s)", works, out)
	}
	volume := t.TempDir()
	pod, config := k.sandboxConfig("count"), k.containerConfig(`exec 3>>/count; sleep 100000 | cat >/dev/null & rm /etc/group; trap 'exit 7' TERM
		i=0; while :; do i=$((i+1)); echo $i; echo $i >&3; echo $i >/data/last; sleep 0.2; done`)
	own := &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER}
	pod.Linux.SecurityContext = &criv1.LinuxSandboxSecurityContext{NamespaceOptions: own}
	config.Linux.SecurityContext = &criv1.LinuxContainerSecurityContext{NamespaceOptions: own, NoNewPrivs: true}
	config.Mounts = []*criv1.Mount{{HostPath: volume, ContainerPath: "/data"}, {HostPath: "/usr", ContainerPath: "/usr/host", Readonly: true}}
	sandbox, container := k.launch(pod, config)
	last := func() int {
		data, _ := os.ReadFile(filepath.Join(volume, "last"))
		i, _ := strconv.Atoi(strings.TrimSpace(string(data)))
		return i
	}
	n.eventually("it counts", func() error {
		if last() < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	dir := t.TempDir()
	if _, err := k.runtime.CheckpointPod(k.ctx, &criv1.CheckpointPodRequest{PodSandboxId: sandbox, OutputPath: dir, ContainerIds: []string{container}}); err != nil {
		t.Fatal(err)
	}
	k.down(sandbox, container)
	reached := last()
	pod.Metadata.Uid, pod.Hostname = "uid-again", "again"
	if err := os.MkdirAll(pod.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}

	// Requests of less than the checkpoint has are refused, and nothing is left of them.
	for what, change := range map[string]func(*criv1.ContainerConfig){
		"another user": func(c *criv1.ContainerConfig) { c.Linux.SecurityContext.RunAsUser = &criv1.Int64Value{Value: 1000} },
		"no capabilities": func(c *criv1.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &criv1.Capability{DropCapabilities: []string{"ALL"}}
		},
		"a filter": func(c *criv1.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_RuntimeDefault}
		},
		"no volume":       func(c *criv1.ContainerConfig) { c.Mounts = nil },
		"read-only":       func(c *criv1.ContainerConfig) { c.Mounts[0].Readonly = true },
		"another command": func(c *criv1.ContainerConfig) { c.Command = []string{"sh"} },
	} {
		strict := proto.Clone(config).(*criv1.ContainerConfig)
		change(strict)
		_, err := k.runtime.RestorePod(k.ctx, &criv1.RestorePodRequest{CheckpointPath: dir, Config: pod, ContainerConfigs: []*criv1.ContainerConfig{strict}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	if list, err := k.runtime.ListPodSandbox(k.ctx, &criv1.ListPodSandboxRequest{}); err != nil || len(list.Items) > 0 {
		t.Errorf("left after refusals: %v, %v", list, err)
	}

	restored, err := k.runtime.RestorePod(k.ctx, &criv1.RestorePodRequest{CheckpointPath: dir, Config: pod, ContainerConfigs: []*criv1.ContainerConfig{config}})
	if err != nil {
		t.Fatal(err)
	}
	if len(restored.RestoredContainers) != 1 || restored.RestoredContainers[0].Name != "main" {
		t.Fatalf("restored %v", restored)
	}
	sandbox, container = restored.PodSandboxId, restored.RestoredContainers[0].ContainerId
	if st, err := k.runtime.ContainerStatus(k.ctx, &criv1.ContainerStatusRequest{ContainerId: container}); err != nil || st.Status.State != criv1.ContainerState_CONTAINER_CREATED || last() != reached {
		t.Errorf("before its start: %v, %v, count %d after %d", st, err, last(), reached)
	}
	if _, err := k.runtime.StartContainer(k.ctx, &criv1.StartContainerRequest{ContainerId: container}); err != nil {
		t.Fatal(err)
	}
	goesOn := func(what string) {
		t.Helper()
		before := last()
		n.eventually(what, func() error {
			if now := last(); now <= before {
				return fmt.Errorf("it is at %d after %d", now, before)
			}
			return nil
		})
	}
	goesOn("it counts on")
	if now := last(); now < reached-5 {
		t.Errorf("it began anew: %d after %d", now, reached)
	}
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.restart()
	k = newKubelet(t, n)
	goesOn("it counts on without its daemon")
	ex, err := k.execSync(container, 60, "sh", "-c", "hostname; test -e /etc/group || echo removed; head -1 /count; grep -E 'NoNewPrivs|CapBnd' /proc/1/status; ls /sys/class/net; touch /usr/host/x 2>&1")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"again\n", "removed\n", "\n1\n", "NoNewPrivs:\t1", "eth0", "Read-only"} {
		if !strings.Contains(string(ex.Stdout), want) {
			t.Errorf("no %q in %q", want, ex.Stdout)
		}
	}
	log, err := os.ReadFile(filepath.Join(pod.LogDirectory, config.LogPath))
	if err != nil || !strings.Contains(string(log), fmt.Sprintf(" stdout F %d\n", reached+1)) {
		t.Errorf("the log has no %d: %v", reached+1, err)
	}
	if _, err := k.runtime.StopContainer(k.ctx, &criv1.StopContainerRequest{ContainerId: container, Timeout: 60}); err != nil {
		t.Fatal(err)
	}
	if st, err := k.runtime.ContainerStatus(k.ctx, &criv1.ContainerStatusRequest{ContainerId: container}); err != nil || st.Status.ExitCode != 7 {
		t.Errorf("its end: %v, %v", st, err)
	}
	k.down(sandbox, container)
}

// Two containers that are confined as strictly as it goes are restored so.
func TestRestorePodConfined(t *testing.T) {
	n := newNode(t, "confined")
	k := newKubelet(t, n)
	if out, works := exec.Command("criu", "check").CombinedOutput(); works != nil {
		t.Skipf("CRIU does not work here (criu check: %v %.200s)", works, out)
	}
	pod, own := k.sandboxConfig("strict"), &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER}
	pod.Linux.SecurityContext = &criv1.LinuxSandboxSecurityContext{NamespaceOptions: own}
	strict := func(name string) *criv1.ContainerConfig {
		c := k.containerConfig("i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done")
		c.Metadata.Name, c.LogPath = name, name+".log"
		c.Linux.Resources = &criv1.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
		c.Linux.SecurityContext = &criv1.LinuxContainerSecurityContext{
			NamespaceOptions: own, NoNewPrivs: true, RunAsUser: &criv1.Int64Value{Value: 1000}, RunAsGroup: &criv1.Int64Value{Value: 1000},
			Capabilities: &criv1.Capability{DropCapabilities: []string{"ALL"}},
			Seccomp:      &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_RuntimeDefault},
		}
		return c
	}
	configs := []*criv1.ContainerConfig{strict("one"), strict("two")}
	sandbox, one := k.launch(pod, configs[0])
	c, err := k.runtime.CreateContainer(k.ctx, &criv1.CreateContainerRequest{PodSandboxId: sandbox, SandboxConfig: pod, Config: configs[1]})
	if err == nil {
		_, err = k.runtime.StartContainer(k.ctx, &criv1.StartContainerRequest{ContainerId: c.ContainerId})
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := k.runtime.CheckpointPod(k.ctx, &criv1.CheckpointPodRequest{PodSandboxId: sandbox, OutputPath: dir, ContainerIds: []string{one, c.ContainerId}}); err != nil {
		t.Fatal(err)
	}
	k.down(sandbox, one)
	if err := os.MkdirAll(pod.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	restored, err := k.runtime.RestorePod(k.ctx, &criv1.RestorePodRequest{CheckpointPath: dir, Config: pod, ContainerConfigs: configs})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range restored.RestoredContainers {
		if _, err := k.runtime.StartContainer(k.ctx, &criv1.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
			t.Fatal(err)
		}
		ex, err := k.execSync(r.ContainerId, 60, "sh", "-c", "grep -E '^(Uid|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status; cat /sys/fs/cgroup/memory.max; touch /x 2>&1")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Uid:\t1000\t1000\t1000\t1000\n", "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n", "67108864\n", "Permission denied"} {
			if !strings.Contains(string(ex.Stdout), want) {
				t.Errorf("%s: no %q in %q", r.Name, want, ex.Stdout)
			}
		}
	}
	k.down(restored.PodSandboxId, restored.RestoredContainers[0].ContainerId)
}

// ownPIDs runs a container with a PID namespace of its own, as a kubelet's have by default.
func ownPIDs(k *kubelet, name, script string) (sandbox, container string) {
	k.n.t.Helper()
	own := &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER}
	pod, config := k.sandboxConfig(name), k.containerConfig(script)
	pod.LogDirectory, config.LogPath = "", ""
	pod.Linux.SecurityContext = &criv1.LinuxSandboxSecurityContext{NamespaceOptions: own}
	config.Linux.SecurityContext.NamespaceOptions = own
	return k.launch(pod, config)
}

// readCheckpoint gives the names in an archive, and those in its layer of changed files.
func readCheckpoint(t *testing.T, path string) (names, diff map[string]bool) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, diff = map[string]bool{}, map[string]bool{}
	walk := func(r io.Reader, each func(h *tar.Header, content io.Reader)) {
		for a := tar.NewReader(r); ; {
			h, err := a.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			each(h, a)
		}
	}
	walk(f, func(h *tar.Header, content io.Reader) {
		names[h.Name] = true
		if h.Name == "rootfs-diff.tar" {
			walk(content, func(h *tar.Header, _ io.Reader) { diff[h.Name] = true })
		}
	})
	return names, diff
}
