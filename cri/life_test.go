package cri

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// simple is a container that any host can check.
func simple(name string) *criv1.ContainerConfig {
	return &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: name}, Image: &criv1.ImageSpec{Image: "sha256:abc", UserSpecifiedImage: "busybox"},
		Labels: map[string]string{"name": name}, LogPath: name + "/0.log", Mounts: []*criv1.Mount{{HostPath: "/tmp", ContainerPath: "/tmp"}},
	}
}

func (d *daemon) run(t *testing.T, name string) string {
	t.Helper()
	r, err := d.rt.RunPodSandbox(t.Context(), &criv1.RunPodSandboxRequest{Config: podRequest(name)})
	if err != nil {
		t.Fatal(err)
	}
	return r.PodSandboxId
}

func (d *daemon) start(t *testing.T, podID string, c *criv1.ContainerConfig) string {
	t.Helper()
	r, err := d.rt.CreateContainer(t.Context(), &criv1.CreateContainerRequest{PodSandboxId: podID, Config: c})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.rt.StartContainer(t.Context(), &criv1.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return r.ContainerId
}

func (d *daemon) status(t *testing.T, id string) *criv1.ContainerStatus {
	t.Helper()
	r, err := d.rt.ContainerStatus(t.Context(), &criv1.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status
}

func TestLife(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	podID := d.run(t, "web")
	if again := d.run(t, "web"); again != podID {
		t.Errorf("the same request made %s and %s", podID, again)
	}
	ps, err := d.rt.PodSandboxStatus(ctx, &criv1.PodSandboxStatusRequest{PodSandboxId: podID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := ps.Status; s.State != criv1.PodSandboxState_SANDBOX_READY || s.CreatedAt == 0 || s.Network.Ip != "10.88.0.2" || s.Network.AdditionalIps[0].Ip != "fd00::2" ||
		s.Metadata.Name != "web" || s.Metadata.Attempt != 1 || s.Annotations["note"] != "two\nlines" || s.Linux.Namespaces.Options.Pid != criv1.NamespaceMode_CONTAINER {
		t.Errorf("pod status: %v", s)
	}
	var verbose struct{ Pid int }
	if err := json.Unmarshal([]byte(ps.Info["info"]), &verbose); err != nil || verbose.Pid != os.Getpid() {
		t.Errorf("verbose: %v %v", ps.Info, err)
	}

	id := d.start(t, podID, simple("main"))
	if s := d.status(t, id); s.State != criv1.ContainerState_CONTAINER_RUNNING || s.StartedAt == 0 || s.ImageRef != "sha256:abc" || s.ImageId != s.ImageRef ||
		s.Image.Image != "busybox" || s.User.Linux.Uid != 1000 || s.User.Linux.SupplementalGroups[0] != 5 || s.Mounts[0].HostPath != "/tmp" || s.StopSignal != criv1.Signal_SIGNAL_SIGTERM {
		t.Errorf("container status: %v", s)
	}
	out, err := d.rt.ExecSync(ctx, &criv1.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", "hello"}, Timeout: 30})
	if err != nil || string(out.Stdout) != "hello\n" || string(out.Stderr) != "and stderr\n" || out.ExitCode != 0 {
		t.Errorf("exec: %v %v", out, err)
	}
	if out, err := d.rt.ExecSync(ctx, &criv1.ExecSyncRequest{ContainerId: id, Cmd: []string{"exit", "3"}}); err != nil || out.ExitCode != 3 {
		t.Errorf("exit code: %v %v", out, err)
	}
	if _, err := d.rt.StopContainer(ctx, &criv1.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Fatal(err)
	}
	if s := d.status(t, id); s.State != criv1.ContainerState_CONTAINER_EXITED || s.ExitCode != 143 || s.FinishedAt == 0 || s.Reason != "Error" {
		t.Errorf("after stop: %v", s)
	}
	for range 2 { // each is idempotent
		if _, err := d.rt.RemoveContainer(ctx, &criv1.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
		if _, err := d.rt.StopPodSandbox(ctx, &criv1.StopPodSandboxRequest{PodSandboxId: podID}); err != nil {
			t.Error(err)
		}
	}
	if ps, err := d.rt.PodSandboxStatus(ctx, &criv1.PodSandboxStatusRequest{PodSandboxId: podID}); err != nil || ps.Status.State != criv1.PodSandboxState_SANDBOX_NOTREADY || ps.Info != nil {
		t.Errorf("stopped pod: %v %v", ps, err)
	}
	for range 2 {
		if _, err := d.rt.RemovePodSandbox(ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
			t.Error(err)
		}
	}
	_, err = d.rt.PodSandboxStatus(ctx, &criv1.PodSandboxStatusRequest{PodSandboxId: podID})
	wantCode(t, err, codes.NotFound, podID)
	_, err = d.rt.ContainerStatus(ctx, &criv1.ContainerStatusRequest{ContainerId: id})
	wantCode(t, err, codes.NotFound, id)
}

func TestCalls(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	podID := d.run(t, "web")
	id := d.start(t, podID, simple("main"))
	call := func(f func() error) error { return f() }
	for name, c := range map[string]struct {
		do   func() error
		code codes.Code
		part string
	}{
		"bad handler": {func() error {
			_, err := d.rt.RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: podRequest("x"), RuntimeHandler: "nope"})
			return err
		}, codes.InvalidArgument, "runtime_handler"},
		"no pod": {func() error {
			_, err := d.rt.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: "ffff", Config: simple("x")})
			return err
		}, codes.NotFound, "ffff"},
		"another pod's config": {func() error {
			_, err := d.rt.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: podID, Config: simple("x"), SandboxConfig: podRequest("other")})
			return err
		}, codes.InvalidArgument, "sandbox_config"},
		"missing host path": {func() error {
			c := simple("x")
			c.Mounts[0].HostPath = "/no/such/path"
			_, err := d.rt.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: podID, Config: c})
			return err
		}, codes.InvalidArgument, "mounts[0].host_path"},
		"foreign target": {func() error {
			c := simple("x")
			c.Linux = &criv1.LinuxContainerConfig{SecurityContext: &criv1.LinuxContainerSecurityContext{NamespaceOptions: &criv1.NamespaceOption{Pid: criv1.NamespaceMode_TARGET, TargetId: "ffff"}}}
			_, err := d.rt.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: podID, Config: c})
			return err
		}, codes.InvalidArgument, "target_id"},
		"started twice": {func() error {
			_, err := d.rt.StartContainer(ctx, &criv1.StartContainerRequest{ContainerId: id})
			return err
		}, codes.FailedPrecondition, "running"},
		"negative timeout": {func() error {
			_, err := d.rt.StopContainer(ctx, &criv1.StopContainerRequest{ContainerId: id, Timeout: -1})
			return err
		}, codes.InvalidArgument, "timeout"},
		"exec timeout": {func() error {
			_, err := d.rt.ExecSync(ctx, &criv1.ExecSyncRequest{ContainerId: id, Cmd: []string{"block"}, Timeout: 1})
			return err
		}, codes.DeadlineExceeded, ""},
		"exec nothing": {func() error {
			_, err := d.rt.ExecSync(ctx, &criv1.ExecSyncRequest{ContainerId: id})
			return err
		}, codes.InvalidArgument, "cmd"},
		"no id": {func() error {
			_, err := d.rt.ContainerStatus(ctx, &criv1.ContainerStatusRequest{})
			return err
		}, codes.InvalidArgument, "container_id"},
		"negative memory": {func() error {
			_, err := d.rt.UpdateContainerResources(ctx, &criv1.UpdateContainerResourcesRequest{ContainerId: id, Linux: &criv1.LinuxContainerResources{MemoryLimitInBytes: -1}})
			return err
		}, codes.InvalidArgument, "linux.memory_limit_in_bytes"},
		"update nothing": {func() error {
			_, err := d.rt.UpdateContainerResources(ctx, &criv1.UpdateContainerResourcesRequest{ContainerId: id})
			return err
		}, codes.InvalidArgument, "linux"},
		"update": {func() error {
			_, err := d.rt.UpdateContainerResources(ctx, &criv1.UpdateContainerResourcesRequest{ContainerId: id, Linux: &criv1.LinuxContainerResources{CpuShares: 5}})
			if got := d.pods.updates; len(got) != 1 || got[0].CPUShares != 5 || got[0].OOMScoreAdj != nil {
				t.Errorf("updates: %+v", got)
			}
			return err
		}, codes.OK, ""},
		"update pod": {func() error {
			_, err := d.rt.UpdatePodSandboxResources(ctx, &criv1.UpdatePodSandboxResourcesRequest{PodSandboxId: podID, Resources: &criv1.LinuxContainerResources{CpuShares: 6}})
			if got := d.pods.podUpdates; len(got) != 1 || got[0].CPUShares != 6 || got[0].OOMScoreAdj != nil {
				t.Errorf("updates of pods: %+v", got)
			}
			return err
		}, codes.OK, ""},
		"update no pod": {func() error {
			_, err := d.rt.UpdatePodSandboxResources(ctx, &criv1.UpdatePodSandboxResourcesRequest{PodSandboxId: "ffff"})
			return err
		}, codes.NotFound, "ffff"},
		"reopen": {func() error {
			_, err := d.rt.ReopenContainerLog(ctx, &criv1.ReopenContainerLogRequest{ContainerId: id})
			return err
		}, codes.OK, ""},
		"pod cidr": {func() error {
			_, err := d.rt.UpdateRuntimeConfig(ctx, &criv1.UpdateRuntimeConfigRequest{RuntimeConfig: &criv1.RuntimeConfig{NetworkConfig: &criv1.NetworkConfig{PodCidr: "10.1.0.0/24"}}})
			if d.pods.cidr != "10.1.0.0/24" {
				t.Errorf("cidr %q", d.pods.cidr)
			}
			return err
		}, codes.OK, ""},
		"bad pod cidr": {func() error {
			_, err := d.rt.UpdateRuntimeConfig(ctx, &criv1.UpdateRuntimeConfigRequest{RuntimeConfig: &criv1.RuntimeConfig{NetworkConfig: &criv1.NetworkConfig{PodCidr: "ten"}}})
			return err
		}, codes.InvalidArgument, "ten"},
		"checkpoint container": {func() error {
			_, err := d.rt.CheckpointContainer(ctx, &criv1.CheckpointContainerRequest{ContainerId: id, Location: filepath.Join(t.TempDir(), "c.tar"), Timeout: 60})
			return err
		}, codes.OK, ""},
		"checkpoint nowhere": {func() error {
			_, err := d.rt.CheckpointContainer(ctx, &criv1.CheckpointContainerRequest{ContainerId: id, Location: "c.tar"})
			return err
		}, codes.InvalidArgument, "location"},
		"checkpoint for a negative time": {func() error {
			_, err := d.rt.CheckpointContainer(ctx, &criv1.CheckpointContainerRequest{ContainerId: id, Location: "/c.tar", Timeout: -1})
			return err
		}, codes.InvalidArgument, "timeout"},
		"checkpoint pod": {func() error {
			_, err := d.rt.CheckpointPod(ctx, &criv1.CheckpointPodRequest{PodSandboxId: podID, OutputPath: t.TempDir(), ContainerIds: []string{id}})
			return err
		}, codes.OK, ""},
		"checkpoint pod nowhere": {func() error {
			_, err := d.rt.CheckpointPod(ctx, &criv1.CheckpointPodRequest{PodSandboxId: podID, OutputPath: "here", ContainerIds: []string{id}})
			return err
		}, codes.InvalidArgument, "output_path"},
		"checkpoint pod without containers": {func() error {
			_, err := d.rt.CheckpointPod(ctx, &criv1.CheckpointPodRequest{PodSandboxId: podID, OutputPath: t.TempDir()})
			return err
		}, codes.InvalidArgument, "container_ids"},
		"checkpoint pod with an option": {func() error {
			_, err := d.rt.CheckpointPod(ctx, &criv1.CheckpointPodRequest{
				PodSandboxId: podID, OutputPath: t.TempDir(), ContainerIds: []string{id}, Options: map[string]string{"fast": "1"},
			})
			return err
		}, codes.InvalidArgument, "fast"},
		"restore pod": {func() error {
			_, err := d.rt.RestorePod(ctx, restoreRequest(t, func(*criv1.RestorePodRequest) {}))
			return err
		}, codes.OK, ""},
		"restore pod from nowhere": {func() error {
			_, err := d.rt.RestorePod(ctx, restoreRequest(t, func(r *criv1.RestorePodRequest) { r.CheckpointPath = "here" }))
			return err
		}, codes.InvalidArgument, "checkpoint_path"},
		"restore pod with an option": {func() error {
			_, err := d.rt.RestorePod(ctx, restoreRequest(t, func(r *criv1.RestorePodRequest) { r.Options = map[string]string{"fast": "1"} }))
			return err
		}, codes.InvalidArgument, "options"},
		"restore pod by a stranger's handler": {func() error {
			_, err := d.rt.RestorePod(ctx, restoreRequest(t, func(r *criv1.RestorePodRequest) { r.RuntimeHandler = "nobody" }))
			return err
		}, codes.InvalidArgument, "runtime_handler"},
		"restore no pod": {func() error {
			_, err := d.rt.RestorePod(ctx, restoreRequest(t, func(r *criv1.RestorePodRequest) { r.Config = nil }))
			return err
		}, codes.InvalidArgument, "config"},
		"restore no containers": {func() error {
			_, err := d.rt.RestorePod(ctx, restoreRequest(t, func(r *criv1.RestorePodRequest) { r.ContainerConfigs = nil }))
			return err
		}, codes.InvalidArgument, "container_configs"},
		"restore a container twice": {func() error {
			_, err := d.rt.RestorePod(ctx, restoreRequest(t, func(r *criv1.RestorePodRequest) {
				r.ContainerConfigs = append(r.ContainerConfigs, r.ContainerConfigs...)
			}))
			return err
		}, codes.InvalidArgument, "container_configs[1].metadata.name"},
		"restore a bad container": {func() error {
			_, err := d.rt.RestorePod(ctx, restoreRequest(t, func(r *criv1.RestorePodRequest) { r.ContainerConfigs[0].LogPath = "../x" }))
			return err
		}, codes.InvalidArgument, "container_configs[0].log_path"},
		"attach with a tty": {func() error {
			_, err := d.rt.Attach(ctx, &criv1.AttachRequest{ContainerId: id, Tty: true, Stdin: true})
			return err
		}, codes.InvalidArgument, "tty"},
		"exec without streams": {func() error {
			_, err := d.rt.Exec(ctx, &criv1.ExecRequest{ContainerId: id, Cmd: []string{"a"}})
			return err
		}, codes.InvalidArgument, "stdin"},
		"forward of port 0": {func() error {
			_, err := d.rt.PortForward(ctx, &criv1.PortForwardRequest{PodSandboxId: podID, Port: []int32{0}})
			return err
		}, codes.InvalidArgument, "port[0]"},
	} {
		err := call(c.do)
		t.Run(name, func(t *testing.T) { wantCode(t, err, c.code, c.part) })
	}
	// both streams of a flood fit into what a kubelet reads
	if out, err := d.rt.ExecSync(ctx, &criv1.ExecSyncRequest{ContainerId: id, Cmd: []string{"flood"}}); err != nil || len(out.Stdout) < 15<<20 {
		t.Errorf("flood: %d bytes, %v", len(out.GetStdout()), err)
	}
}

