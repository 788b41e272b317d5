package cri

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
)

// capabilities are the names that the kernel knows, without CAP_.
const capabilities = " AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID " +
	"IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP " +
	"SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME " +
	"SYS_TTY_CONFIG WAKE_ALARM ALL "

// security translates a container's security context. Without one the
// container gets the built-in masked paths; with one exactly what it says.
func security(cfg *pod.ContainerConfig, s *criv1.LinuxContainerSecurityContext, p pod.Config) error {
	if s == nil {
		return nil
	}
	sec := &cfg.Security
	sec.Privileged, sec.NoNewPrivs = s.Privileged, s.NoNewPrivs
	cfg.ReadonlyRootfs = s.ReadonlyRootfs
	if s.Privileged && !p.Privileged {
		return invalid("privileged", "the pod is not privileged: set it in the sandbox's security context as well")
	}
	for _, step := range []func() error{
		func() error { return user(cfg, s) },
		func() error { return containerNamespaces(cfg, s.NamespaceOptions, p) },
		func() error { return addCapabilities(cfg, s.Capabilities) },
		func() error { return profiles(cfg, s) },
		func() error { return paths(cfg, s) },
		func() error { return selinux(cfg, s.SelinuxOptions) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func user(cfg *pod.ContainerConfig, s *criv1.LinuxContainerSecurityContext) error {
	switch {
	case s.RunAsUser != nil && s.RunAsUsername != "":
		return invalid("run_as_username", "is given together with run_as_user")
	case s.RunAsUser != nil:
		if err := checkID("run_as_user", s.RunAsUser.Value); err != nil {
			return err
		}
		cfg.User = strconv.FormatInt(s.RunAsUser.Value, 10)
	case s.RunAsUsername != "":
		if len(s.RunAsUsername) > 253 || !matches(`^[A-Za-z0-9_][A-Za-z0-9_.@-]*\$?$`, s.RunAsUsername) {
			return invalid("run_as_username", "%.80q is no user name", s.RunAsUsername)
		}
		cfg.User = s.RunAsUsername
	case s.RunAsGroup != nil:
		return invalid("run_as_group", "needs run_as_user or run_as_username")
	}
	if s.RunAsGroup != nil {
		if err := checkID("run_as_group", s.RunAsGroup.Value); err != nil {
			return err
		}
		gid := s.RunAsGroup.Value
		cfg.Group = &gid
	}
	for i, g := range s.SupplementalGroups {
		if err := checkID(fmt.Sprintf("supplemental_groups[%d]", i), g); err != nil {
			return err
		}
	}
	cfg.AdditionalGIDs = s.SupplementalGroups
	switch s.SupplementalGroupsPolicy {
	case criv1.SupplementalGroupsPolicy_Merge:
	case criv1.SupplementalGroupsPolicy_Strict:
		cfg.StrictGroups = true
	default:
		return invalid("supplemental_groups_policy", "%d is unknown", s.SupplementalGroupsPolicy)
	}
	return nil
}

// containerNamespaces checks that a container asks for namespaces that its pod
// has. POD means the pod's, whatever that is; a missing message means as the pod.
func containerNamespaces(cfg *pod.ContainerConfig, o *criv1.NamespaceOption, p pod.Config) error {
	if o == nil {
		return nil
	}
	const field = "namespace_options"
	for _, n := range []struct {
		name string
		mode criv1.NamespaceMode
		host bool
	}{{"network", o.Network, p.HostNetwork}, {"ipc", o.Ipc, p.HostIPC}} {
		if n.mode != criv1.NamespaceMode_POD && (n.mode != criv1.NamespaceMode_NODE || !n.host) {
			return invalid(field+"."+n.name, "%s: a container has the %s namespace of its pod, which is not that", n.mode, n.name)
		}
	}
	if err := containerPID(cfg, o, p); err != nil {
		return within(field, err)
	}
	uids, gids, err := userNamespace(o.UsernsOptions)
	if err != nil {
		return within(field+".userns_options", err)
	}
	if o.UsernsOptions != nil && (!slices.Equal(uids, p.UIDMaps) || !slices.Equal(gids, p.GIDMaps)) {
		return invalid(field+".userns_options", "a container has the user namespace of its pod, these mappings are not the pod's")
	}
	return nil
}

func containerPID(cfg *pod.ContainerConfig, o *criv1.NamespaceOption, p pod.Config) error {
	if (o.TargetId != "") != (o.Pid == criv1.NamespaceMode_TARGET) {
		return invalid("target_id", "goes with pid TARGET, and the other way round")
	}
	switch o.Pid {
	case criv1.NamespaceMode_TARGET:
		cfg.TargetContainer = o.TargetId
	case criv1.NamespaceMode_NODE:
		cfg.HostPID = true
	case criv1.NamespaceMode_POD:
		if !p.SharePID && !p.HostPID {
			return invalid("pid", "POD, but the pod was made without a PID namespace of its own: use CONTAINER for both, or POD for both")
		}
	case criv1.NamespaceMode_CONTAINER:
		if p.SharePID || p.HostPID {
			cfg.OwnPID = true
		}
	default:
		return invalid("pid", "%d is unknown", o.Pid)
	}
	return nil
}

func addCapabilities(cfg *pod.ContainerConfig, c *criv1.Capability) error {
	for name, list := range map[string][]string{
		"add_capabilities": c.GetAddCapabilities(), "drop_capabilities": c.GetDropCapabilities(), "add_ambient_capabilities": c.GetAddAmbientCapabilities(),
	} {
		for _, cap := range list {
			if !knownCapability(cap) {
				return invalid("capabilities."+name, "%.80q is not a capability of this kernel", cap)
			}
		}
	}
	cfg.Security.AddCaps, cfg.Security.DropCaps = c.GetAddCapabilities(), c.GetDropCapabilities()
	cfg.Security.AmbientCaps = c.GetAddAmbientCapabilities()
	return nil
}

func knownCapability(name string) bool {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	return name != "" && only(name, "_") && strings.Contains(capabilities, " "+name+" ")
}

// profiles reads seccomp and AppArmor; the deprecated fields count where the new ones are missing.
// A privileged container has neither, as the API says.
func profiles(cfg *pod.ContainerConfig, s *criv1.LinuxContainerSecurityContext) error {
	for _, f := range []struct {
		name    string
		profile *criv1.SecurityProfile
		old     string
		into    *string
	}{
		{"seccomp", s.Seccomp, s.SeccompProfilePath, &cfg.Security.Seccomp}, //nolint:staticcheck // deprecated, but obeyed
		{"apparmor", s.Apparmor, s.ApparmorProfile, &cfg.Security.AppArmor}, //nolint:staticcheck // deprecated, but obeyed
	} {
		name, err := profileName(f.profile)
		if f.profile == nil {
			name, err = oldProfileName(f.old)
		}
		if err != nil {
			return within(f.name, err)
		}
		if f.name == "seccomp" && strings.HasPrefix(name, localhost) && !path.IsAbs(strings.TrimPrefix(name, localhost)) {
			return invalid("seccomp.localhost_ref", "%.80q is not an absolute path", strings.TrimPrefix(name, localhost))
		}
		if f.name == "apparmor" && !printable(name) {
			return invalid("apparmor.localhost_ref", "%.80q is no profile name", name)
		}
		if !s.Privileged {
			*f.into = name
		}
	}
	return nil
}

// What a profile can be, besides "localhost/NAME".
const (
	runtimeDefault = "runtime/default"
	unconfined     = "unconfined"
	localhost      = "localhost/"
)

// profileName is "", "runtime/default", "unconfined" or "localhost/NAME".
func profileName(p *criv1.SecurityProfile) (string, error) {
	if p == nil {
		return "", nil
	}
	if p.ProfileType != criv1.SecurityProfile_Localhost && p.LocalhostRef != "" {
		return "", invalid("localhost_ref", "needs profile_type Localhost")
	}
	switch p.ProfileType {
	case criv1.SecurityProfile_RuntimeDefault:
		return runtimeDefault, nil
	case criv1.SecurityProfile_Unconfined:
		return unconfined, nil
	case criv1.SecurityProfile_Localhost:
		if err := checkPath("localhost_ref", p.LocalhostRef); err != nil {
			return "", err
		}
		ref := strings.TrimPrefix(p.LocalhostRef, localhost)
		if ref == "" {
			return "", invalid("localhost_ref", "is empty")
		}
		return localhost + ref, nil
	}
	return "", invalid("profile_type", "%d is unknown", p.ProfileType)
}

func oldProfileName(s string) (string, error) {
	switch {
	case s == "" || s == unconfined:
		return s, nil
	case s == runtimeDefault || s == "docker/default":
		return runtimeDefault, nil
	case strings.HasPrefix(s, localhost) && len(s) > len(localhost):
		return s, checkPath("profile", s)
	}
	return "", invalid("profile", "%.80q is not runtime/default, unconfined or localhost/NAME", s)
}

// paths takes the masked and read-only paths as they are given: an empty list is none.
func paths(cfg *pod.ContainerConfig, s *criv1.LinuxContainerSecurityContext) error {
	for name, list := range map[string][]string{"masked_paths": s.MaskedPaths, "readonly_paths": s.ReadonlyPaths} {
		for i, p := range list {
			if err := checkAbs(fmt.Sprintf("%s[%d]", name, i), p); err != nil {
				return err
			}
		}
	}
	cfg.Security.MaskedPaths, cfg.Security.ReadonlyPaths = []string{}, []string{}
	if !s.Privileged {
		cfg.Security.MaskedPaths = append(cfg.Security.MaskedPaths, s.MaskedPaths...)
		cfg.Security.ReadonlyPaths = append(cfg.Security.ReadonlyPaths, s.ReadonlyPaths...)
	}
	return nil
}

func selinux(cfg *pod.ContainerConfig, o *criv1.SELinuxOption) (err error) {
	cfg.Security.SELinuxLabel, err = seLinuxLabel(o)
	return err
}

// seLinuxLabel is "" where nothing is asked for.
func seLinuxLabel(o *criv1.SELinuxOption) (string, error) {
	if o == nil || o.User+o.Role+o.Type+o.Level == "" {
		return "", nil
	}
	for name, v := range map[string]string{"user": o.User, "role": o.Role, "type": o.Type, "level": o.Level} {
		if len(v) > 255 || !only(v, "_.,:-") || name != "level" && strings.Contains(v, ":") {
			return "", invalid("selinux_options."+name, "%.80q is no part of a label", v)
		}
	}
	// What is missing is what container policies everywhere call it.
	user, role, typ := cmp.Or(o.User, "system_u"), cmp.Or(o.Role, "system_r"), cmp.Or(o.Type, "container_t")
	return strings.TrimSuffix(user+":"+role+":"+typ+":"+o.Level, ":"), nil
}
