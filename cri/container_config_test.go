package cri

import (
	"encoding/json"
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

func containerRequest() *criv1.ContainerConfig {
	return &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: "main", Attempt: 2},
		Image:    &criv1.ImageSpec{Image: "sha256:abc", UserSpecifiedImage: "busybox:latest"},
		Command:  []string{"/bin/sh"}, Args: []string{"-c", "echo\nhi"}, WorkingDir: "/srv",
		Envs:    []*criv1.KeyValue{{Key: "A", Value: []byte("1=2")}},
		Mounts:  []*criv1.Mount{{HostPath: "/srv/data", ContainerPath: "/data/", Readonly: true, Propagation: criv1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, MountOptions: []string{"noexec"}}},
		Devices: []*criv1.Device{{HostPath: "/dev/null", ContainerPath: "/dev/nothing"}},
		Labels:  map[string]string{"l": "1"}, Annotations: map[string]string{"a": "1"},
		LogPath: "main/2.log", Stdin: true, StdinOnce: true, Tty: true, StopSignal: criv1.Signal_SIGNAL_SIGRTMINPLUS3,
		Linux: &criv1.LinuxContainerConfig{
			Resources: &criv1.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 1 << 21, OomScoreAdj: -5,
				CpusetCpus: "0-1,3", CpusetMems: "0", HugepageLimits: []*criv1.HugepageLimit{{PageSize: "2MB", Limit: 4096}}, Unified: map[string]string{"memory.high": "1000"},
			},
			SecurityContext: &criv1.LinuxContainerSecurityContext{
				Capabilities:     &criv1.Capability{AddCapabilities: []string{"NET_ADMIN", "CAP_SYS_TIME"}, DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"net_raw"}},
				NamespaceOptions: &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER},
				SelinuxOptions:   &criv1.SELinuxOption{Level: "s0:c1,c2"},
				RunAsUser:        &criv1.Int64Value{Value: 1000}, RunAsGroup: &criv1.Int64Value{Value: 2000},
				ReadonlyRootfs: true, SupplementalGroups: []int64{7}, SupplementalGroupsPolicy: criv1.SupplementalGroupsPolicy_Strict, NoNewPrivs: true,
				MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
				Seccomp:  &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_Localhost, LocalhostRef: "/etc/p.json"},
				Apparmor: &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

