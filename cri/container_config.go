package cri

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// containerConfig turns a request for a container of the pod p into one of
// ours. It is a pure function: what only the host can tell (whether a path or
// a profile is there) is settled by hostFacts.settle afterwards. Every field is
// obeyed or refused by its name.
func containerConfig(c *criv1.ContainerConfig, p pod.Config) (pod.ContainerConfig, error) {
	if c == nil {
		return pod.ContainerConfig{}, invalid("config", "is missing")
	}
	if c.Windows != nil {
		return pod.ContainerConfig{}, invalid("config.windows", "this host runs Linux containers only")
	}
	cfg := pod.ContainerConfig{
		Name: c.Metadata.GetName(), Attempt: c.Metadata.GetAttempt(),
		Image: c.Image.GetImage(), ImageName: c.Image.GetUserSpecifiedImage(),
		Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir, Labels: c.Labels, Annotations: c.Annotations,
		LogPath: c.LogPath, Stdin: c.Stdin, StdinOnce: c.StdinOnce, Terminal: c.Tty,
	}
	for _, step := range []func() error{
		func() error { return checkContainerNames(c) },
		func() error { return containerProcess(&cfg, c) },
		func() (err error) { cfg.Mounts, err = mounts(c.Mounts, p); return err },
		func() (err error) { cfg.Devices, err = devices(c.Devices); return err },
		func() (err error) { cfg.CDIDevices, err = cdiDevices(c); return err },
		func() (err error) {
			cfg.Resources, err = resources(c.Linux.GetResources())
			return within("linux.resources", err)
		},
		func() error { return within("linux.security_context", security(&cfg, c.Linux.GetSecurityContext(), p)) },
	} {
		if err := step(); err != nil {
			return pod.ContainerConfig{}, within("config", err)
		}
	}
	return cfg, nil
}

func checkContainerNames(c *criv1.ContainerConfig) error {
	if c.Metadata == nil {
		return invalid("metadata", "is missing")
	}
	if err := checkName("metadata.name", c.Metadata.Name); err != nil {
		return err
	}
	if err := checkMap("labels", c.Labels); err != nil {
		return err
	}
	if err := checkMap("annotations", c.Annotations); err != nil {
		return err
	}
	if err := checkImage(c.Image); err != nil {
		return err
	}
	if err := checkPath("log_path", c.LogPath); err != nil {
		return err
	}
	if path.IsAbs(c.LogPath) || c.LogPath != "" && path.Clean(c.LogPath) == "." {
		return invalid("log_path", "%q is not a path below the pod's log_directory", c.LogPath)
	}
	return nil
}

// checkImage wants a reference that could be one; the store knows the rest.
func checkImage(s *criv1.ImageSpec) error {
	switch {
	case s.GetImage() == "":
		return invalid("image.image", "is empty")
	case len(s.Image) > maxPath || !printable(s.Image):
		return invalid("image.image", "%.80q: printable characters without a space are allowed", s.Image)
	case s.RuntimeHandler != "" && !named(s.RuntimeHandler, "._-", maxName):
		return invalid("image.runtime_handler", "%.80q is no name of a handler", s.RuntimeHandler)
	}
	for name, ref := range map[string]string{"image_ref": s.ImageRef, "user_specified_image": s.UserSpecifiedImage} {
		if len(ref) > maxPath || !printable(ref) {
			return invalid("image."+name, "%.80q: printable characters without a space are allowed", ref)
		}
	}
	return nil
}

