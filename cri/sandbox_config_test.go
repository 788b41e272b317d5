package cri

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// podRequest is a good request, as a kubelet makes it.
func podRequest(name string) *criv1.PodSandboxConfig {
	return &criv1.PodSandboxConfig{
		Metadata:     &criv1.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "0a1b-2c", Attempt: 1},
		Hostname:     "web-0",
		LogDirectory: "/var/log/pods/default_web_0a1b/",
		DnsConfig:    &criv1.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"cluster.local", "."}, Options: []string{"ndots:5"}},
		PortMappings: []*criv1.PortMapping{{ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"}, {ContainerPort: 53, Protocol: criv1.Protocol_UDP}},
		Labels:       map[string]string{"app": "web"},
		Annotations:  map[string]string{"note": "two\nlines"},
		Linux: &criv1.LinuxPodSandboxConfig{
			CgroupParent: "/kube/pod1/",
			Sysctls:      map[string]string{"net.ipv4.ip_local_port_range": "1024 65000", "kernel.shm_rmid_forced": "1"},
			SecurityContext: &criv1.LinuxSandboxSecurityContext{
				NamespaceOptions: &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER}, Privileged: true,
				Seccomp: &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

func TestPodConfig(t *testing.T) {
	got, err := podConfig(podRequest("web"), "")
	if err != nil {
		t.Fatal(err)
	}
	want := pod.Config{
		Name: "web", Namespace: "default", UID: "0a1b-2c", Attempt: 1, Hostname: "web-0",
		Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"note": "two\nlines"},
		LogDirectory: "/var/log/pods/default_web_0a1b",
		DNS:          &pod.DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"cluster.local", "."}, Options: []string{"ndots:5"}},
		Ports:        []network.PortMapping{{HostIP: "127.0.0.1", HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}},
		Sysctls:      map[string]string{"net.ipv4.ip_local_port_range": "1024 65000", "kernel.shm_rmid_forced": "1"},
		Privileged:   true, CgroupParent: "/kube/pod1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestPodConfigMinimal(t *testing.T) {
	got, err := podConfig(&criv1.PodSandboxConfig{Metadata: &criv1.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}}, "h")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(pod.Config{Name: "a", Namespace: "b", UID: "c", SharePID: true, Handler: "h"}, got); d != "" {
		t.Error(d)
	}
}

func TestPodNamespaces(t *testing.T) {
	const container, node, target = criv1.NamespaceMode_CONTAINER, criv1.NamespaceMode_NODE, criv1.NamespaceMode_TARGET
	idMap := []*criv1.IDMapping{{HostId: 65536, Length: 65536}}
	for name, c := range map[string]struct {
		in   *criv1.NamespaceOption
		want pod.Config
		err  string
	}{
		"none":        {nil, pod.Config{SharePID: true}, ""},
		"host":        {&criv1.NamespaceOption{Network: node, Pid: node, Ipc: node}, pod.Config{HostNetwork: true, HostPID: true, HostIPC: true}, ""},
		"own pids":    {&criv1.NamespaceOption{Pid: container}, pod.Config{}, ""},
		"userns":      {&criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{Uids: idMap, Gids: idMap}}, pod.Config{SharePID: true, UIDMaps: []runtime.IDMap{{HostID: 65536, Size: 65536}}, GIDMaps: []runtime.IDMap{{HostID: 65536, Size: 65536}}}, ""},
		"no userns":   {&criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{Mode: node}}, pod.Config{SharePID: true}, ""},
		"network":     {&criv1.NamespaceOption{Network: container}, pod.Config{}, "namespace_options.network"},
		"ipc":         {&criv1.NamespaceOption{Ipc: target}, pod.Config{}, "namespace_options.ipc"},
		"pid":         {&criv1.NamespaceOption{Pid: target, TargetId: "x"}, pod.Config{}, "namespace_options.pid"},
		"unknown":     {&criv1.NamespaceOption{Pid: 9}, pod.Config{}, "namespace_options.pid"},
		"target":      {&criv1.NamespaceOption{TargetId: "x"}, pod.Config{}, "target_id"},
		"two maps":    {&criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{Uids: append(idMap, idMap...), Gids: idMap}}, pod.Config{}, "userns_options.uids"},
		"no gids":     {&criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{Uids: idMap}}, pod.Config{}, "userns_options.gids"},
		"not from 0":  {&criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{Uids: []*criv1.IDMapping{{ContainerId: 1, HostId: 1, Length: 1}}, Gids: idMap}}, pod.Config{}, "uids"},
		"overflow":    {&criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{Uids: []*criv1.IDMapping{{HostId: 1<<32 - 2, Length: 10}}, Gids: idMap}}, pod.Config{}, "uids"},
		"mode":        {&criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{Mode: container}}, pod.Config{}, "userns_options.mode"},
		"node + maps": {&criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{Mode: node, Uids: idMap}}, pod.Config{}, "userns_options.mode"},
		"userns+host": {&criv1.NamespaceOption{Network: node, UsernsOptions: &criv1.UserNamespace{Uids: idMap, Gids: idMap}}, pod.Config{}, "userns_options"},
	} {
		var got pod.Config
		err := podNamespaces(&got, c.in)
		switch {
		case c.err == "" && err != nil, c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want %q", name, err, c.err)
		case c.err == "" && !cmp.Equal(got, c.want):
			t.Errorf("%s: %s", name, cmp.Diff(c.want, got))
		}
	}
}

