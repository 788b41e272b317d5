package cri

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

var update = flag.Bool("update", false, "write docs/cri-fields.md")

// What becomes of a field of a request.
const (
	obeyed  = "obeyed"
	refused = "refused"
	checked = "checked"
)

// handled says what becomes of one field. The test sets value alone in a small
// request: obeyed must change what the pod or container is made of, refused must
// be an error with the field's name, checked must be neither, and how says why.
type handled struct {
	what  string
	value func(set protoreflect.Message) // sets the field in its message; nil for the kind's usual one
	how   string
}

func set[M proto.Message](change func(M)) func(protoreflect.Message) {
	return func(m protoreflect.Message) { change(m.Interface().(M)) }
}

// resourceFields are those of LinuxContainerResources.
func resourceFields(prefix, what, how string) map[string]handled {
	type resources = criv1.LinuxContainerResources
	return prefixed(prefix, map[string]handled{
		"cpu_period": {what, nil, how}, "cpu_quota": {what, nil, how}, "cpu_shares": {what, nil, how}, "memory_limit_in_bytes": {what, nil, how},
		"oom_score_adj": {what, nil, how}, "memory_swap_limit_in_bytes": {what, nil, how},
		"cpuset_cpus":     {what, set(func(r *resources) { r.CpusetCpus = "0" }), how},
		"cpuset_mems":     {what, set(func(r *resources) { r.CpusetMems = "0" }), how},
		"hugepage_limits": {what, set(func(r *resources) { r.HugepageLimits = []*criv1.HugepageLimit{{PageSize: "2MB", Limit: 1}} }), how},
		"unified":         {what, set(func(r *resources) { r.Unified = map[string]string{"memory.high": "1"} }), how},
	})
}

func prefixed(prefix string, in map[string]handled) map[string]handled {
	out := map[string]handled{}
	for k, v := range in {
		out[prefix+k] = v
	}
	return out
}

func profile(kind criv1.SecurityProfile_ProfileType, ref string) *criv1.SecurityProfile {
	return &criv1.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
}

