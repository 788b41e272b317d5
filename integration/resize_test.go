//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// memoryOf finds the memory limit of a cgroup below the host's parent group, whatever the version.
func (n *node) memoryOf(group string) string {
	n.t.Helper()
	for _, path := range []string{"/sys/fs/cgroup/memory/%s/memory.limit_in_bytes", "/sys/fs/cgroup/%s/memory.max"} {
		if found, _ := filepath.Glob(fmt.Sprintf(path, filepath.Join(n.CgroupParent, group))); len(found) == 1 {
			raw, err := os.ReadFile(found[0])
			if err != nil {
				n.t.Fatal(err)
			}
			return strings.TrimSpace(string(raw))
		}
	}
	n.t.Fatalf("no memory cgroup %s", group)
	return ""
}

// A declared pod is resized where it runs, and stays so over the daemon's end.
func TestResizeDeclared(t *testing.T) {
	n := newNode(t, "resize")
	manifest := func(memory string) string {
		return strings.Replace(shellPod("sized", "while :; do sleep 1; done"), "  - name: main\n",
			"  - name: main\n    resources: {requests: {cpu: 50m, memory: 8Mi}, limits: {cpu: 200m, memory: "+memory+"}}\n", 1)
	}
	n.apply(manifest("32Mi"))
	first := n.waitReady("app=sized", 1)[0]
	for memory, bytes := range map[string]string{"96Mi": "100663296", "24Mi": "25165824"} {
		if out := n.apply(manifest(memory)); !strings.Contains(out, "resized") && !strings.Contains(out, "configured") {
			t.Errorf("apply said %q", out)
		}
		n.eventually("the cgroup has "+memory, func() error {
			if got := n.memoryOf("pod*/*"); got != bytes {
				return fmt.Errorf("it has %s", got)
			}
			return nil
		})
		if err := n.KillDaemon(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.restart()
		p := n.waitReady("app=sized", 1)[0]
		if is, was := p.Status.ContainerStatuses[0], first.Status.ContainerStatuses[0]; is.ContainerID != was.ContainerID || is.RestartCount != 0 || is.Resources.Limits.Memory().String() != memory {
			t.Errorf("after the resize to %s and a restart of the daemon: %+v", memory, is)
		}
		if got := n.memoryOf("pod*/*"); got != bytes {
			t.Errorf("after a restart of the daemon the cgroup has %s", got)
		}
	}
	n.fails(manifest("24Mi")+"    resizePolicy: [{resourceName: cpu, restartPolicy: Sometimes}]\n", 1, []string{"resizePolicy", "Sometimes"}, "apply", "-f", "-")
}

// A pod of the CRI with a group of its own is limited as a whole.
func TestResizeSandbox(t *testing.T) {
	n := newNode(t, "resizecri")
	k := newKubelet(t, n)
	config := k.sandboxConfig("whole")
	config.Linux.CgroupParent = ""
	config.Linux.Resources = &criv1.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 128}
	sb, err := k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	group := "pod" + sb.PodSandboxId
	if got := n.memoryOf(group); got != "67108864" {
		t.Errorf("a new pod's memory is limited to %s", got)
	}
	c, err := k.runtime.CreateContainer(k.ctx, &criv1.CreateContainerRequest{PodSandboxId: sb.PodSandboxId, SandboxConfig: config, Config: &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: "main"}, Image: &criv1.ImageSpec{Image: busybox}, Command: []string{"sleep", "1000"},
		Linux: &criv1.LinuxContainerConfig{Resources: &criv1.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, OomScoreAdj: 500}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.runtime.StartContainer(k.ctx, &criv1.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	_, err1 := k.runtime.UpdatePodSandboxResources(k.ctx, &criv1.UpdatePodSandboxResourcesRequest{
		PodSandboxId: sb.PodSandboxId, Resources: &criv1.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
	})
	_, err2 := k.runtime.UpdateContainerResources(k.ctx, &criv1.UpdateContainerResourcesRequest{
		ContainerId: c.ContainerId, Linux: &criv1.LinuxContainerResources{MemoryLimitInBytes: 80 << 20, OomScoreAdj: 600},
	})
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.restart()
	if pod, ctr := n.memoryOf(group), n.memoryOf(group+"/"+c.ContainerId); pod != "100663296" || ctr != "83886080" {
		t.Errorf("the pod has %s, the container %s", pod, ctr)
	}
	st, err := k.runtime.ContainerStatus(k.ctx, &criv1.ContainerStatusRequest{ContainerId: c.ContainerId})
	if err != nil || st.Status.Resources.Linux.MemoryLimitInBytes != 80<<20 {
		t.Errorf("status %v, %v", st, err)
	}
	ex, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"sh", "-c", "cat /proc/$(pidof sleep)/oom_score_adj"}})
	if err != nil || string(ex.Stdout) != "600\n" {
		t.Errorf("the OOM score is %q, %v", ex.GetStdout(), err)
	}
	k.down(sb.PodSandboxId, c.ContainerId)
}