func TestLists(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	one, two := d.run(t, "one"), d.run(t, "two")
	c1, c2 := d.start(t, one, simple("a")), d.start(t, two, simple("b"))
	d.pods.exit(c2, 0)
	if _, err := d.rt.StopPodSandbox(ctx, &criv1.StopPodSandboxRequest{PodSandboxId: two}); err != nil {
		t.Fatal(err)
	}
	hidden, _ := d.pods.Run(ctx, pod.Config{Name: "declared", Declared: true})
	if _, err := d.pods.CreateContainer(ctx, hidden, pod.ContainerConfig{Name: "c"}); err != nil {
		t.Fatal(err)
	}
	ready := &criv1.PodSandboxStateValue{State: criv1.PodSandboxState_SANDBOX_READY}
	for name, c := range map[string]struct {
		f    *criv1.PodSandboxFilter
		want []string
	}{
		"all": {nil, []string{one, two}}, "id": {&criv1.PodSandboxFilter{Id: one[:4]}, []string{one}}, "state": {&criv1.PodSandboxFilter{State: ready}, []string{one}},
		"label": {&criv1.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, []string{one, two}}, "no label": {&criv1.PodSandboxFilter{LabelSelector: map[string]string{"app": ""}}, nil},
	} {
		r, err := d.rt.ListPodSandbox(ctx, &criv1.ListPodSandboxRequest{Filter: c.f})
		var got []string
		for _, p := range r.GetItems() {
			got = append(got, p.Id)
		}
		if err != nil || strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("pods, %s: %v %v", name, got, err)
		}
	}
	running := &criv1.ContainerStateValue{State: criv1.ContainerState_CONTAINER_RUNNING}
	for name, c := range map[string]struct {
		f    *criv1.ContainerFilter
		want []string
	}{
		"all": {nil, []string{c1, c2}}, "id": {&criv1.ContainerFilter{Id: c2[:4]}, []string{c2}}, "state": {&criv1.ContainerFilter{State: running}, []string{c1}},
		"pod": {&criv1.ContainerFilter{PodSandboxId: two[:4]}, []string{c2}}, "label": {&criv1.ContainerFilter{LabelSelector: map[string]string{"name": "a"}}, []string{c1}},
	} {
		r, err := d.rt.ListContainers(ctx, &criv1.ListContainersRequest{Filter: c.f})
		var got []string
		for _, p := range r.GetContainers() {
			got = append(got, p.Id)
			if p.ImageId == "" || p.ImageRef != p.ImageId || p.Metadata.Name == "" || p.CreatedAt == 0 {
				t.Errorf("incomplete: %v", p)
			}
		}
		if err != nil || strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("containers, %s: %v %v", name, got, err)
		}
	}
	pods, err := d.rt.StreamPodSandboxes(ctx, &criv1.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := pods.Recv(); err != nil || len(r.PodSandboxes) != 2 {
		t.Errorf("streamed pods: %v %v", r, err)
	}
	cs, err := d.rt.StreamContainers(ctx, &criv1.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := cs.Recv(); err != nil || len(r.Containers) != 2 {
		t.Errorf("streamed containers: %v %v", r, err)
	}
}

func TestInParts(t *testing.T) {
	for n, want := range map[int][]int{0: {0}, 1: {1}, partSize: {partSize}, partSize + 1: {partSize, 1}, 2 * partSize: {partSize, partSize}} {
		var got []int
		if err := inParts(make([]byte, n), func(p []byte) error { got = append(got, len(p)); return nil }); err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) || got[0] != want[0] {
			t.Errorf("%d items: %v, want %v", n, got, want)
		}
	}
	if err := inParts([]int{1}, func([]int) error { return errors.New("gone") }); err == nil {
		t.Error("a failed send is no error")
	}
}