func containerFields() map[string]handled {
	type sec = criv1.LinuxContainerSecurityContext
	const s = "linux.security_context."
	out := map[string]handled{
		"metadata.name": {obeyed, nil, "part of the container's identity"}, "metadata.attempt": {obeyed, nil, "part of the container's identity"},
		"image.image": {obeyed, nil, "must be on this host"}, "image.user_specified_image": {obeyed, nil, "shown in statuses"},
		"image.annotations": {checked, nil, "no part of running a container"}, "image.image_ref": {checked, nil, "image.image decides"}, "image.runtime_handler": {checked, nil, "images are the same for all handlers"},
		"command": {obeyed, nil, ""}, "args": {obeyed, nil, ""}, "working_dir": {obeyed, set(func(c *criv1.ContainerConfig) { c.WorkingDir = "/x" }), ""},
		"envs":        {obeyed, set(func(c *criv1.ContainerConfig) { c.Envs = []*criv1.KeyValue{{Key: "A"}} }), "any bytes but NUL that are UTF-8"},
		"labels":      {obeyed, nil, "shown in statuses, chosen by filters"},
		"annotations": {obeyed, nil, "in the OCI spec and in statuses; cdi.k8s.io/… asks for CDI devices"},
		"log_path":    {obeyed, nil, "below the pod's log_directory, never through a link"},
		"stdin":       {obeyed, nil, ""}, "stdin_once": {obeyed, nil, ""}, "tty": {obeyed, nil, ""}, "windows": {refused, nil, "Linux containers alone"},
		"CDI_devices": {obeyed, set(func(c *criv1.ContainerConfig) { c.CDIDevices = []*criv1.CDIDevice{{Name: "a.com/b=c"}} }), "specs are looked for in cdi.spec_dirs"},
		"stop_signal": {obeyed, nil, "instead of the image's"},
		"mounts":      {obeyed, set(func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{{HostPath: "/x", ContainerPath: "/y"}} }), "field by field below"},
		"devices": {obeyed, set(func(c *criv1.ContainerConfig) {
			c.Devices = []*criv1.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x"}}
		}), "nodes of the host, with a cgroup rule; field by field below"},

		s + "privileged":                  {obeyed, nil, "the pod must be privileged, too"},
		s + "namespace_options.network":   {refused, set(func(o *criv1.NamespaceOption) { o.Network = criv1.NamespaceMode_NODE }), "the pod's, whichever that is; any other is refused"},
		s + "namespace_options.ipc":       {refused, set(func(o *criv1.NamespaceOption) { o.Ipc = criv1.NamespaceMode_NODE }), "the pod's, whichever that is; any other is refused"},
		s + "namespace_options.pid":       {obeyed, set(func(o *criv1.NamespaceOption) { o.Pid = criv1.NamespaceMode_CONTAINER }), "POD, CONTAINER, NODE or TARGET"},
		s + "namespace_options.target_id": {obeyed, set(func(o *criv1.NamespaceOption) { o.Pid, o.TargetId = criv1.NamespaceMode_TARGET, "x" }), "a running container of the same pod"},
		s + "namespace_options.userns_options": {refused, set(func(o *criv1.NamespaceOption) {
			o.UsernsOptions = &criv1.UserNamespace{Uids: []*criv1.IDMapping{{Length: 1}}, Gids: []*criv1.IDMapping{{Length: 1}}}
		}), "must be the pod's"},
		s + "run_as_user":     {obeyed, set(func(c *sec) { c.RunAsUser = &criv1.Int64Value{Value: 1} }), ""},
		s + "run_as_group":    {obeyed, set(func(c *sec) { c.RunAsUser, c.RunAsGroup = &criv1.Int64Value{}, &criv1.Int64Value{Value: 1} }), "with a user"},
		s + "run_as_username": {obeyed, nil, "looked for in the image"},
		s + "readonly_rootfs": {obeyed, nil, ""}, s + "no_new_privs": {obeyed, nil, ""},
		s + "supplemental_groups": {obeyed, nil, ""}, s + "supplemental_groups_policy": {obeyed, nil, "Merge adds the groups of the image, Strict does not"},
		s + "masked_paths":                          {obeyed, set(func(c *sec) { c.MaskedPaths = []string{"/x"} }), "exactly these; without a security context the built-in list"},
		s + "readonly_paths":                        {obeyed, set(func(c *sec) { c.ReadonlyPaths = []string{"/x"} }), "exactly these; without a security context the built-in list"},
		s + "seccomp":                               {obeyed, set(func(c *sec) { c.Seccomp = profile(criv1.SecurityProfile_Localhost, "/x") }), "the built-in profile, none, or a file of the host"},
		s + "apparmor":                              {obeyed, set(func(c *sec) { c.Apparmor = profile(criv1.SecurityProfile_Localhost, "x") }), "a loaded profile; refused where AppArmor is off"},
		s + "apparmor_profile":                      {obeyed, set(func(c *sec) { c.ApparmorProfile = "localhost/x" }), "deprecated; counts without apparmor"},    //nolint:staticcheck // deprecated, but obeyed
		s + "seccomp_profile_path":                  {obeyed, set(func(c *sec) { c.SeccompProfilePath = "localhost//x" }), "deprecated; counts without seccomp"}, //nolint:staticcheck // deprecated, but obeyed
		s + "capabilities.add_capabilities":         {obeyed, set(func(c *criv1.Capability) { c.AddCapabilities = []string{"KILL"} }), ""},
		s + "capabilities.drop_capabilities":        {obeyed, set(func(c *criv1.Capability) { c.DropCapabilities = []string{"KILL"} }), ""},
		s + "capabilities.add_ambient_capabilities": {obeyed, set(func(c *criv1.Capability) { c.AddAmbientCapabilities = []string{"KILL"} }), ""},
	}
	for _, part := range []string{"user", "role", "type", "level"} {
		out[s+"selinux_options."+part] = handled{obeyed, nil, "without SELinux on the host nothing enforces it"}
	}
	maps.Copy(out, resourceFields("linux.resources.", obeyed, ""))
	return out
}

func mountFields() map[string]handled {
	type mount = criv1.Mount
	ids := []*criv1.IDMapping{{HostId: 9, Length: 1}}
	return map[string]handled{
		"container_path": {obeyed, set(func(m *mount) { m.ContainerPath = "/z" }), ""}, "host_path": {obeyed, set(func(m *mount) { m.HostPath = "/z" }), "followed once, when the container is made; it must be there"},
		"readonly": {obeyed, nil, ""}, "selinux_relabel": {checked, nil, "refused where SELinux is on, nothing to do where it is off"},
		"propagation":         {obeyed, nil, ""},
		"uidMappings":         {obeyed, set(func(m *mount) { m.UidMappings, m.GidMappings = ids, ids }), "an idmapped mount, recursive"},
		"gidMappings":         {obeyed, set(func(m *mount) { m.UidMappings, m.GidMappings = ids, ids }), "an idmapped mount, recursive"},
		"recursive_read_only": {obeyed, set(func(m *mount) { m.Readonly, m.RecursiveReadOnly = true, true }), "with readonly, without propagation, and a handler that can"},
		"image":               {obeyed, set(func(m *mount) { m.HostPath, m.Image = "", &criv1.ImageSpec{Image: "x"} }), "read-only"},
		"image_sub_path":      {obeyed, set(func(m *mount) { m.HostPath, m.Image, m.ImageSubPath = "", &criv1.ImageSpec{Image: "x"}, "y" }), "below the image's root, links stay in it"},
		"mount_options":       {obeyed, set(func(m *mount) { m.MountOptions = []string{"noexec"} }), "noexec, nodev, nosuid"},
	}
}

