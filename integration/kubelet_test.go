//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	statsv1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/exec"
)

// shell is a container that runs a script.
func shell(name, script string) corev1.Container {
	return corev1.Container{Name: name, Image: busybox, ImagePullPolicy: corev1.PullNever, Command: []string{"sh", "-c", script}}
}

// namedPod is a pod that gets a uid, so that a changed manifest changes the pod
// instead of replacing it.
func namedPod(name string, containers ...corev1.Container) *corev1.Pod {
	grace := int64(5)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{Containers: containers, TerminationGracePeriodSeconds: &grace},
	}
}

func limits(cpu, memory string) corev1.ResourceRequirements {
	list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	return corev1.ResourceRequirements{Limits: list, Requests: list}
}

// webPod has an init container, a sidecar and all kinds of probes.
func webPod() *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	volume := []corev1.VolumeMount{{Name: "www", MountPath: "/www"}}
	prepare := shell("prepare", "echo made by init >/www/index.html")
	side := shell("side", "while :; do echo beside; sleep 1; done")
	side.RestartPolicy = &always
	main := shell("main", "echo up; exec httpd -f -p 8080 -h /www")
	prepare.VolumeMounts, main.VolumeMounts = volume, volume
	main.Resources = limits("100m", "32Mi")
	port := intstr.FromInt32(8080)
	main.StartupProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-s", "/www/index.html"}}}}
	main.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/index.html", Port: port}}}
	main.LivenessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}}
	p := namedPod("web", main)
	p.Spec.InitContainers = []corev1.Container{prepare, side}
	p.Spec.Volumes = []corev1.Volume{{Name: "www", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	return p
}

// A real kubelet runs pods here: probes, logs, exec, attach, port-forward, a
// crash, a resize in place, restarts of kubelet and daemon, and the end.
func TestKubelet(t *testing.T) {
	k := newAgent(t, "kubelet", nil)
	k.declare(webPod())
	k.declare(namedPod("crash", shell("main", "echo why >/dev/termination-log; exit 3")))
	ended := k.declareGrace()
	web := k.awaitReady("web")
	k.await("crash", "was restarted", func(p *corev1.Pod) error {
		for _, c := range p.Status.ContainerStatuses {
			if last := c.LastTerminationState.Terminated; c.RestartCount > 0 && last != nil && last.ExitCode == 3 && last.Message == "why\n" {
				return nil
			}
		}
		return errors.New("it was not")
	})
	k.checkStreams(web)
	k.checkResize(web)
	before := k.containers()
	k.stop(syscall.SIGKILL)
	if err := k.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	k.restart()
	k.gates = allGates()
	k.start()
	web = k.awaitReady("web")
	k.sameContainers(before)
	k.checkFigures(web)
	for _, name := range []string{"web", "crash", "grace"} {
		k.withdraw(name)
	}
	k.awaitGone()
	if said, err := os.ReadFile(ended); err != nil || string(said) != "ended\n" {
		t.Errorf("the container with a grace period said %q at its end, %v", said, err)
	}
}

// declareGrace runs a pod that needs a second to end, and returns the file to which it says so.
func (k *nodeAgent) declareGrace() string {
	k.t.Helper()
	out := filepath.Join(k.dir, "out")
	if err := os.Mkdir(out, 0o700); err != nil {
		k.t.Fatal(err)
	}
	p := namedPod("grace", shell("main", "trap 'sleep 1; echo ended >/out/end; exit 0' TERM; while :; do sleep 0.1; done"))
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "out", MountPath: "/out"}}
	p.Spec.Volumes = []corev1.Volume{{Name: "out", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: out}}}}
	k.declare(p)
	return filepath.Join(out, "end")
}

// container is the URL of something that the kubelet does with a container.
func (k *nodeAgent) container(verb string, p *corev1.Pod, name string, query url.Values) *url.URL {
	return &url.URL{Scheme: "https", Host: k.api, Path: strings.Join([]string{"", verb, p.Namespace, p.Name, name}, "/"), RawQuery: query.Encode()}
}

// run runs a command in a container and returns what it wrote.
func (k *nodeAgent) run(p *corev1.Pod, container string, command ...string) (string, error) {
	query := url.Values{"command": command, "output": {"1"}, "error": {"1"}}
	var out, errOut bytes.Buffer // both are written to at once
	err := k.stream("exec", p, container, query, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
	return out.String() + errOut.String(), err
}

// stream is what kubectl exec and attach do, but for the API server.
func (k *nodeAgent) stream(verb string, p *corev1.Pod, container string, query url.Values, o remotecommand.StreamOptions) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return k.streamWith(ctx, verb, p, container, query, o)
}

