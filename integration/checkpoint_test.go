//go:build integration

package integration

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