func deviceFields() map[string]handled {
	return map[string]handled{
		"container_path": {obeyed, set(func(d *criv1.Device) { d.ContainerPath = "/dev/z" }), ""},
		"host_path":      {obeyed, set(func(d *criv1.Device) { d.HostPath = "/dev/z" }), "a device node"},
		"permissions":    {obeyed, set(func(d *criv1.Device) { d.Permissions = "r" }), "letters of rwm"},
	}
}

func podFields() map[string]handled {
	type ns = criv1.NamespaceOption
	type sec = criv1.LinuxSandboxSecurityContext
	const s = "linux.security_context."
	const pause = "pause has an empty read-only root, no user, no capabilities and a filter of its own: nothing of this would take anything away from it"
	out := map[string]handled{
		"metadata.name": {obeyed, nil, ""}, "metadata.uid": {obeyed, nil, ""}, "metadata.namespace": {obeyed, nil, ""}, "metadata.attempt": {obeyed, nil, ""},
		"hostname": {obeyed, nil, ""}, "log_directory": {obeyed, set(func(c *criv1.PodSandboxConfig) { c.LogDirectory = "/x" }), "absolute"},
		"dns_config.servers":  {obeyed, set(func(c *criv1.DNSConfig) { c.Servers = []string{"1.2.3.4"} }), ""},
		"dns_config.searches": {obeyed, nil, ""}, "dns_config.options": {obeyed, nil, ""},
		"port_mappings": {obeyed, set(func(c *criv1.PodSandboxConfig) {
			c.PortMappings = []*criv1.PortMapping{{HostPort: 1, ContainerPort: 1}}
		}), "those with a host port are published"},
		"labels": {obeyed, nil, ""}, "annotations": {obeyed, nil, "in statuses; never given to an OCI runtime"}, "windows": {refused, nil, "Linux pods alone"},
		"linux.cgroup_parent":             {obeyed, nil, "parent of the containers' groups; it is the caller's to limit and remove"},
		"linux.sysctls":                   {obeyed, set(func(c *criv1.LinuxPodSandboxConfig) { c.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} }), "those of namespaces that the pod has of its own"},
		s + "namespace_options.network":   {obeyed, set(func(o *ns) { o.Network = criv1.NamespaceMode_NODE }), "POD or NODE"},
		s + "namespace_options.pid":       {obeyed, set(func(o *ns) { o.Pid = criv1.NamespaceMode_NODE }), "POD, CONTAINER or NODE"},
		s + "namespace_options.ipc":       {obeyed, set(func(o *ns) { o.Ipc = criv1.NamespaceMode_NODE }), "POD or NODE"},
		s + "namespace_options.target_id": {refused, nil, "a pod has no target"},
		s + "namespace_options.userns_options": {obeyed, set(func(o *ns) {
			o.UsernsOptions = &criv1.UserNamespace{Uids: []*criv1.IDMapping{{Length: 9}}, Gids: []*criv1.IDMapping{{Length: 9}}}
		}), "one range each, from 0"},
		s + "privileged":      {obeyed, nil, "its containers may be"},
		s + "run_as_user":     {checked, set(func(c *sec) { c.RunAsUser = &criv1.Int64Value{Value: 1} }), pause},
		s + "run_as_group":    {checked, set(func(c *sec) { c.RunAsUser, c.RunAsGroup = &criv1.Int64Value{}, &criv1.Int64Value{} }), pause},
		s + "readonly_rootfs": {checked, nil, pause}, s + "supplemental_groups": {checked, nil, pause}, s + "supplemental_groups_policy": {checked, nil, pause},
		s + "seccomp":              {checked, set(func(c *sec) { c.Seccomp = profile(criv1.SecurityProfile_Localhost, "/x") }), pause},
		s + "apparmor":             {checked, set(func(c *sec) { c.Apparmor = profile(criv1.SecurityProfile_Localhost, "x") }), pause},
		s + "seccomp_profile_path": {checked, set(func(c *sec) { c.SeccompProfilePath = "localhost//x" }), pause}, //nolint:staticcheck // deprecated, but known
	}
	for _, part := range []string{"user", "role", "type", "level"} {
		out[s+"selinux_options."+part] = handled{checked, nil, pause}
	}
	for _, part := range []string{"linux.overhead.", "linux.resources."} {
		maps.Copy(out, resourceFields(part, obeyed, "limits of the pod's cgroup"))
		out[part+"oom_score_adj"] = handled{checked, nil, "a process has one, not a group: each container says its own"}
	}
	return out
}

