//go:build integration

package integration

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

// nodeAgent is a real kubelet without an API server. It runs the pods whose
// manifests lie in its folder.
type nodeAgent struct {
	*node
	dir    string
	gates  map[string]bool
	more   map[string]any // of its configuration
	log    *os.File
	client *http.Client
	api    string        // relay to the kubelet's own API
	done   chan struct{} // closed when the present process has ended
}

// allGates are what a kubelet of 1.37 can use of a runtime and does not by default.
func allGates() map[string]bool {
	return map[string]bool{"PodAndContainerStatsFromCRI": true, "CRIListStreaming": true, "EventedPLEG": true, "ContainerStopSignals": true}
}

// newAgent starts a daemon and a kubelet on a host of their own.
func newAgent(t *testing.T, name string, gates map[string]bool) *nodeAgent {
	t.Helper()
	return newAgentWith(t, name, gates, nil)
}

// newAgentWith is newAgent with more of a kubelet's configuration, and of the daemon's environment.
func newAgentWith(t *testing.T, name string, gates map[string]bool, more map[string]any, env ...string) *nodeAgent {
	t.Helper()
	n := newHost(t, name)
	n.Env = append(n.Env, env...)
	if _, err := os.Stat(filepath.Join(n.Bin, "tools", "kubelet")); err != nil {
		t.Fatalf("%v: run 'make bin/tools/kubelet' first", err)
	}
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	k := &nodeAgent{node: n, dir: filepath.Join(n.Dir, "kubelet"), gates: gates, more: more, client: &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			DialContext:       n.DialContext,
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // it signs its own certificate
		},
	}}
	k.furnish()
	k.start()
	k.api = k.relay("10250")
	k.baseline()
	t.Cleanup(func() { k.stop(syscall.SIGTERM) })
	return k
}

// furnish gives the host what a kubelet expects of a machine. What it would change
// of the machine itself, it finds changed already: files are mounted over it.
func (k *nodeAgent) furnish() {
	k.t.Helper()
	for _, dir := range []string{"", "manifests", "pods", "proc", "whole"} {
		if err := os.Mkdir(filepath.Join(k.dir, dir), 0o755); err != nil {
			k.t.Fatal(err)
		}
	}
	var err error
	if k.log, err = os.OpenFile(filepath.Join(k.Dir, "kubelet.log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() {
		if k.t.Failed() {
			k.t.Logf("end of the kubelet's log:\n%s", k.logTail())
		}
		k.log.Close()
	})
	script := strings.Builder{}
	for path, content := range map[string]string{
		"/proc/sys/vm/overcommit_memory": "1", "/proc/sys/vm/panic_on_oom": "0", "/proc/sys/kernel/panic": "10",
		"/proc/sys/kernel/panic_on_oops": "1", "/proc/sys/kernel/keys/root_maxkeys": "1000000", "/proc/sys/kernel/keys/root_maxbytes": "25000000",
		"/etc/hosts": "127.0.0.1 localhost\n10.99.0.1 " + k.Name, "/etc/resolv.conf": "nameserver 192.0.2.1",
	} {
		file := filepath.Join(k.dir, "proc", filepath.Base(path))
		if err := os.WriteFile(file, []byte(content+"\n"), 0o644); err != nil { //nolint:gosec // pods read them
			k.t.Fatal(err)
		}
		fmt.Fprintf(&script, "mount --bind %s %s\n", file, path)
	}
	// The kernel mounts /proc in a user namespace only where one is to be seen without anything over its files.
	fmt.Fprintf(&script, "mount -t proc proc %s\n", filepath.Join(k.dir, "whole"))
	script.WriteString(`
mount -t tmpfs log /var/log
mount -t tmpfs lib /var/lib
ip link add node0 type veth peer name node1
ip addr add 10.99.0.1/24 dev node0
ip link set node0 up
ip link set node1 up
ip route add default via 10.99.0.2
`)
	if _, err := k.Output("sh", "-euc", script.String()); err != nil {
		k.t.Fatal(err)
	}
}

// start starts the kubelet and waits until it answers.
func (k *nodeAgent) start() {
	k.t.Helper()
	group, err := k.MakeCgroup("kube")
	if err != nil {
		k.t.Fatal(err)
	}
	settings := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"staticPodPath": filepath.Join(k.dir, "manifests"), "fileCheckFrequency": "1s", "podLogsDir": filepath.Join(k.dir, "pods"),
		"failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": group, "failSwapOn": false, "protectKernelDefaults": true,
		"containerRuntimeEndpoint": "unix:///run/pausa/pausa.sock", "address": "127.0.0.1", "readOnlyPort": 10255,
		"authentication": map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":  map[string]any{"mode": "AlwaysAllow"}, "makeIPTablesUtilChains": false, "resolvConf": "/etc/resolv.conf",
		"evictionHard": map[string]string{"memory.available": "10Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
		"featureGates": k.gates, "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
	}
	maps.Copy(settings, k.more)
	config, err := yaml.Marshal(settings)
	if err != nil {
		k.t.Fatal(err)
	}
	path := filepath.Join(k.dir, "config.yaml")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		k.t.Fatal(err)
	}
	cmd := k.Command(context.Background(), filepath.Join(k.Bin, "tools", "kubelet"), "--config", path, "--hostname-override", k.Name,
		"--node-ip", "10.99.0.1", "--root-dir", filepath.Join(k.dir, "root"), "--cert-dir", filepath.Join(k.dir, "root", "pki"), "--v", "2")
	cmd.Stdout, cmd.Stderr = k.log, k.log
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	k.done = make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(k.done)
	}()
	k.eventually("the kubelet answers", func() error {
		select {
		case <-k.done:
			k.t.Fatalf("the kubelet ended:\n%s", k.logTail())
		default:
		}
		_, err := k.get("http://127.0.0.1:10255/pods")
		return err
	})
}

