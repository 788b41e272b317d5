package cri

import (
	"errors"
	"path"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// specOf goes the whole way from a request for a container to what a runtime
// gets, but for what the host is asked: the image, the user, profiles.
func specOf(c *criv1.ContainerConfig, p pod.Config) (*specs.Spec, error) {
	cfg, err := containerConfig(c, p)
	if err != nil {
		return nil, err
	}
	env := make([]string, 0, len(cfg.Env))
	for _, e := range cfg.Env {
		env = append(env, e.Name+"="+e.Value)
	}
	args := append(slices.Clone(cfg.Command), cfg.Args...)
	if len(args) == 0 || args[0] == "" {
		args = append([]string{"sh"}, args...)
	}
	cfg.Mounts = slices.DeleteFunc(cfg.Mounts, func(m runtime.Mount) bool { return m.Image != "" })
	sec := cfg.Security
	sec.Seccomp = strings.TrimPrefix(sec.Seccomp, localhost) // a file's content is missing here
	if sec.Seccomp != runtimeDefault {
		sec.Seccomp = ""
	}
	return runtime.Spec(runtime.ContainerConfig{
		ID: "id", PodID: "pod", Pod: runtime.PodState{ID: "pod", Pid: 7, Spec: runtime.PodSpec{UIDMaps: p.UIDMaps, GIDMaps: p.GIDMaps, SharePID: p.SharePID}},
		Rootfs: "/rootfs", ReadonlyRootfs: cfg.ReadonlyRootfs, Args: args, Env: env, Cwd: cfg.WorkingDir, Terminal: cfg.Terminal,
		Mounts: cfg.Mounts, CgroupPath: "/parent/pod/id", Resources: cfg.Resources, Security: sec, HostPID: cfg.HostPID, OwnPID: cfg.OwnPID,
		Annotations: cfg.Annotations, Rlimits: cfg.Rlimits,
	})
}

// FuzzContainerRequest feeds requests as they come over the wire. Each is refused
// with the name of a field, or makes a spec that cannot reach beyond what was asked for.
func FuzzContainerRequest(f *testing.F) {
	full := containerRequest()
	full.Linux.SecurityContext.NamespaceOptions = nil
	for _, c := range []*criv1.ContainerConfig{
		full,
		{Metadata: &criv1.ContainerMetadata{Name: "a"}, Image: &criv1.ImageSpec{Image: "b"}},
		{Metadata: &criv1.ContainerMetadata{Name: "../a;b=c\n"}, Image: &criv1.ImageSpec{Image: "b\x00"}},
		{Metadata: &criv1.ContainerMetadata{Name: "a"}, Image: &criv1.ImageSpec{Image: "b"}, Mounts: []*criv1.Mount{{
			HostPath: "/a", ContainerPath: "/b//c/.", UidMappings: []*criv1.IDMapping{{HostId: 5, Length: 1}}, GidMappings: []*criv1.IDMapping{{HostId: 5, Length: 1}},
		}}},
	} {
		wire, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, true)
		f.Add(wire, false)
	}
	f.Fuzz(func(t *testing.T, wire []byte, privileged bool) {
		var c criv1.ContainerConfig
		if proto.Unmarshal(wire, &c) != nil {
			return
		}
		spec, err := specOf(&c, pod.Config{SharePID: true, Privileged: privileged})
		var refusal *fieldError
		switch {
		case errors.As(err, &refusal):
			if !strings.HasPrefix(refusal.field, "config") || !errors.Is(err, pod.ErrInvalid) || !utf8.ValidString(err.Error()) {
				t.Errorf("refusal %q", err)
			}
		case err != nil:
			t.Errorf("what the border let through is refused behind it: %v", err)
		default:
			checkSpec(t, spec, privileged)
		}
	})
}

// checkSpec holds for whatever a request says.
func checkSpec(t *testing.T, spec *specs.Spec, privileged bool) {
	t.Helper()
	if spec.Linux.CgroupsPath != "/parent/pod/id" || spec.Root.Path != "/rootfs" || spec.Hooks != nil {
		t.Errorf("cgroup %q, root %q, hooks %v", spec.Linux.CgroupsPath, spec.Root.Path, spec.Hooks)
	}
	for _, m := range spec.Mounts {
		if path.Clean(m.Destination) != m.Destination || m.Destination == "/" || strings.ContainsAny(m.Destination+m.Source, "\x00\n") {
			t.Errorf("mount of %q at %q", m.Source, m.Destination)
		}
		if m.Type == "bind" && (slices.Contains(m.Options, "suid") || slices.Contains(m.Options, "dev") || len(m.UIDMappings) != len(m.GIDMappings) && (len(m.UIDMappings) == 0 || len(m.GIDMappings) == 0)) {
			t.Errorf("options %q of the mount at %s", m.Options, m.Destination)
		}
	}
	for _, s := range slices.Concat(spec.Process.Args, spec.Process.Env) {
		if strings.ContainsRune(s, 0) {
			t.Errorf("a NUL in %q", s)
		}
	}
	all := slices.ContainsFunc(spec.Linux.Resources.Devices, func(d specs.LinuxDeviceCgroup) bool { return d.Allow && d.Major == nil && d.Minor == nil })
	asked := spec.Linux.Seccomp == nil && len(spec.Linux.MaskedPaths) == 0
	if all && (!privileged || !asked) {
		t.Errorf("all devices are allowed: in a privileged pod %v", privileged)
	}
	if m := spec.Linux.Resources.Memory; m != nil && (m.Limit != nil && *m.Limit < 0 || m.Swap != nil && *m.Swap < -1) {
		t.Errorf("memory %+v", m)
	}
}

// FuzzPodRequest does the same for pods.
func FuzzPodRequest(f *testing.F) {
	for _, c := range []*criv1.PodSandboxConfig{
		podRequest("web"), podRequest("a;b"), {},
	} {
		wire, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var c criv1.PodSandboxConfig
		if proto.Unmarshal(wire, &c) != nil {
			return
		}
		cfg, err := podConfig(&c, "")
		var refusal *fieldError
		if err != nil {
			if !errors.As(err, &refusal) || !strings.HasPrefix(refusal.field, "config") || !errors.Is(err, pod.ErrInvalid) {
				t.Errorf("refusal %v", err)
			}
			return
		}
		for _, s := range []string{cfg.Name, cfg.Namespace, cfg.UID} { // they travel in CNI_ARGS and file names
			if s == "" || len(s) > maxName || strings.ContainsAny(s, ";=/\n\x00 ") || strings.Contains(s, "..") {
				t.Errorf("identity %q", s)
			}
		}
		for name, value := range cfg.Sysctls {
			if sysctlNamespace(name) == "" || strings.ContainsAny(name, "/\n\x00") || strings.ContainsAny(value, "\n\x00") {
				t.Errorf("sysctl %q = %q", name, value)
			}
		}
		if strings.Contains(cfg.CgroupParent, "..") || strings.ContainsAny(cfg.LogDirectory+cfg.CgroupParent+cfg.Hostname, "\x00\n") {
			t.Errorf("cgroup parent %q, logs in %q, name %q", cfg.CgroupParent, cfg.LogDirectory, cfg.Hostname)
		}
	})
}