func containerProcess(cfg *pod.ContainerConfig, c *criv1.ContainerConfig) error {
	for name, words := range map[string][]string{"command": c.Command, "args": c.Args} {
		if err := checkTexts(name, words); err != nil {
			return err
		}
	}
	if c.WorkingDir != "" {
		if err := checkText("working_dir", c.WorkingDir); err != nil {
			return err
		}
		if !path.IsAbs(c.WorkingDir) {
			return invalid("working_dir", "%q is not an absolute path", c.WorkingDir)
		}
	}
	for i, e := range c.Envs {
		if e.GetKey() == "" || strings.ContainsAny(e.GetKey(), "=\x00") {
			return invalid(fmt.Sprintf("envs[%d].key", i), "%.80q: it is not empty and has no '=' and no NUL", e.GetKey())
		}
		if err := checkText(fmt.Sprintf("envs[%d].key", i), e.Key); err != nil {
			return err
		}
		if err := checkText(fmt.Sprintf("envs[%d].value", i), string(e.GetValue())); err != nil {
			return err
		}
		cfg.Env = append(cfg.Env, pod.EnvVar{Name: e.Key, Value: string(e.GetValue())})
	}
	var err error
	cfg.StopSignal, err = signalName(c.StopSignal)
	return err
}

// signalName is "SIGTERM", "SIGRTMIN+3", or "" for the image's.
func signalName(s criv1.Signal) (string, error) {
	if s == criv1.Signal_SIGNAL_RUNTIME_DEFAULT {
		return "", nil
	}
	name, ok := criv1.Signal_name[int32(s)]
	if !ok {
		return "", invalid("stop_signal", "%d is unknown", s)
	}
	return strings.NewReplacer("SIGNAL_", "", "MINPLUS", "MIN+", "MAXMINUS", "MAX-").Replace(name), nil
}

// signalValue is the way back; what it does not know is the default.
func signalValue(name string) criv1.Signal {
	name = strings.ToUpper(name)
	if name == "" {
		return criv1.Signal_SIGNAL_SIGTERM
	}
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	name = strings.NewReplacer("MIN+", "MINPLUS", "MAX-", "MAXMINUS").Replace(name)
	return criv1.Signal(criv1.Signal_value["SIGNAL_"+name])
}

func devices(all []*criv1.Device) ([]runtime.Device, error) {
	var out []runtime.Device
	for i, d := range all {
		field := fmt.Sprintf("devices[%d]", i)
		if err := checkAbs(field+".host_path", d.GetHostPath()); err != nil {
			return nil, err
		}
		if err := checkAbs(field+".container_path", d.GetContainerPath()); err != nil {
			return nil, err
		}
		perm := d.Permissions
		if perm == "" {
			perm = "rwm"
		}
		if len(perm) > 3 || strings.Trim(perm, "rwm") != "" {
			return nil, invalid(field+".permissions", "%.80q: letters of rwm are allowed", perm)
		}
		out = append(out, runtime.Device{HostPath: d.HostPath, ContainerPath: d.ContainerPath, Permissions: perm})
	}
	return out, nil
}

// cdiDevices are those of the field and those of the annotations that device plugins write.
func cdiDevices(c *criv1.ContainerConfig) ([]string, error) {
	var given []string
	for i, d := range c.CDIDevices {
		if _, err := pod.CDIDevices([]string{d.GetName()}, nil); err != nil {
			return nil, invalid(fmt.Sprintf("CDI_devices[%d].name", i), "%v", err)
		}
		given = append(given, d.Name)
	}
	all, err := pod.CDIDevices(given, c.Annotations)
	if err != nil {
		return nil, invalid("annotations", "%v", err)
	}
	return all, nil
}

// mounts translates mounts.
func mounts(all []*criv1.Mount, p pod.Config) ([]runtime.Mount, error) {
	var out []runtime.Mount
	for i, m := range all {
		mt, err := mount(m)
		if err == nil {
			err = mountMaps(&mt, m, p)
		}
		if err != nil {
			return nil, within(fmt.Sprintf("mounts[%d]", i), err)
		}
		out = append(out, mt)
	}
	return out, nil
}