// family is one message, and what a request of it becomes.
type family struct {
	name   string
	base   func() proto.Message
	fields map[string]handled
	become func(proto.Message) (any, error)
}

func families() []family {
	container := func() *criv1.ContainerConfig {
		return &criv1.ContainerConfig{
			Metadata: &criv1.ContainerMetadata{Name: "a"}, Image: &criv1.ImageSpec{Image: "b"},
			Linux: &criv1.LinuxContainerConfig{SecurityContext: &criv1.LinuxContainerSecurityContext{}},
		}
	}
	of := func(c *criv1.ContainerConfig) (any, error) {
		return containerConfig(c, pod.Config{SharePID: true, Privileged: true})
	}
	return []family{
		{
			"PodSandboxConfig",
			func() proto.Message {
				return &criv1.PodSandboxConfig{Metadata: &criv1.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}}
			},
			podFields(),
			func(m proto.Message) (any, error) { return podConfig(m.(*criv1.PodSandboxConfig), "") },
		},
		{
			"ContainerConfig",
			func() proto.Message { return container() },
			containerFields(),
			func(m proto.Message) (any, error) { return of(m.(*criv1.ContainerConfig)) },
		},
		{
			"Mount",
			func() proto.Message { return &criv1.Mount{HostPath: "/x", ContainerPath: "/y"} },
			mountFields(),
			func(m proto.Message) (any, error) {
				c := container()
				c.Mounts = []*criv1.Mount{m.(*criv1.Mount)}
				return of(c)
			},
		},
		{
			"Device",
			func() proto.Message { return &criv1.Device{HostPath: "/dev/x", ContainerPath: "/dev/y"} },
			deviceFields(),
			func(m proto.Message) (any, error) {
				c := container()
				c.Devices = []*criv1.Device{m.(*criv1.Device)}
				return of(c)
			},
		},
		{
			"CheckpointPodRequest",
			func() proto.Message {
				return &criv1.CheckpointPodRequest{PodSandboxId: "a", OutputPath: "/b", ContainerIds: []string{"c"}}
			},
			map[string]handled{
				"pod_sandbox_id": {obeyed, nil, ""}, "container_ids": {obeyed, nil, "running ones of the pod, each once"}, "options": {refused, nil, "there are none"},
				"output_path": {obeyed, set(func(r *criv1.CheckpointPodRequest) { r.OutputPath = "/x" }), "an empty folder; empty again after an error"},
			},
			func(m proto.Message) (any, error) {
				r := m.(*criv1.CheckpointPodRequest)
				return []any{r.PodSandboxId, r.OutputPath, r.ContainerIds}, checkCheckpointPod(r)
			},
		},
		{
			"RestorePodRequest",
			func() proto.Message {
				return &criv1.RestorePodRequest{
					CheckpointPath: "/b", Config: &criv1.PodSandboxConfig{Metadata: &criv1.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}},
					ContainerConfigs: []*criv1.ContainerConfig{container()},
				}
			},
			map[string]handled{
				"checkpoint_path": {obeyed, set(func(r *criv1.RestorePodRequest) { r.CheckpointPath = "/x" }), "a folder of CheckpointPod's; it is only read"},
				"config":          {obeyed, set(func(r *criv1.RestorePodRequest) { r.Config.Metadata.Name = "x" }), "as PodSandboxConfig"},
				"runtime_handler": {obeyed, set(func(r *criv1.RestorePodRequest) { r.RuntimeHandler = runtime.BuiltIn }), "the built-in one alone restores"},
				"options":         {refused, nil, "there are none"},
				"container_configs": {obeyed, set(func(r *criv1.RestorePodRequest) {
					c := container()
					c.Metadata.Name = "x"
					r.ContainerConfigs = append(r.ContainerConfigs, c)
				}), "as ContainerConfig; what the checkpoint has more of, or otherwise, is refused"},
			},
			func(m proto.Message) (any, error) {
				r := m.(*criv1.RestorePodRequest)
				handlers, err := runtime.NewHandlers("", nil)
				if err != nil {
					return nil, err
				}
				s := &runtimeService{o: Options{Handlers: handlers}}
				cfg, ctrs, err := s.restoreConfigs(context.Background(), r)
				return []any{cfg, ctrs, r.CheckpointPath}, err
			},
		},
	}
}