// stop ends the kubelet; its pods go on.
func (k *nodeAgent) stop(sig syscall.Signal) {
	k.t.Helper()
	if err := k.KillAll("kubelet", sig); err != nil {
		k.t.Error(err)
	}
	<-k.done
}

func (k *nodeAgent) logTail() string {
	raw, _ := os.ReadFile(k.log.Name())
	return string(raw[max(0, len(raw)-30000):])
}

// get reads one page of the kubelet's.
func (k *nodeAgent) get(url string) (string, error) {
	resp, err := k.client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return string(body), err
}

// declare puts a pod's manifest into the kubelet's folder, or another one in its place.
func (k *nodeAgent) declare(p *corev1.Pod) {
	k.t.Helper()
	p.APIVersion, p.Kind = "v1", "Pod"
	if p.Namespace == "" {
		p.Namespace = "default"
	}
	raw, err := yaml.Marshal(p)
	if err != nil {
		k.t.Fatal(err)
	}
	path := filepath.Join(k.dir, "manifests", p.Name+".yaml")
	tmp := filepath.Join(k.dir, p.Name+".tmp")
	if err := errors.Join(os.WriteFile(tmp, raw, 0o600), os.Rename(tmp, path)); err != nil {
		k.t.Fatal(err)
	}
}

// withdraw takes a pod's manifest away.
func (k *nodeAgent) withdraw(name string) {
	k.t.Helper()
	if err := os.Remove(filepath.Join(k.dir, "manifests", name+".yaml")); err != nil {
		k.t.Fatal(err)
	}
}

// podsByName are the kubelet's pods with their status, by the name in their manifest.
func (k *nodeAgent) podsByName() (map[string]*corev1.Pod, error) {
	raw, err := k.get("http://127.0.0.1:10255/pods")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal([]byte(raw), &list); err != nil {
		return nil, err
	}
	out := map[string]*corev1.Pod{}
	for i := range list.Items {
		out[strings.TrimSuffix(list.Items[i].Name, "-"+k.Name)] = &list.Items[i]
	}
	return out, nil
}

// await waits until a pod passes a check.
func (k *nodeAgent) await(name, what string, check func(*corev1.Pod) error) *corev1.Pod {
	k.t.Helper()
	var p *corev1.Pod
	k.eventually(name+" "+what, func() error {
		all, err := k.podsByName()
		if err != nil {
			return err
		}
		if p = all[name]; p == nil {
			return fmt.Errorf("the kubelet has only %v", slices.Collect(maps.Keys(all)))
		}
		if err := check(p); err != nil {
			status, _ := json.Marshal(p.Status)
			return fmt.Errorf("%w: %s", err, status)
		}
		return nil
	})
	return p
}

// awaitReady waits until a pod is running and ready.
func (k *nodeAgent) awaitReady(name string) *corev1.Pod {
	k.t.Helper()
	return k.await(name, "is ready", func(p *corev1.Pod) error {
		if p.Status.Phase != corev1.PodRunning || !isReady(*p) {
			return fmt.Errorf("it is %s", p.Status.Phase)
		}
		return nil
	})
}

// awaitGone waits until the kubelet has stopped all pods. It collects what is left
// of them once a minute: that is done here.
func (k *nodeAgent) awaitGone() {
	k.t.Helper()
	cri := newKubelet(k.t, k.node)
	var pods *criv1.ListPodSandboxResponse
	k.eventually("all pods have ended", func() error {
		ctrs, err := cri.runtime.ListContainers(cri.ctx, &criv1.ListContainersRequest{})
		if err != nil {
			return err
		}
		for _, c := range ctrs.Containers {
			if c.State != criv1.ContainerState_CONTAINER_EXITED {
				return fmt.Errorf("container %s is %s", c.Metadata.Name, c.State)
			}
		}
		if pods, err = cri.runtime.ListPodSandbox(cri.ctx, &criv1.ListPodSandboxRequest{}); err != nil {
			return err
		}
		for _, p := range pods.Items {
			if p.State == criv1.PodSandboxState_SANDBOX_READY {
				return fmt.Errorf("%s is still ready", p.Metadata.Name)
			}
		}
		return nil
	})
	k.eventually("the kubelet has removed the pods' cgroups", func() error {
		s, err := k.Snapshot()
		if err != nil {
			return err
		}
		for _, line := range s {
			if strings.HasPrefix(line, "cgroup ") && strings.HasPrefix(filepath.Base(line), "pod") {
				return errors.New(line)
			}
		}
		return nil
	})
	for _, p := range pods.Items {
		if _, err := cri.runtime.RemovePodSandbox(cri.ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			k.t.Error(err)
		}
	}
}

// relay listens on this machine's loopback and passes connections to a port of the host's.
func (n *node) relay(port string) string {
	n.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			out, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer out.Close()
				in, err := n.DialContext(context.Background(), "tcp", "127.0.0.1:"+port)
				if err != nil {
					return
				}
				defer in.Close()
				go func() {
					_, _ = io.Copy(in, out)
					_ = in.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(out, in)
			}()
		}
	}()
	return l.Addr().String()
}
