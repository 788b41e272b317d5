package cri

import (
	"fmt"
	"net/netip"
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// podConfig turns a request for a sandbox into a pod. Every field is obeyed or
// refused by its name. What a sandbox's security context says of its own
// process (users, seccomp, read-only root, …) is met by every pause: it has an
// empty read-only root, no user, no capabilities and a filter of its own.
// Resources limit the pod's own cgroup; those of a cgroup_parent are its maker's.
func podConfig(c *criv1.PodSandboxConfig, handler string) (pod.Config, error) {
	if c == nil {
		return pod.Config{}, invalid("config", "is missing")
	}
	if c.Windows != nil {
		return pod.Config{}, invalid("config.windows", "this host runs Linux containers only")
	}
	cfg := pod.Config{
		Name: c.Metadata.GetName(), Namespace: c.Metadata.GetNamespace(), UID: c.Metadata.GetUid(), Attempt: c.Metadata.GetAttempt(),
		Hostname: c.Hostname, Labels: c.Labels, Annotations: c.Annotations, LogDirectory: strings.TrimRight(c.LogDirectory, "/"),
		Handler: handler,
	}
	for _, step := range []func() error{
		func() error { return checkPodNames(c) },
		func() error { return podNamespaces(&cfg, c.GetLinux().GetSecurityContext().GetNamespaceOptions()) },
		func() error { return podDNS(&cfg, c.DnsConfig) },
		func() error { return podPorts(&cfg, c.PortMappings) },
		func() error { return podLinux(&cfg, c.Linux) },
	} {
		if err := step(); err != nil {
			return pod.Config{}, within("config", err)
		}
	}
	return cfg, nil
}

func checkPodNames(c *criv1.PodSandboxConfig) error {
	if c.Metadata == nil {
		return invalid("metadata", "is missing")
	}
	for _, f := range []struct{ field, value string }{
		{"metadata.name", c.Metadata.Name}, {"metadata.namespace", c.Metadata.Namespace}, {"metadata.uid", c.Metadata.Uid},
	} {
		if err := checkName(f.field, f.value); err != nil {
			return err
		}
	}
	if c.Hostname != "" && (!named(c.Hostname, ".-", 64) || strings.Contains(c.Hostname, "..")) {
		return invalid("hostname", "%.80q: at most 64 letters, digits, '-' and '.' are allowed", c.Hostname)
	}
	if err := checkMap("labels", c.Labels); err != nil {
		return err
	}
	if err := checkMap("annotations", c.Annotations); err != nil {
		return err
	}
	if c.LogDirectory == "" {
		return nil
	}
	return checkAbs("log_directory", c.LogDirectory)
}

// podNamespaces reads which namespaces the pod has for itself. A missing message means POD for each.
func podNamespaces(cfg *pod.Config, o *criv1.NamespaceOption) error {
	const field = "linux.security_context.namespace_options"
	for _, n := range []struct {
		name string
		mode criv1.NamespaceMode
		host *bool
	}{{"network", o.GetNetwork(), &cfg.HostNetwork}, {"ipc", o.GetIpc(), &cfg.HostIPC}} {
		switch n.mode {
		case criv1.NamespaceMode_POD:
		case criv1.NamespaceMode_NODE:
			*n.host = true
		default:
			return invalid(field+"."+n.name, "%s: a pod has POD or NODE", n.mode)
		}
	}
	switch o.GetPid() {
	case criv1.NamespaceMode_POD:
		cfg.SharePID = true
	case criv1.NamespaceMode_CONTAINER:
	case criv1.NamespaceMode_NODE:
		cfg.HostPID = true
	default:
		return invalid(field+".pid", "%s: a pod has POD, CONTAINER or NODE", o.GetPid())
	}
	if o.GetTargetId() != "" {
		return invalid(field+".target_id", "a pod has no target, only a container")
	}
	var err error
	cfg.UIDMaps, cfg.GIDMaps, err = userNamespace(o.GetUsernsOptions())
	if err != nil {
		return within(field+".userns_options", err)
	}
	if len(cfg.UIDMaps) > 0 && (cfg.HostNetwork || cfg.HostPID || cfg.HostIPC) {
		return invalid(field+".userns_options", "a pod with a user namespace cannot use the host's network, PID or IPC namespace")
	}
	return nil
}

// userNamespace is nothing, or one range for users and one for groups that begin at 0 in the pod.
func userNamespace(u *criv1.UserNamespace) (uids, gids []runtime.IDMap, err error) {
	switch u.GetMode() {
	case criv1.NamespaceMode_POD:
	case criv1.NamespaceMode_NODE:
		if len(u.Uids)+len(u.Gids) > 0 {
			return nil, nil, invalid("mode", "NODE has no mappings, but %d are given", len(u.Uids)+len(u.Gids))
		}
		return nil, nil, nil
	default:
		return nil, nil, invalid("mode", "%s: POD and NODE are allowed", u.GetMode())
	}
	if len(u.GetUids())+len(u.GetGids()) == 0 {
		return nil, nil, nil
	}
	if uids, err = idMap("uids", u.Uids); err != nil {
		return nil, nil, err
	}
	if gids, err = idMap("gids", u.Gids); err != nil {
		return nil, nil, err
	}
	return uids, gids, nil
}

func idMap(field string, maps []*criv1.IDMapping) ([]runtime.IDMap, error) {
	if len(maps) != 1 {
		return nil, invalid(field, "has %d mappings: exactly one is allowed", len(maps))
	}
	m := maps[0]
	if m.GetContainerId() != 0 || m.GetLength() == 0 || uint64(m.GetHostId())+uint64(m.GetLength()) > 1<<32-1 {
		return nil, invalid(field, "container %d, host %d, length %d: the container's ids begin at 0, the length is above 0, the host's ids are below 2^32-1", m.GetContainerId(), m.GetHostId(), m.GetLength())
	}
	return []runtime.IDMap{{ContainerID: 0, HostID: m.HostId, Size: m.Length}}, nil
}

func podDNS(cfg *pod.Config, d *criv1.DNSConfig) error {
	if d == nil {
		return nil
	}
	for i, s := range d.Servers {
		if _, err := netip.ParseAddr(s); err != nil {
			return invalid(fmt.Sprintf("dns_config.servers[%d]", i), "%.80q is not an IP address", s)
		}
	}
	for name, words := range map[string][]string{"searches": d.Searches, "options": d.Options} {
		for i, w := range words {
			if w == "" || len(w) > 255 || !printable(w) {
				return invalid(fmt.Sprintf("dns_config.%s[%d]", name, i), "%.80q: 1 to 255 printable characters without a space are allowed", w)
			}
		}
	}
	if len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		cfg.DNS = &pod.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	return nil
}

// podPorts takes the ports that are published on the host. One without a host
// port only tells what a container listens on.
func podPorts(cfg *pod.Config, ports []*criv1.PortMapping) error {
	protocols := map[criv1.Protocol]string{criv1.Protocol_TCP: "tcp", criv1.Protocol_UDP: "udp", criv1.Protocol_SCTP: "sctp"}
	taken := map[string]bool{}
	for i, p := range ports {
		field := fmt.Sprintf("port_mappings[%d]", i)
		proto, ok := protocols[p.GetProtocol()]
		if !ok {
			return invalid(field+".protocol", "%d is unknown", p.GetProtocol())
		}
		if p.GetContainerPort() < 1 || p.GetContainerPort() > 65535 {
			return invalid(field+".container_port", "%d is not between 1 and 65535", p.GetContainerPort())
		}
		if p.GetHostPort() < 0 || p.GetHostPort() > 65535 {
			return invalid(field+".host_port", "%d is not between 0 and 65535", p.GetHostPort())
		}
		if p.GetHostIp() != "" {
			if _, err := netip.ParseAddr(p.GetHostIp()); err != nil {
				return invalid(field+".host_ip", "%.80q is not an IP address", p.GetHostIp())
			}
		}
		if p.GetHostPort() == 0 {
			continue
		}
		if cfg.HostNetwork {
			if p.HostPort != p.ContainerPort {
				return invalid(field+".host_port", "the pod uses the host's network: port %d cannot be told from %d", p.HostPort, p.ContainerPort)
			}
			continue
		}
		key := fmt.Sprintf("%s %s %d", proto, p.HostIp, p.HostPort)
		if taken[key] {
			return invalid(field+".host_port", "%s port %d is given twice", proto, p.HostPort)
		}
		taken[key] = true
		cfg.Ports = append(cfg.Ports, network.PortMapping{HostIP: p.HostIp, HostPort: uint16(p.HostPort), ContainerPort: uint16(p.ContainerPort), Protocol: proto})
	}
	return nil
}

func podLinux(cfg *pod.Config, l *criv1.LinuxPodSandboxConfig) error {
	if l == nil {
		return nil
	}
	if l.CgroupParent != "" {
		if err := checkPath("linux.cgroup_parent", l.CgroupParent); err != nil {
			return err
		}
		cfg.CgroupParent = l.CgroupParent
		if !strings.HasSuffix(l.CgroupParent, ".slice") {
			cfg.CgroupParent = "/" + strings.Trim(l.CgroupParent, "/")
		}
	}
	if err := checkSysctls("linux.sysctls", l.Sysctls, cfg.HostNetwork, cfg.HostIPC); err != nil {
		return err
	}
	cfg.Sysctls = l.Sysctls
	var err error
	if cfg.Overhead, cfg.Resources, err = podResources(l.Overhead, l.Resources); err != nil {
		return within("linux", err)
	}
	return podSecurity(cfg, l.SecurityContext)
}

func podSecurity(cfg *pod.Config, s *criv1.LinuxSandboxSecurityContext) error {
	const field = "linux.security_context"
	cfg.Privileged = s.GetPrivileged()
	for name, v := range map[string]*criv1.Int64Value{"run_as_user": s.GetRunAsUser(), "run_as_group": s.GetRunAsGroup()} {
		if v != nil {
			if err := checkID(field+"."+name, v.Value); err != nil {
				return err
			}
		}
	}
	if s.GetRunAsGroup() != nil && s.GetRunAsUser() == nil {
		return invalid(field+".run_as_group", "needs run_as_user")
	}
	for _, g := range s.GetSupplementalGroups() {
		if err := checkID(field+".supplemental_groups", g); err != nil {
			return err
		}
	}
	for name, p := range map[string]*criv1.SecurityProfile{"seccomp": s.GetSeccomp(), "apparmor": s.GetApparmor()} {
		if _, err := profileName(p); err != nil {
			return within(field+"."+name, err)
		}
	}
	if _, err := oldProfileName(s.GetSeccompProfilePath()); err != nil { //nolint:staticcheck // deprecated, but checked
		return invalid(field+".seccomp_profile_path", "%.80q is not runtime/default, unconfined or localhost/NAME", s.GetSeccompProfilePath()) //nolint:staticcheck // as above
	}
	if _, known := criv1.SupplementalGroupsPolicy_name[int32(s.GetSupplementalGroupsPolicy())]; !known {
		return invalid(field+".supplemental_groups_policy", "%d is unknown", s.GetSupplementalGroupsPolicy())
	}
	_, err := seLinuxLabel(s.GetSelinuxOptions())
	return within(field, err)
}