func mount(m *criv1.Mount) (runtime.Mount, error) {
	if err := checkMount(m); err != nil {
		return runtime.Mount{}, err
	}
	out := runtime.Mount{
		Source: m.HostPath, Destination: path.Clean(m.ContainerPath), Type: "bind",
		Readonly: m.Readonly, RecursiveRO: m.RecursiveReadOnly, Options: m.MountOptions,
	}
	if m.Image != nil {
		out.Source, out.Image, out.Readonly = m.ImageSubPath, m.Image.Image, true
	}
	switch m.Propagation {
	case criv1.MountPropagation_PROPAGATION_PRIVATE:
		out.Propagation = "rprivate"
	case criv1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		out.Propagation = "rslave"
	case criv1.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		out.Propagation = "rshared"
	default:
		return runtime.Mount{}, invalid("propagation", "%d is unknown", m.Propagation)
	}
	if m.RecursiveReadOnly && (!m.Readonly || m.Propagation != criv1.MountPropagation_PROPAGATION_PRIVATE) {
		return runtime.Mount{}, invalid("recursive_read_only", "needs readonly and propagation PRIVATE")
	}
	return out, nil
}

// mountMaps takes the ids of a mount. An image has those of the pod's user namespace anyway.
func mountMaps(out *runtime.Mount, m *criv1.Mount, p pod.Config) error {
	uids, err := idMaps("uidMappings", m.UidMappings)
	if err != nil {
		return err
	}
	gids, err := idMaps("gidMappings", m.GidMappings)
	switch {
	case err != nil:
		return err
	case (len(uids) == 0) != (len(gids) == 0):
		return invalid("gidMappings", "goes with uidMappings, and the other way round")
	case m.Image == nil:
		out.UIDMaps, out.GIDMaps = uids, gids
	case len(uids) > 0 && (!slices.Equal(uids, p.UIDMaps) || !slices.Equal(gids, p.GIDMaps)):
		return invalid("uidMappings", "an image is mounted with the mappings of the pod's user namespace, these are others")
	}
	return nil
}

// maxMaps is how many mappings the kernel takes.
const maxMaps = 340

// idMaps wants ranges that do not overlap, on either side.
func idMaps(field string, all []*criv1.IDMapping) ([]runtime.IDMap, error) {
	if len(all) > maxMaps {
		return nil, invalid(field, "has %d mappings: the kernel takes %d", len(all), maxMaps)
	}
	var out []runtime.IDMap
	for i, m := range all {
		at := fmt.Sprintf("%s[%d]", field, i)
		one := runtime.IDMap{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()}
		if one.Size == 0 || uint64(one.ContainerID)+uint64(one.Size) > 1<<32-1 || uint64(one.HostID)+uint64(one.Size) > 1<<32-1 {
			return nil, invalid(at, "container %d, host %d, length %d: the length is above 0, all ids are below 2^32-1", one.ContainerID, one.HostID, one.Size)
		}
		if slices.ContainsFunc(out, func(o runtime.IDMap) bool {
			return overlap(o.ContainerID, o.Size, one.ContainerID, one.Size) || overlap(o.HostID, o.Size, one.HostID, one.Size)
		}) {
			return nil, invalid(at, "overlaps another one")
		}
		out = append(out, one)
	}
	return out, nil
}

func overlap(a, sizeA, b, sizeB uint32) bool {
	return uint64(a) < uint64(b)+uint64(sizeB) && uint64(b) < uint64(a)+uint64(sizeA)
}

// checkSource wants a host path or an image.
func checkSource(m *criv1.Mount) error {
	sub := m.GetImageSubPath()
	switch {
	case m.GetImage() == nil && sub != "":
		return invalid("image_sub_path", "needs image")
	case m.GetImage() == nil:
		return checkAbs("host_path", m.GetHostPath())
	}
	if err := checkImage(m.Image); err != nil {
		return err
	}
	switch {
	case m.GetHostPath() != "":
		return invalid("host_path", "excludes image: leave one of them out")
	case sub != "" && !filepath.IsLocal(sub):
		return invalid("image_sub_path", "%.80q is not a path below the image's root: write it without .. and a leading slash", sub)
	}
	return nil
}

func checkMount(m *criv1.Mount) error {
	if err := checkAbs("container_path", m.GetContainerPath()); err != nil {
		return err
	}
	if path.Clean(m.ContainerPath) == "/" {
		return invalid("container_path", "cannot be the root")
	}
	if err := checkSource(m); err != nil {
		return err
	}
	for _, o := range m.MountOptions {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return invalid("mount_options", "%.80q: noexec, nodev and nosuid are allowed", o)
		}
	}
	return nil
}
