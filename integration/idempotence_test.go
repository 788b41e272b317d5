//go:build integration

package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// slowPlugin is a CNI plugin that waits in ADD while a file is there, and keeps a list of its calls.
const slowPlugin = `#!/bin/sh
cat >/dev/null
[ "$CNI_COMMAND" = VERSION ] && { echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'; exit 0; }
echo "$CNI_COMMAND $CNI_CONTAINERID" >>DIR/calls
[ "$CNI_COMMAND" = ADD ] || exit 0
while [ -e DIR/hold ]; do sleep 0.05; done
echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'
`

// newSlowNode is a node whose pods' network is slowPlugin's.
func newSlowNode(t *testing.T, name string) *node {
	t.Helper()
	n := newHost(t, name)
	for path, content := range map[string]string{
		"cni/10-slow.conflist": `{"cniVersion": "1.0.0", "name": "slow", "plugins": [{"type": "slow"}]}`,
		"cnibin/slow":          strings.ReplaceAll(slowPlugin, "DIR", n.Dir),
	} {
		path = filepath.Join(n.Dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil { //nolint:gosec // it is a program
			t.Fatal(err)
		}
	}
	n.Env = append(n.Env, "PAUSA_NETWORK_CNI_BIN_DIRS="+n.Dir+"/cnibin")
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	n.baseline()
	return n
}

// hold makes the plugin wait from now on, or no longer.
func (n *node) hold(on bool) {
	n.t.Helper()
	path := filepath.Join(n.Dir, "hold")
	err := os.WriteFile(path, nil, 0o600)
	if !on {
		err = os.Remove(path)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// calls are how often the plugin was asked for a verb.
func (n *node) calls(verb string) int {
	raw, _ := os.ReadFile(filepath.Join(n.Dir, "calls"))
	return strings.Count(string(raw), verb+" ")
}

// Requests that come again while the first is under way get its result, and no list waits for it.
func TestDuplicatesJoin(t *testing.T) {
	n := newSlowNode(t, "join")
	k := newKubelet(t, n)
	n.hold(true)
	config := k.sandboxConfig("same")
	var wg sync.WaitGroup
	ids, errs := make([]string, 8), make([]error, 8)
	for i := range ids {
		wg.Go(func() {
			var r *criv1.RunPodSandboxResponse
			r, errs[i] = k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: config})
			ids[i] = r.GetPodSandboxId()
		})
	}
	n.eventually("the plugin hangs", func() error {
		if n.calls("ADD") == 0 {
			return fmt.Errorf("it was not called")
		}
		return nil
	})
	k.listAll()
	n.hold(false)
	wg.Wait()
	for i := range ids {
		if errs[i] != nil || ids[i] == "" || ids[i] != ids[0] {
			t.Errorf("request %d got %q, %v; the first %q", i, ids[i], errs[i], ids[0])
		}
	}
	if c := n.calls("ADD"); c != 1 {
		t.Errorf("the pod was attached %d times", c)
	}
	k.down(ids[0], "none")
}

// listAll asks for everything that a kubelet asks for each second.
func (k *kubelet) listAll() {
	k.n.t.Helper()
	ctx, cancel := context.WithTimeout(k.ctx, 20*time.Second)
	defer cancel()
	for name, list := range map[string]func() error{
		"pods": func() error {
			_, err := k.runtime.ListPodSandbox(ctx, &criv1.ListPodSandboxRequest{})
			return err
		},
		"containers": func() error {
			_, err := k.runtime.ListContainers(ctx, &criv1.ListContainersRequest{})
			return err
		},
		"stats": func() error {
			_, err := k.runtime.ListContainerStats(ctx, &criv1.ListContainerStatsRequest{})
			return err
		},
		"pod stats": func() error {
			_, err := k.runtime.ListPodSandboxStats(ctx, &criv1.ListPodSandboxStatsRequest{})
			return err
		},
		"metrics": func() error {
			_, err := k.runtime.ListPodSandboxMetrics(ctx, &criv1.ListPodSandboxMetricsRequest{})
			return err
		},
		"images": func() error {
			_, err := k.images.ListImages(ctx, &criv1.ListImagesRequest{})
			return err
		},
		"status": func() error {
			_, err := k.runtime.Status(ctx, &criv1.StatusRequest{})
			return err
		},
	} {
		if err := list(); err != nil {
			k.n.t.Errorf("list %s while a pod is being made: %v", name, err)
		}
	}
}

// What a passed deadline has left half-made is undone, and the same request succeeds.
func TestDeadlineRollsBack(t *testing.T) {
	n := newSlowNode(t, "deadline")
	k := newKubelet(t, n)
	n.hold(true)
	config := k.sandboxConfig("late")
	ctx, cancel := context.WithTimeout(k.ctx, 500*time.Millisecond)
	defer cancel()
	if r, err := k.runtime.RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: config}); status.Code(err) != codes.DeadlineExceeded {
		t.Fatalf("a pod whose network hangs: %v, %v", r, err)
	}
	n.eventually("the pod is undone", func() error {
		l, err := k.runtime.ListPodSandbox(k.ctx, &criv1.ListPodSandboxRequest{})
		if err != nil || len(l.Items) > 0 || n.calls("DEL") == 0 {
			return fmt.Errorf("there is %v, %w; %d times detached", l.GetItems(), err, n.calls("DEL"))
		}
		return nil
	})
	n.hold(false)
	rnd := rand.New(rand.NewPCG(*seed, 1))
	for i := range 30 { // each of them at another step
		ctx, cancel := context.WithTimeout(k.ctx, time.Duration(rnd.IntN(60_000))*time.Microsecond)
		_, _ = k.runtime.RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: config})
		cancel()
		var sb *criv1.RunPodSandboxResponse
		n.eventually(fmt.Sprintf("request %d succeeds", i), func() (err error) {
			sb, err = k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: config})
			return err
		})
		k.down(sb.PodSandboxId, "none")
	}
}

// What was never there is stopped and removed without an error, and has no status.
func TestUnknownNames(t *testing.T) {
	n := newNode(t, "unknown")
	k := newKubelet(t, n)
	const id = "00000000000000000000000000000000000000000000000000000000000000ff"
	k.down(id, id)
	for name, call := range map[string]func() error{
		"start": func() error {
			_, err := k.runtime.StartContainer(k.ctx, &criv1.StartContainerRequest{ContainerId: id})
			return err
		},
		"stats": func() error {
			_, err := k.runtime.ContainerStats(k.ctx, &criv1.ContainerStatsRequest{ContainerId: id})
			return err
		},
		"update": func() error {
			_, err := k.runtime.UpdateContainerResources(k.ctx, &criv1.UpdateContainerResourcesRequest{ContainerId: id, Linux: &criv1.LinuxContainerResources{CpuShares: 10}})
			return err
		},
		"exec": func() error {
			_, err := k.runtime.ExecSync(k.ctx, &criv1.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
		"forward": func() error {
			_, err := k.runtime.PortForward(k.ctx, &criv1.PortForwardRequest{PodSandboxId: id})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.NotFound {
			t.Errorf("%s of the unknown: %v, want NotFound", name, err)
		}
	}
}