func (k *nodeAgent) streamWith(ctx context.Context, verb string, p *corev1.Pod, container string, query url.Values, o remotecommand.StreamOptions) error {
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	exec, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, k.container(verb, p, container, query))
	if err != nil {
		return err
	}
	return exec.StreamWithContext(ctx, o)
}

// checkStreams uses logs, exec, attach and port-forward of the kubelet's own API.
func (k *nodeAgent) checkStreams(web *corev1.Pod) {
	t := k.t
	t.Helper()
	log := k.container("containerLogs", web, "main", nil)
	log.Host = "127.0.0.1:10250"
	if out, err := k.get(log.String()); err != nil || out != "up\n" {
		t.Errorf("log %q, %v", out, err)
	}
	if out, err := k.run(web, "main", "sh", "-c", "echo out; exit 7"); out != "out\n" || exitCode(err) != 7 {
		t.Errorf("exec gave %q, %v", out, err)
	}
	var echo bytes.Buffer
	query := url.Values{"command": {"sh"}, "input": {"1"}, "output": {"1"}, "tty": {"1"}}
	sizes := make(sizeQueue, 1)
	sizes <- remotecommand.TerminalSize{Width: 97, Height: 31}
	err := k.stream("exec", web, "main", query, remotecommand.StreamOptions{
		Stdin: strings.NewReader("sleep 1; stty size; exit 5\n"), Stdout: &echo, Tty: true, TerminalSizeQueue: sizes,
	})
	if exitCode(err) != 5 || !strings.Contains(echo.String(), "31 97") {
		t.Errorf("exec with a terminal gave %q, %v", echo.String(), err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	beside := &untilText{text: "beside", seen: cancel}
	_ = k.streamWith(ctx, "attach", web, "side", url.Values{"output": {"1"}}, remotecommand.StreamOptions{Stdout: beside})
	if !strings.Contains(beside.all.String(), "beside") {
		t.Errorf("attach gave %q", beside.all.String())
	}
	k.checkForward(web)
}

func (k *nodeAgent) checkForward(web *corev1.Pod) {
	k.t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		k.t.Fatal(err)
	}
	to := k.container("portForward", web, "", nil)
	to.Path = strings.TrimSuffix(to.Path, "/")
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, to)
	stop, ready := make(chan struct{}), make(chan struct{})
	forward, err := portforward.New(dialer, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		k.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- forward.ForwardPorts() }()
	defer func() {
		close(stop)
		<-done
	}()
	select {
	case <-ready:
	case err := <-done:
		done <- err
		k.t.Fatalf("forward a port: %v", err)
	}
	ports, err := forward.GetPorts()
	if err != nil {
		k.t.Fatal(err)
	}
	for range 5 {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local))
		if err != nil {
			k.t.Fatalf("through a forwarded port: %v", err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "made by init\n" {
			k.t.Errorf("through a forwarded port came %q, %v", body, err)
		}
	}
}

// checkResize gives a running container other limits, up and down again.
func (k *nodeAgent) checkResize(web *corev1.Pod) {
	k.t.Helper()
	was := mainStatus(web)
	for _, r := range []struct {
		cpu, memory string
		bytes       int64
	}{{"300m", "96Mi", 96 << 20}, {"50m", "24Mi", 24 << 20}} {
		p := webPod()
		p.Spec.Containers[0].Resources = limits(r.cpu, r.memory)
		k.declare(p)
		now := k.await("web", "has "+r.memory, func(p *corev1.Pod) error {
			res := mainStatus(p).Resources
			if res == nil || !res.Limits.Memory().Equal(resource.MustParse(r.memory)) || !res.Limits.Cpu().Equal(resource.MustParse(r.cpu)) {
				return fmt.Errorf("it has %+v", res)
			}
			return nil
		})
		if is := mainStatus(now); is.ContainerID != was.ContainerID || is.RestartCount != was.RestartCount {
			k.t.Errorf("the resize to %s restarted the container: %+v", r.memory, is)
		}
		const files = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
		if out, err := k.run(web, "main", "sh", "-c", files); err != nil || strings.TrimSpace(out) != fmt.Sprint(r.bytes) {
			k.t.Errorf("after the resize to %s the cgroup says %q, %v", r.memory, out, err)
		}
	}
}