func TestPodRefusals(t *testing.T) {
	type req = criv1.PodSandboxConfig
	long := strings.Repeat("x", 300)
	for _, c := range []struct {
		field  string // in the message
		change func(*req)
	}{
		{"config.windows", func(r *req) { r.Windows = &criv1.WindowsPodSandboxConfig{} }},
		{"config.metadata", func(r *req) { r.Metadata = nil }},
		{"config.metadata.name", func(r *req) { r.Metadata.Name = "" }},
		{"config.metadata.name", func(r *req) { r.Metadata.Name = "../../etc" }},
		{"config.metadata.name", func(r *req) { r.Metadata.Name = "a..b" }},
		{"config.metadata.name", func(r *req) { r.Metadata.Name = "a\nb" }},
		{"config.metadata.name", func(r *req) { r.Metadata.Name = "a\x00b" }},
		{"config.metadata.name", func(r *req) { r.Metadata.Name = long }},
		{"config.metadata.namespace", func(r *req) { r.Metadata.Namespace = "a;K8S_POD_NAME=b" }},
		{"config.metadata.namespace", func(r *req) { r.Metadata.Namespace = "a=b" }},
		{"config.metadata.uid", func(r *req) { r.Metadata.Uid = "-x" }},
		{"config.metadata.uid", func(r *req) { r.Metadata.Uid = "a b" }},
		{"config.hostname", func(r *req) { r.Hostname = "a b" }},
		{"config.hostname", func(r *req) { r.Hostname = long }},
		{"config.labels", func(r *req) { r.Labels[""] = "x" }},
		{"config.labels", func(r *req) { r.Labels["x"] = "a\x00" }},
		{"config.annotations", func(r *req) { r.Annotations["big"] = strings.Repeat("x", maxStrings) }},
		{"config.log_directory", func(r *req) { r.LogDirectory = "var/log" }},
		{"config.log_directory", func(r *req) { r.LogDirectory = "/var/log/../../etc" }},
		{"config.log_directory", func(r *req) { r.LogDirectory = "/var/log\n" }},
		{"config.dns_config.servers[0]", func(r *req) { r.DnsConfig.Servers[0] = "10.0.0.1\nnameserver 6.6.6.6" }},
		{"config.dns_config.searches[1]", func(r *req) { r.DnsConfig.Searches[1] = "a b" }},
		{"config.dns_config.options[0]", func(r *req) { r.DnsConfig.Options[0] = "x\n" }},
		{"config.port_mappings[0].container_port", func(r *req) { r.PortMappings[0].ContainerPort = 0 }},
		{"config.port_mappings[0].host_port", func(r *req) { r.PortMappings[0].HostPort = 65536 }},
		{"config.port_mappings[0].host_port", func(r *req) { r.PortMappings[0].HostPort = -1 }},
		{"config.port_mappings[0].host_ip", func(r *req) { r.PortMappings[0].HostIp = "localhost" }},
		{"config.port_mappings[0].protocol", func(r *req) { r.PortMappings[0].Protocol = 7 }},
		{"config.port_mappings[1].host_port", func(r *req) { r.PortMappings[1] = r.PortMappings[0] }},
		{"config.port_mappings[0].host_port", func(r *req) {
			r.Linux.Sysctls = nil
			r.Linux.SecurityContext.NamespaceOptions.Network = criv1.NamespaceMode_NODE
		}},
		{"config.linux.cgroup_parent", func(r *req) { r.Linux.CgroupParent = "/kube/../../x" }},
		{"config.linux.overhead.cpu_shares", func(r *req) { r.Linux.Overhead = &criv1.LinuxContainerResources{CpuShares: -1} }},
		{"config.linux.resources.memory_limit_in_bytes", func(r *req) { r.Linux.Resources = &criv1.LinuxContainerResources{MemoryLimitInBytes: -1} }},
		{"config.linux.security_context.run_as_user", func(r *req) { r.Linux.SecurityContext.RunAsUser = &criv1.Int64Value{Value: -1} }},
		{"config.linux.security_context.run_as_group", func(r *req) { r.Linux.SecurityContext.RunAsGroup = &criv1.Int64Value{Value: 1} }},
		{"config.linux.security_context.supplemental_groups", func(r *req) { r.Linux.SecurityContext.SupplementalGroups = []int64{1 << 31} }},
		{"config.linux.security_context.seccomp.profile_type", func(r *req) { r.Linux.SecurityContext.Seccomp.ProfileType = 7 }},
		{"config.linux.security_context.apparmor.localhost_ref", func(r *req) {
			r.Linux.SecurityContext.Apparmor = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_Localhost}
		}},
	} {
		r := podRequest("web")
		c.change(r)
		_, err := podConfig(r, "")
		if !errors.Is(err, pod.ErrInvalid) || !strings.HasPrefix(err.Error(), "invalid "+c.field+":") {
			t.Errorf("want a refusal of %s, have %v", c.field, err)
		}
	}
	if _, err := podConfig(nil, ""); err == nil {
		t.Error("no config: no error")
	}
}