func TestStatusAndConfig(t *testing.T) {
	d := newDaemon(t, func(o *Options) {
		o.Handlers, _ = runtime.NewHandlers("", []string{"test-handler"}, runtime.Handler{Name: "gone", Program: &runtime.Program{Name: "gone", Path: "/no/such/program"}})
		o.Info = func(context.Context) (Info, error) {
			return Info{StateDir: "/s", KeeperPid: 7, StartedAt: time.Unix(0, 0).UTC(), Warnings: []string{"no CAP_X"}}, nil
		}
	})
	ctx := t.Context()
	v, err := d.rt.Version(ctx, &criv1.VersionRequest{})
	if err != nil || v.Version != "0.1.0" || v.RuntimeName != "pausa" || v.RuntimeVersion != "1.2.3" || v.RuntimeApiVersion != "v1" {
		t.Errorf("version: %v %v", v, err)
	}
	s, err := d.rt.Status(ctx, &criv1.StatusRequest{Verbose: true})
	if err != nil || len(s.Status.Conditions) != 3 || !s.Status.Conditions[0].Status || !s.Status.Conditions[1].Status ||
		s.Status.Conditions[2].Status || !strings.Contains(s.Status.Conditions[2].Message, "gone: its program is not there") ||
		len(s.RuntimeHandlers) != 3 || s.RuntimeHandlers[0].Name != "" || s.RuntimeHandlers[2].Name != "test-handler" || !s.RuntimeHandlers[0].Features.RecursiveReadOnlyMounts || !s.Features.SupplementalGroupsPolicy || !strings.Contains(s.Info["info"], "no CAP_X") {
		t.Errorf("status: %v %v", s, err)
	}
	d.pods.network = network.ErrNotReady
	s, err = d.rt.Status(ctx, &criv1.StatusRequest{})
	if c := s.GetStatus().GetConditions(); err != nil || !c[0].Status || c[1].Status || c[1].Type != "NetworkReady" || c[1].Message == "" || s.Info != nil {
		t.Errorf("without a network: %v %v", s, err)
	}
	if r, err := d.rt.RuntimeConfig(ctx, &criv1.RuntimeConfigRequest{}); err != nil || r.Linux.CgroupDriver != criv1.CgroupDriver_CGROUPFS {
		t.Errorf("runtime config: %v %v", r, err)
	}
	if i, err := d.own.Info(ctx, nil); err != nil || i.StateDir != "/s" || i.KeeperPid != 7 || int(i.DaemonPid) != os.Getpid() || i.StartedAt != "1970-01-01T00:00:00Z" {
		t.Errorf("info: %v %v", i, err)
	}
}