func mainStatus(p *corev1.Pod) corev1.ContainerStatus {
	for _, c := range p.Status.ContainerStatuses {
		if c.Name == "main" {
			return c
		}
	}
	return corev1.ContainerStatus{}
}

// containers are the restarts and ids of all running containers, by pod and container.
func (k *nodeAgent) containers() map[string]string {
	k.t.Helper()
	out := map[string]string{}
	all, err := k.podsByName()
	if err != nil {
		k.t.Fatal(err)
	}
	for name, p := range all {
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if c.State.Running != nil && name != "crash" {
				out[name+"/"+c.Name] = fmt.Sprint(c.ContainerID, " ", c.RestartCount)
			}
		}
	}
	return out
}

// sameContainers waits until the kubelet has seen the containers again, and finds none restarted.
func (k *nodeAgent) sameContainers(before map[string]string) {
	k.t.Helper()
	k.eventually("the kubelet has seen all containers again", func() error {
		now := k.containers()
		for name, was := range before {
			if now[name] == "" {
				return fmt.Errorf("%s is missing", name)
			}
			if now[name] != was {
				k.t.Fatalf("%s was %s and is %s", name, was, now[name])
			}
		}
		return nil
	})
}

// checkFigures reads what the kubelet makes of the runtime's stats and metrics.
func (k *nodeAgent) checkFigures(web *corev1.Pod) {
	k.t.Helper()
	k.eventually("the summary has all figures of web", func() error {
		raw, err := k.get("http://127.0.0.1:10255/stats/summary")
		if err != nil {
			return err
		}
		return checkSummary(raw, web.Name)
	})
	k.eventually("the kubelet has cAdvisor's metrics of web", func() error {
		raw, err := k.get("http://127.0.0.1:10255/metrics/cadvisor")
		if err != nil {
			return err
		}
		for _, name := range []string{
			"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_memory_rss", "container_fs_usage_bytes", "container_cpu_user_seconds_total",
			"container_memory_cache", "container_oom_events_total", "container_threads", "container_file_descriptors", "container_spec_cpu_shares", "container_last_seen",
			"container_processes", "container_start_time_seconds", "container_spec_memory_limit_bytes", "container_network_receive_bytes_total",
		} {
			if !hasSample(raw, name, `namespace="default"`, `pod="`+web.Name+`"`) {
				return fmt.Errorf("no %s", name)
			}
		}
		return nil
	})
}

func hasSample(text, name string, labels ...string) bool {
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		all := true
		for _, l := range labels {
			all = all && strings.Contains(line, l)
		}
		if all {
			return true
		}
	}
	return false
}

// checkSummary finds a figure of each kind for a pod and its main container.
func checkSummary(raw, name string) error {
	var s statsv1.Summary
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		return err
	}
	for _, p := range s.Pods {
		if p.PodRef.Name != name {
			continue
		}
		if p.CPU == nil || p.Memory == nil || p.Network == nil || p.ProcessStats == nil || zero(p.CPU.UsageCoreNanoSeconds) || zero(p.Memory.WorkingSetBytes) ||
			zero(p.ProcessStats.ProcessCount) || zero(p.Network.RxBytes) {
			return fmt.Errorf("the pod's figures are not complete: %s", raw)
		}
		for _, c := range p.Containers {
			if c.Name == "main" && c.CPU != nil && c.Memory != nil && c.Rootfs != nil && !zero(c.CPU.UsageCoreNanoSeconds) && !zero(c.Memory.WorkingSetBytes) &&
				!zero(c.Rootfs.UsedBytes) && c.CPU.UsageNanoCores != nil {
				return nil
			}
		}
		return fmt.Errorf("the main container's figures are not complete: %s", raw)
	}
	return fmt.Errorf("no pod %s", name)
}

func zero(v *uint64) bool { return v == nil || *v == 0 }

func exitCode(err error) int {
	var exit exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitStatus()
	}
	return -1
}

// sizeQueue are the sizes of a terminal in their order.
type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	s, ok := <-q
	if !ok {
		return nil
	}
	return &s
}

// untilText calls seen once a text has been written.
type untilText struct {
	text string
	seen func()
	all  strings.Builder
}

func (u *untilText) Write(b []byte) (int, error) {
	u.all.Write(b)
	if strings.Contains(u.all.String(), u.text) {
		u.seen()
	}
	return len(b), nil
}