func TestSysctls(t *testing.T) {
	for _, c := range []struct {
		name, value          string
		hostNet, hostIPC, ok bool
	}{
		{"net.ipv4.conf.eth0.rp_filter", "0", false, false, true},
		{"net.ipv4.tcp_congestion_control", "bbr", false, false, true},
		{"net.ipv4.ip_local_reserved_ports", "1-3,5", false, false, true},
		{"kernel.sem", "250 32000\t32 128", false, false, true},
		{"fs.mqueue.msg_max", "10", false, false, true},
		{"net.ipv4.ip_forward", "1", true, false, false},
		{"kernel.shmmax", "1", false, true, false},
		{"kernel.core_pattern", "x", false, false, false},
		{"vm.overcommit_memory", "1", false, false, false},
		{"kernel.semaphore", "1", false, false, false},
		{"net.ipv4.ip_forward", "1+kernel.core_pattern=|/evil", false, false, false},
		{"net.ipv4.ip_forward", "1\nx", false, false, false},
		{"net.ipv4.ip_forward", "", false, false, false},
		{"net/../../kernel/core_pattern", "1", false, false, false},
		{"net...kernel", "1", false, false, false},
		{"net.a\x00b", "1", false, false, false},
	} {
		err := checkSysctls("sysctls", map[string]string{c.name: c.value}, c.hostNet, c.hostIPC)
		if (err == nil) != c.ok {
			t.Errorf("%q=%q: %v", c.name, c.value, err)
		}
	}
}