func TestContainerConfig(t *testing.T) {
	got, err := containerConfig(containerRequest(), pod.Config{})
	if err != nil {
		t.Fatal(err)
	}
	gid, adj := int64(2000), -5
	want := pod.ContainerConfig{
		Name: "main", Attempt: 2, Image: "sha256:abc", ImageName: "busybox:latest", Command: []string{"/bin/sh"}, Args: []string{"-c", "echo\nhi"}, WorkingDir: "/srv",
		Env: []pod.EnvVar{{Name: "A", Value: "1=2"}}, Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "1"},
		LogPath: "main/2.log", Stdin: true, StdinOnce: true, Terminal: true, StopSignal: "SIGRTMIN+3",
		User: "1000", Group: &gid, AdditionalGIDs: []int64{7}, StrictGroups: true, ReadonlyRootfs: true,
		Mounts:  []runtime.Mount{{Source: "/srv/data", Destination: "/data", Type: "bind", Readonly: true, Propagation: "rslave", Options: []string{"noexec"}}},
		Devices: []runtime.Device{{HostPath: "/dev/null", ContainerPath: "/dev/nothing", Permissions: "rwm"}},
		Resources: runtime.Resources{
			CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, CpusetCpus: "0-1,3", CpusetMems: "0", MemoryLimit: 1 << 20, MemorySwap: 1 << 21, OOMScoreAdj: &adj,
			Hugepages: map[string]uint64{"2MB": 4096}, Unified: map[string]string{"memory.high": "1000"},
		},
		Security: runtime.Security{
			NoNewPrivs: true, AddCaps: []string{"NET_ADMIN", "CAP_SYS_TIME"}, DropCaps: []string{"ALL"}, AmbientCaps: []string{"net_raw"},
			Seccomp: "localhost//etc/p.json", AppArmor: "runtime/default", SELinuxLabel: "system_u:system_r:container_t:s0:c1,c2",
			MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestContainerConfigMinimal(t *testing.T) {
	got, err := containerConfig(&criv1.ContainerConfig{Metadata: &criv1.ContainerMetadata{Name: "a"}, Image: &criv1.ImageSpec{Image: "b"}}, pod.Config{SharePID: true})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(pod.ContainerConfig{Name: "a", Image: "b"}, got); d != "" {
		t.Error(d) // the masked paths are nil, which is the built-in list
	}
}

func TestContainerNamespaces(t *testing.T) {
	const pod0, container, node, target = criv1.NamespaceMode_POD, criv1.NamespaceMode_CONTAINER, criv1.NamespaceMode_NODE, criv1.NamespaceMode_TARGET
	for name, c := range map[string]struct {
		pod  pod.Config
		in   *criv1.NamespaceOption
		want pod.ContainerConfig
		err  string
	}{
		"as the pod":               {pod.Config{}, nil, pod.ContainerConfig{}, ""},
		"own":                      {pod.Config{}, &criv1.NamespaceOption{Pid: container}, pod.ContainerConfig{}, ""},
		"shared":                   {pod.Config{SharePID: true}, &criv1.NamespaceOption{Pid: pod0}, pod.ContainerConfig{}, ""},
		"host pid":                 {pod.Config{HostPID: true}, &criv1.NamespaceOption{Pid: node}, pod.ContainerConfig{HostPID: true}, ""},
		"target":                   {pod.Config{}, &criv1.NamespaceOption{Pid: target, TargetId: "abc"}, pod.ContainerConfig{TargetContainer: "abc"}, ""},
		"host network":             {pod.Config{HostNetwork: true, SharePID: true}, &criv1.NamespaceOption{Network: node}, pod.ContainerConfig{}, ""},
		"the pod's, which is host": {pod.Config{HostNetwork: true, HostIPC: true, SharePID: true}, &criv1.NamespaceOption{}, pod.ContainerConfig{}, ""},
		"shared without":           {pod.Config{}, &criv1.NamespaceOption{Pid: pod0}, pod.ContainerConfig{}, "namespace_options.pid"},
		"own in shared":            {pod.Config{SharePID: true}, &criv1.NamespaceOption{Pid: container}, pod.ContainerConfig{OwnPID: true}, ""},
		"network of the host":      {pod.Config{SharePID: true}, &criv1.NamespaceOption{Network: node}, pod.ContainerConfig{}, "namespace_options.network"},
		"ipc of its own":           {pod.Config{SharePID: true}, &criv1.NamespaceOption{Ipc: container}, pod.ContainerConfig{}, "namespace_options.ipc"},
		"no target":                {pod.Config{}, &criv1.NamespaceOption{Pid: target}, pod.ContainerConfig{}, "namespace_options.target_id"},
		"target without TARGET":    {pod.Config{SharePID: true}, &criv1.NamespaceOption{TargetId: "x"}, pod.ContainerConfig{}, "namespace_options.target_id"},
		"unknown":                  {pod.Config{}, &criv1.NamespaceOption{Pid: 9}, pod.ContainerConfig{}, "namespace_options.pid"},
		"other users": {pod.Config{SharePID: true}, &criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{
			Uids: []*criv1.IDMapping{{HostId: 1, Length: 5}}, Gids: []*criv1.IDMapping{{HostId: 1, Length: 5}},
		}}, pod.ContainerConfig{}, "userns_options"},
	} {
		var got pod.ContainerConfig
		err := containerNamespaces(&got, c.in, c.pod)
		switch {
		case c.err == "" && err != nil, c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want %q", name, err, c.err)
		case c.err == "" && !cmp.Equal(got, c.want):
			t.Errorf("%s: %s", name, cmp.Diff(c.want, got))
		}
	}
}

func TestContainerRefusals(t *testing.T) {
	type req = criv1.ContainerConfig
	sec := func(r *req) *criv1.LinuxContainerSecurityContext { return r.Linux.SecurityContext }
	for _, c := range []struct {
		field  string
		change func(*req)
	}{
		{"windows", func(r *req) { r.Windows = &criv1.WindowsContainerConfig{} }},
		{"metadata", func(r *req) { r.Metadata = nil }},
		{"metadata.name", func(r *req) { r.Metadata.Name = "../x" }},
		{"metadata.name", func(r *req) { r.Metadata.Name = strings.Repeat("x", 300) }},
		{"image.image", func(r *req) { r.Image = nil }},
		{"image.image", func(r *req) { r.Image.Image = "a b" }},
		{"command", func(r *req) { r.Command = []string{"a\x00b"} }},
		{"args", func(r *req) { r.Args = []string{"\xff"} }},
		{"working_dir", func(r *req) { r.WorkingDir = "tmp" }},
		{"envs[0].key", func(r *req) { r.Envs[0].Key = "" }},
		{"envs[0].key", func(r *req) { r.Envs[0].Key = "A=B" }},
		{"envs[0].value", func(r *req) { r.Envs[0].Value = []byte("a\x00") }},
		{"envs[0].value", func(r *req) { r.Envs[0].Value = []byte("\xfe") }},
		{"stop_signal", func(r *req) { r.StopSignal = 99 }},
		{"log_path", func(r *req) { r.LogPath = "../../etc/cron.d/x" }},
		{"log_path", func(r *req) { r.LogPath = "/etc/x" }},
		{"log_path", func(r *req) { r.LogPath = "." }},
		{"log_path", func(r *req) { r.LogPath = "a\nb" }},
		{"labels", func(r *req) { r.Labels[""] = "" }},
		{"annotations", func(r *req) { r.Annotations["a"] = "\x00" }},
		{"CDI_devices[0].name", func(r *req) { r.CDIDevices = []*criv1.CDIDevice{{Name: "vendor/class"}} }},
		{"CDI_devices[1].name", func(r *req) { r.CDIDevices = []*criv1.CDIDevice{{Name: "v.com/c=d"}, nil} }},
		{"annotations", func(r *req) { r.Annotations["cdi.k8s.io/x"] = "no-device" }},
		{"devices[0].host_path", func(r *req) { r.Devices[0].HostPath = "null" }},
		{"devices[0].container_path", func(r *req) { r.Devices[0].ContainerPath = "/dev/../x" }},
		{"devices[0].permissions", func(r *req) { r.Devices[0].Permissions = "x" }},
		{"mounts[0].image.image", func(r *req) { r.Mounts[0].Image = &criv1.ImageSpec{} }},
		{"mounts[0].image_sub_path", func(r *req) { r.Mounts[0].ImageSubPath = "x" }},
		{"mounts[0].container_path", func(r *req) { r.Mounts[0].ContainerPath = "/" }},
		{"mounts[0].container_path", func(r *req) { r.Mounts[0].ContainerPath = "data" }},
		{"mounts[0].host_path", func(r *req) { r.Mounts[0].HostPath = "" }},
		{"mounts[0].host_path", func(r *req) { r.Mounts[0].HostPath = "/srv/../etc" }},
		{"mounts[0].uidMappings[0]", func(r *req) { r.Mounts[0].UidMappings = []*criv1.IDMapping{{}} }},
		{"mounts[0].gidMappings", func(r *req) { r.Mounts[0].UidMappings = []*criv1.IDMapping{{Length: 1}} }},
		{"mounts[0].gidMappings[0]", func(r *req) { r.Mounts[0].GidMappings = []*criv1.IDMapping{{HostId: 1<<32 - 2, Length: 2}} }},
		{"mounts[0].uidMappings[1]", func(r *req) {
			r.Mounts[0].UidMappings = []*criv1.IDMapping{{HostId: 100, Length: 10}, {HostId: 105, ContainerId: 50, Length: 10}}
		}},
		{"mounts[0].mount_options", func(r *req) { r.Mounts[0].MountOptions = []string{"suid"} }},
		{"mounts[0].propagation", func(r *req) { r.Mounts[0].Propagation = 9 }},
		{"mounts[0].recursive_read_only", func(r *req) { r.Mounts[0].RecursiveReadOnly = true }},
		{"mounts[0].recursive_read_only", func(r *req) {
			r.Mounts[0].RecursiveReadOnly, r.Mounts[0].Readonly, r.Mounts[0].Propagation = true, false, criv1.MountPropagation_PROPAGATION_PRIVATE
		}},
		{"linux.resources.cpu_shares", func(r *req) { r.Linux.Resources.CpuShares = 262145 }},
		{"linux.resources.cpu_period", func(r *req) { r.Linux.Resources.CpuPeriod = -1 }},
		{"linux.resources.cpu_quota", func(r *req) { r.Linux.Resources.CpuQuota = -2 }},
		{"linux.resources.memory_limit_in_bytes", func(r *req) { r.Linux.Resources.MemoryLimitInBytes = -1 }},
		{"linux.resources.memory_swap_limit_in_bytes", func(r *req) { r.Linux.Resources.MemorySwapLimitInBytes = 5 }},
		{"linux.resources.oom_score_adj", func(r *req) { r.Linux.Resources.OomScoreAdj = 1001 }},
		{"linux.resources.cpuset_cpus", func(r *req) { r.Linux.Resources.CpusetCpus = "0;1" }},
		{"linux.resources.cpuset_mems", func(r *req) { r.Linux.Resources.CpusetMems = "x" }},
		{"linux.resources.hugepage_limits[0].page_size", func(r *req) { r.Linux.Resources.HugepageLimits[0].PageSize = "../2MB" }},
		{"linux.resources.unified", func(r *req) { r.Linux.Resources.Unified = map[string]string{"../cgroup.procs": "1"} }},
		{"linux.security_context.privileged", func(r *req) { sec(r).Privileged = true }},
		{"linux.security_context.run_as_user", func(r *req) { sec(r).RunAsUser.Value = 1 << 31 }},
		{"linux.security_context.run_as_group", func(r *req) { sec(r).RunAsUser = nil }},
		{"linux.security_context.run_as_group", func(r *req) { sec(r).RunAsGroup.Value = -1 }},
		{"linux.security_context.run_as_username", func(r *req) { sec(r).RunAsUsername = "me" }},
		{"linux.security_context.run_as_username", func(r *req) { sec(r).RunAsUser, sec(r).RunAsUsername = nil, "root:x" }},
		{"linux.security_context.supplemental_groups[0]", func(r *req) { sec(r).SupplementalGroups[0] = -1 }},
		{"linux.security_context.supplemental_groups_policy", func(r *req) { sec(r).SupplementalGroupsPolicy = 5 }},
		{"linux.security_context.capabilities.add_capabilities", func(r *req) { sec(r).Capabilities.AddCapabilities[0] = "FLY" }},
		{"linux.security_context.capabilities.drop_capabilities", func(r *req) { sec(r).Capabilities.DropCapabilities[0] = "" }},
		{"linux.security_context.capabilities.add_ambient_capabilities", func(r *req) { sec(r).Capabilities.AddAmbientCapabilities[0] = "KILL CHOWN" }},
		{"linux.security_context.seccomp.localhost_ref", func(r *req) { sec(r).Seccomp.LocalhostRef = "p.json" }},
		{"linux.security_context.seccomp.localhost_ref", func(r *req) { sec(r).Seccomp.LocalhostRef = "/a/../b" }},
		{"linux.security_context.seccomp.profile_type", func(r *req) { sec(r).Seccomp = &criv1.SecurityProfile{ProfileType: 9} }},
		{"linux.security_context.seccomp.profile", func(r *req) { sec(r).Seccomp, sec(r).SeccompProfilePath = nil, "magic" }}, //nolint:staticcheck // deprecated, but obeyed
		{"linux.security_context.apparmor.localhost_ref", func(r *req) { sec(r).Apparmor.LocalhostRef = "x" }},
		{"linux.security_context.masked_paths[0]", func(r *req) { sec(r).MaskedPaths[0] = "proc" }},
		{"linux.security_context.readonly_paths[0]", func(r *req) { sec(r).ReadonlyPaths[0] = "/proc/../etc" }},
		{"linux.security_context.selinux_options.type", func(r *req) { sec(r).SelinuxOptions.Type = "a:b" }},
	} {
		r := containerRequest()
		c.change(r)
		_, err := containerConfig(r, pod.Config{})
		if !errors.Is(err, pod.ErrInvalid) || !strings.HasPrefix(err.Error(), "invalid config."+c.field+":") {
			t.Errorf("want a refusal of %s, have %v", c.field, err)
		}
	}
}

func TestPrivilegedHasNoConfinement(t *testing.T) {
	r := containerRequest()
	r.Linux.SecurityContext.Privileged = true
	got, err := containerConfig(r, pod.Config{Privileged: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := got.Security; !s.Privileged || s.Seccomp != "" || s.AppArmor != "" || s.MaskedPaths == nil || len(s.MaskedPaths)+len(s.ReadonlyPaths) > 0 {
		t.Errorf("have %+v", s)
	}
}

func TestOldProfiles(t *testing.T) {
	for in, want := range map[string]string{"": "", "unconfined": "unconfined", "runtime/default": "runtime/default", "docker/default": "runtime/default", "localhost//p.json": "localhost//p.json"} {
		r := containerRequest()
		r.Linux.SecurityContext.Seccomp, r.Linux.SecurityContext.SeccompProfilePath = nil, in //nolint:staticcheck // deprecated, but obeyed
		got, err := containerConfig(r, pod.Config{})
		if err != nil || got.Security.Seccomp != want {
			t.Errorf("%q: %q %v", in, got.Security.Seccomp, err)
		}
	}
}

func TestSignals(t *testing.T) {
	for n := range criv1.Signal_name {
		s := criv1.Signal(n)
		name, err := signalName(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if s != criv1.Signal_SIGNAL_RUNTIME_DEFAULT && signalValue(name) != s {
			t.Errorf("%s → %q → %s", s, name, signalValue(name))
		}
	}
	for in, want := range map[string]criv1.Signal{"": criv1.Signal_SIGNAL_SIGTERM, "term": criv1.Signal_SIGNAL_SIGTERM, "RTMIN+3": criv1.Signal_SIGNAL_SIGRTMINPLUS3, "nonsense": criv1.Signal_SIGNAL_RUNTIME_DEFAULT} {
		if signalValue(in) != want {
			t.Errorf("%q: %s", in, signalValue(in))
		}
	}
}

func TestResourcesRoundTrip(t *testing.T) {
	in := containerRequest().Linux.Resources
	r, err := resources(in)
	if err != nil {
		t.Fatal(err)
	}
	if back := criResources(r).Linux; !proto.Equal(in, back) {
		t.Errorf("have %v, want %v", back, in)
	}
}

// FuzzContainerConfig: whatever comes is refused as invalid, or is safe to hand on.
func FuzzContainerConfig(f *testing.F) {
	seed, err := proto.Marshal(containerRequest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, raw []byte, share bool) {
		var r criv1.ContainerConfig
		if proto.Unmarshal(raw, &r) != nil {
			return
		}
		cfg, err := containerConfig(&r, pod.Config{SharePID: share})
		if err != nil {
			if !errors.Is(err, pod.ErrInvalid) {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		if strings.ContainsAny(cfg.Name, "/\n\x00;=") || cfg.Name == "" || path.IsAbs(cfg.LogPath) || strings.Contains("/"+cfg.LogPath+"/", "/../") {
			t.Fatalf("name %q, log %q", cfg.Name, cfg.LogPath)
		}
		for _, m := range cfg.Mounts {
			if !path.IsAbs(m.Source) || !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" {
				t.Fatalf("mount %+v", m)
			}
		}
		if cfg.Resources.MemoryLimit < 0 || cfg.Security.Privileged {
			t.Fatalf("%+v", cfg)
		}
		// The record is JSON: nothing may change on the way through it.
		enc, err := json.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var back pod.ContainerConfig
		if err := json.Unmarshal(enc, &back); err != nil || !cmp.Equal(cfg.Command, back.Command) || !cmp.Equal(cfg.Env, back.Env) || cfg.WorkingDir != back.WorkingDir || cfg.LogPath != back.LogPath {
			t.Fatalf("changed by its record: %v %s", err, cmp.Diff(cfg, back))
		}
	})
}
