package cri

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// unharmed are the fields in which anything may stand, and why.
func unharmed() map[string]string {
	return map[string]string{
		`^Version\.version$`:                           "the API says that it means nothing",
		`^List\w+\.filter\.`:                           "a filter that nothing fits",
		`^ListImages\.filter\.`:                        "as above",
		`^CreateContainer\.sandbox_config\.`:           "whose it is is compared; the sandbox has the rest already",
		`^PullImage\.sandbox_config\.`:                 "nothing of it is used",
		`^CreateContainer\..*userns_options\.`:         "options beside it that say nothing ask for another PID namespace, which is refused first",
		`\.oom_score_adj$`:                             "may be negative",
		`^(Update|Run|Create|Restore)\w+\..*windows\.`: "Windows is refused as a whole",
	}
}

// Each field of each call, in a request that is good without it, with what a
// stranger may try: refused with InvalidArgument and the field's name.
func TestHostileFields(t *testing.T) {
	d := newDaemon(t)
	podID := d.run(t, "web")
	id := d.start(t, podID, simple("main"))
	folder := t.TempDir()
	image := &criv1.ImageSpec{Image: "a"}
	bases := map[string]proto.Message{
		"RunPodSandbox":             &criv1.RunPodSandboxRequest{Config: podRequest("x")},
		"CreateContainer":           &criv1.CreateContainerRequest{PodSandboxId: podID, Config: simple("x")},
		"StopContainer":             &criv1.StopContainerRequest{ContainerId: id},
		"UpdateContainerResources":  &criv1.UpdateContainerResourcesRequest{ContainerId: id, Linux: &criv1.LinuxContainerResources{CpuShares: 5}},
		"UpdatePodSandboxResources": &criv1.UpdatePodSandboxResourcesRequest{PodSandboxId: podID},
		"ExecSync":                  &criv1.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo"}},
		"Exec":                      &criv1.ExecRequest{ContainerId: id, Cmd: []string{"echo"}, Stdout: true},
		"Attach":                    &criv1.AttachRequest{ContainerId: id, Stdout: true},
		"PortForward":               &criv1.PortForwardRequest{PodSandboxId: podID},
		"CheckpointContainer":       &criv1.CheckpointContainerRequest{ContainerId: id, Location: filepath.Join(folder, "c.tar")},
		"CheckpointPod":             &criv1.CheckpointPodRequest{PodSandboxId: podID, OutputPath: folder, ContainerIds: []string{id}},
		"RestorePod":                &criv1.RestorePodRequest{CheckpointPath: folder, Config: podRequest("x"), ContainerConfigs: []*criv1.ContainerConfig{simple("main")}},
		"ImageStatus":               &criv1.ImageStatusRequest{Image: image},
		"PullImage":                 &criv1.PullImageRequest{Image: image, Auth: &criv1.AuthConfig{}},
		"RemoveImage":               &criv1.RemoveImageRequest{Image: image},
	}
	fields := 0
	for _, service := range []protoreflect.FullName{"runtime.v1.RuntimeService", "runtime.v1.ImageService"} {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(service)
		if err != nil {
			t.Fatal(err)
		}
		methods := found.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			if m := methods.Get(i); !m.IsStreamingServer() {
				h := hostile{t, d, m, bases[string(m.Name())]}
				fields += h.walk(string(m.Name()), m.Input(), func(r protoreflect.Message) protoreflect.Message { return r })
			}
		}
	}
	if fields < 200 {
		t.Errorf("only %d fields were tried", fields)
	}
}

// hostile tries one method.
type hostile struct {
	t      *testing.T
	d      *daemon
	method protoreflect.MethodDescriptor
	base   proto.Message
}

// walk tries each field of a message, and those of its messages; at finds it in a request.
func (h hostile) walk(path string, m protoreflect.MessageDescriptor, at func(protoreflect.Message) protoreflect.Message) (tried int) {
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		p := path + "." + string(f.Name())
		for _, bad := range badValues(f) {
			tried++
			h.try(p, f, bad, at)
		}
		if f.Kind() == protoreflect.MessageKind && !f.IsList() && !f.IsMap() {
			tried += h.walk(p, f.Message(), func(r protoreflect.Message) protoreflect.Message { return at(r).Mutable(f).Message() })
		}
	}
	return tried
}

func badValues(f protoreflect.FieldDescriptor) []protoreflect.Value {
	switch {
	case f.IsMap() || f.IsList() && f.Kind() != protoreflect.StringKind:
		return nil // in the tests of single fields
	case f.Kind() == protoreflect.StringKind:
		return []protoreflect.Value{protoreflect.ValueOfString("a\nb\x00/../c;d=e")}
	case f.Kind() == protoreflect.Int64Kind:
		return []protoreflect.Value{protoreflect.ValueOfInt64(-7)}
	case f.Kind() == protoreflect.Int32Kind:
		return []protoreflect.Value{protoreflect.ValueOfInt32(-7)}
	case f.Kind() == protoreflect.EnumKind:
		return []protoreflect.Value{protoreflect.ValueOfEnum(99)}
	}
	return nil
}

func (h hostile) try(path string, f protoreflect.FieldDescriptor, bad protoreflect.Value, at func(protoreflect.Message) protoreflect.Message) {
	for rule := range unharmed() {
		if regexp.MustCompile(rule).MatchString(path) {
			return
		}
	}
	in, err := protoregistry.GlobalTypes.FindMessageByName(h.method.Input().FullName())
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := protoregistry.GlobalTypes.FindMessageByName(h.method.Output().FullName())
	if err != nil {
		h.t.Fatal(err)
	}
	req := in.New()
	if h.base != nil {
		req = proto.Clone(h.base).ProtoReflect()
	}
	if f.IsList() {
		at(req).Mutable(f).List().Append(bad)
	} else {
		at(req).Set(f, bad)
	}
	call := "/" + string(h.method.Parent().FullName()) + "/" + string(h.method.Name())
	err = h.d.conn.Invoke(h.t.Context(), call, req.Interface(), out.New().Interface())
	said := status.Convert(err).Message()
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(said, fieldName(path)) || strings.ContainsAny(said, "\n\x00") {
		h.t.Errorf("%s = %q: %v, %q; want InvalidArgument with the field's name", path, bad.String(), status.Code(err), said)
	}
}

// fieldName is what a refusal calls a field.
func fieldName(path string) string {
	path = strings.TrimSuffix(path, ".value")
	if name, old := map[string]string{
		"CreateContainer.config.linux.security_context.apparmor_profile":     "apparmor.profile",
		"CreateContainer.config.linux.security_context.seccomp_profile_path": "seccomp.profile",
	}[path]; old {
		return name
	}
	return path[strings.LastIndex(path, ".")+1:]
}