// Every field that the API has, also one of a version to come, is obeyed,
// refused, or checked with a reason.
func TestEveryFieldIsHandled(t *testing.T) {
	for _, f := range families() {
		plain, err := f.become(f.base())
		if err != nil {
			t.Fatal(err)
		}
		known := maps.Clone(f.fields)
		walk(f.base().ProtoReflect().Descriptor(), "", known, func(path string) {
			h, ok := known[path]
			if !ok {
				t.Errorf("%s.%s is a field of the API, and nobody says what becomes of it", f.name, path)
				return
			}
			delete(known, path)
			request := f.base()
			into(request.ProtoReflect(), path, h.value)
			got, err := f.become(request)
			var refusal *fieldError
			last := path[strings.LastIndexByte(path, '.')+1:]
			switch {
			case h.what == refused && (!errors.As(err, &refusal) || !strings.Contains(refusal.field, last)):
				t.Errorf("%s.%s should be refused: %v", f.name, path, err)
			case h.what == refused:
			case err != nil:
				t.Errorf("%s.%s: %v", f.name, path, err)
			case (h.what == obeyed) == cmp.Equal(plain, got):
				t.Errorf("%s.%s is not %s", f.name, path, h.what)
			case h.what == checked && h.how == "":
				t.Errorf("%s.%s has no effect, and nobody says why", f.name, path)
			}
		})
		for path := range known {
			t.Errorf("%s.%s is no field of the API", f.name, path)
		}
	}
}

// walk calls visit for the fields of a message, and for those of the messages in it that have no line of their own.
func walk(d protoreflect.MessageDescriptor, prefix string, whole map[string]handled, visit func(path string)) {
	for i := range d.Fields().Len() {
		field := d.Fields().Get(i)
		path := prefix + string(field.Name())
		_, own := whole[path]
		if field.Message() != nil && !field.IsList() && !field.IsMap() && !own {
			walk(field.Message(), path+".", whole, visit)
			continue
		}
		visit(path)
	}
}

// into sets the field of a path, by value or to something that is not its zero.
func into(m protoreflect.Message, path string, value func(protoreflect.Message)) {
	name, rest, deeper := strings.Cut(path, ".")
	field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
	if deeper {
		into(m.Mutable(field).Message(), rest, value)
		return
	}
	if value != nil {
		value(m)
		return
	}
	switch {
	case field.IsMap():
		m.Mutable(field).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
	case field.IsList() && field.Kind() == protoreflect.StringKind:
		m.Mutable(field).List().Append(protoreflect.ValueOfString("x"))
	case field.IsList():
		m.Mutable(field).List().Append(protoreflect.ValueOfInt64(1))
	case field.Message() != nil:
		m.Mutable(field)
	case field.Kind() == protoreflect.StringKind:
		m.Set(field, protoreflect.ValueOfString("x"))
	case field.Kind() == protoreflect.BoolKind:
		m.Set(field, protoreflect.ValueOfBool(true))
	case field.Kind() == protoreflect.EnumKind:
		m.Set(field, protoreflect.ValueOfEnum(1))
	case field.Kind() == protoreflect.Uint32Kind:
		m.Set(field, protoreflect.ValueOfUint32(1))
	default:
		m.Set(field, protoreflect.ValueOfInt64(1000))
	}
}

// docs/cri-fields.md is made of the table that the test obeys.
func TestFieldsAreDocumented(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Fields of the runtime API\n\nWhat becomes of each field of a request to make, checkpoint or restore a pod, or to make a container. This page is made of the table of a test, which\n" +
		"also fails when the API has a field that is not here. What is wrong in a field is refused with InvalidArgument and its name.\n")
	for _, f := range families() {
		fmt.Fprintf(&b, "\n## %s\n\n| Field | | |\n|---|---|---|\n", f.name)
		for _, path := range slices.Sorted(maps.Keys(f.fields)) {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", path, f.fields[path].what, f.fields[path].how)
		}
	}
	const file = "../docs/cri-fields.md"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(file); err != nil || string(have) != b.String() {
		t.Errorf("%s is not what the table says (%v): renew it with -update", file, err)
	}
}