func TestExitReason(t *testing.T) {
	for want, e := range map[string]runtime.Exit{
		"Completed": {}, "Error": {Code: 1}, "OOMKilled": {Code: 137, OOMKilled: true}, "StartError": {Code: 128, StartError: "no such file"}, "Unknown": {Code: 255, Unknown: true},
	} {
		if got, _ := exitReason(&e); got != want {
			t.Errorf("%+v: %s, want %s", e, got, want)
		}
	}
}

func TestSettle(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	link := filepath.Join(dir, "link")
	profile := write("p.json", "{}")
	if err := os.Symlink(profile, link); err != nil {
		t.Fatal(err)
	}
	loaded := hostFacts{selinux: true}
	none := hostFacts{}
	sec := func(s runtime.Security) pod.ContainerConfig { return pod.ContainerConfig{Security: s} }
	for name, c := range map[string]struct {
		host    hostFacts
		cfg     pod.ContainerConfig
		logDir  string
		relabel int
		err     string
		check   func(pod.ContainerConfig) bool
	}{
		"symlink of a mount":  {none, pod.ContainerConfig{Mounts: []runtime.Mount{{Source: link}}}, "", -1, "", func(c pod.ContainerConfig) bool { return c.Mounts[0].Source == profile }},
		"no device":           {none, pod.ContainerConfig{Devices: []runtime.Device{{HostPath: profile}}}, "", -1, "devices[0].host_path", nil},
		"device":              {none, pod.ContainerConfig{Devices: []runtime.Device{{HostPath: "/dev/null"}}}, "", -1, "", nil},
		"profile":             {none, sec(runtime.Security{Seccomp: "localhost/" + profile}), "", -1, "", func(c pod.ContainerConfig) bool { return string(c.Security.SeccompProfile) == "{}" }},
		"no profile":          {none, sec(runtime.Security{Seccomp: "localhost//nowhere"}), "", -1, "localhost_ref", nil},
		"profile is a folder": {none, sec(runtime.Security{Seccomp: "localhost/" + dir}), "", -1, "regular", nil},
		"profile is no JSON":  {none, sec(runtime.Security{Seccomp: "localhost/" + write("bad", "{")}), "", -1, "JSON", nil},
		"profile is huge":     {none, sec(runtime.Security{Seccomp: "localhost/" + write("huge", strings.Repeat("1", 1<<20+1))}), "", -1, "more than", nil},
		"selinux off":         {none, sec(runtime.Security{SELinuxLabel: "a:b:c"}), "", 0, "", func(c pod.ContainerConfig) bool { return c.Security.SELinuxLabel == "" }},
		"selinux on":          {loaded, sec(runtime.Security{SELinuxLabel: "a:b:c"}), "", -1, "", func(c pod.ContainerConfig) bool { return c.Security.SELinuxLabel == "a:b:c" }},
		"relabel":             {loaded, pod.ContainerConfig{}, "", 2, "mounts[2].selinux_relabel", nil},
		"log through a link":  {none, pod.ContainerConfig{LogPath: "link/x.log"}, dir, -1, "symlink", nil},
		"log":                 {none, pod.ContainerConfig{LogPath: "new/x.log"}, dir, -1, "", nil},
	} {
		cfg := c.cfg
		err := c.host.settle(t.Context(), &cfg, c.logDir, c.relabel)
		switch {
		case c.err == "" && err != nil, c.err != "" && (!errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want %q", name, err, c.err)
		case c.check != nil && !c.check(cfg):
			t.Errorf("%s: have %+v", name, cfg)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// With an ended context either answer may win, but it must be one of them and leave nothing half done.
	cfg := pod.ContainerConfig{Name: "c", Mounts: []runtime.Mount{{Source: link}}}
	if err := none.settle(ctx, &cfg, "", -1); err != nil && (!errors.Is(err, context.Canceled) || cfg.Mounts[0].Source != link) {
		t.Errorf("ended context: %v %+v", err, cfg)
	}
}

// restoreRequest asks for a pod of one container.
func restoreRequest(t *testing.T, change func(*criv1.RestorePodRequest)) *criv1.RestorePodRequest {
	r := &criv1.RestorePodRequest{
		CheckpointPath:   t.TempDir(),
		Config:           &criv1.PodSandboxConfig{Metadata: &criv1.PodSandboxMetadata{Name: "restored", Namespace: "default", Uid: "restored"}},
		ContainerConfigs: []*criv1.ContainerConfig{{Metadata: &criv1.ContainerMetadata{Name: "main"}, Image: &criv1.ImageSpec{Image: "busybox"}}},
	}
	change(r)
	return r
}
