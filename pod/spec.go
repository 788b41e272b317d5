package pod

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/runtime"
)

// defaultPath is the PATH of an image that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// containerSpec mounts the image and writes the complete request to the keeper; c.op is held.
func (m *Manager) containerSpec(ctx context.Context, c *container, img images.Image) (runtime.ContainerSpec, error) {
	none := runtime.ContainerSpec{}
	cfg, podCfg := &c.rec.Config, &c.pod.rec.Config
	args, err := commandLine(cfg, &img.Config.Config)
	if err != nil {
		return none, err
	}
	if cfg.Security.Privileged && !podCfg.Privileged {
		return none, fmt.Errorf("%w: privileged container in a pod that is not privileged", ErrInvalid)
	}
	rootfs, err := m.opts.Images.Mount(ctx, c.rec.ID, img.ID, images.MountOptions{UIDMaps: imageMaps(podCfg.UIDMaps), GIDMaps: imageMaps(podCfg.GIDMaps)})
	if err != nil {
		return none, fmt.Errorf("mount image: %w", err)
	}
	user, err := resolveUser(rootfs, cfg, img.Config.Config.User)
	if err != nil {
		return none, err
	}
	m.setContainer(c, func() { c.rec.User = user })
	target, err := m.targetPID(c)
	if err != nil {
		return none, err
	}
	mounts, err := m.imageVolumes(ctx, c, m.mounts(c))
	if err != nil {
		return none, err
	}
	devices, err := devicesOf(cfg, podCfg)
	if err != nil {
		return none, err
	}
	security := cfg.Security
	if security.AppArmor, err = m.appArmor(cfg); err != nil {
		return none, err
	}
	spec, err := runtime.Spec(runtime.ContainerConfig{
		ID: c.rec.ID, PodID: c.rec.PodID,
		Pod:    runtime.PodState{ID: c.rec.PodID, Pid: c.pod.pid, Spec: podCfg.spec(c.rec.PodID)},
		Rootfs: rootfs, ReadonlyRootfs: cfg.ReadonlyRootfs,
		Args: args, Env: environment(cfg, podCfg, &img.Config.Config), Cwd: workingDir(cfg, &img.Config.Config), Terminal: cfg.Terminal,
		UID: user.UID, GID: user.GID, AdditionalGIDs: user.AdditionalGIDs,
		Mounts: mounts, Devices: devices,
		CgroupPath: c.rec.CgroupPath, Resources: cfg.Resources, Security: security,
		HostPID: cfg.HostPID || podCfg.HostPID, OwnPID: cfg.OwnPID, TargetPID: target,
		HostNetwork: podCfg.HostNetwork, HostIPC: podCfg.HostIPC,
		Annotations: cfg.Annotations, Rlimits: cfg.Rlimits,
	})
	if err != nil {
		return none, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := injectCDI(spec, cfg.CDIDevices, m.opts.CDIDirs); err != nil {
		return none, err
	}
	handler, err := m.handler(c.pod.rec.Runtime)
	if err == nil {
		err = checkHandler(handler, spec)
	}
	if err != nil {
		return none, err
	}
	return runtime.ContainerSpec{
		ID: c.rec.ID, PodID: c.rec.PodID, Spec: spec, Program: handler.Program, LogPath: c.rec.LogPath, Stdin: cfg.Stdin, StdinOnce: cfg.StdinOnce,
	}, nil
}

func imageMaps(maps []runtime.IDMap) []images.IDMap {
	var out []images.IDMap
	for _, m := range maps {
		out = append(out, images.IDMap{Container: m.ContainerID, Host: m.HostID, Size: m.Size})
	}
	return out
}

// commandLine merges as Kubernetes does: command replaces the image's entrypoint
// and, with it, its cmd; args replaces the cmd alone.
func commandLine(cfg *ContainerConfig, img *ocispec.ImageConfig) ([]string, error) {
	cmd, args := cfg.Command, cfg.Args
	if len(cmd) == 0 {
		cmd = img.Entrypoint
		if len(args) == 0 {
			args = img.Cmd
		}
	}
	line := slices.Concat(cmd, args)
	if len(line) == 0 || line[0] == "" {
		return nil, fmt.Errorf("%w: no command: the image %s has neither entrypoint nor cmd; set command or args", ErrInvalid, cfg.Image)
	}
	return line, nil
}

// environment is the image's, then the container's own on top.
func environment(cfg *ContainerConfig, pod *Config, img *ocispec.ImageConfig) []string {
	var out []string
	at := map[string]int{}
	add := func(name, value string) {
		if i, ok := at[name]; ok {
			out[i] = name + "=" + value
			return
		}
		at[name] = len(out)
		out = append(out, name+"="+value)
	}
	add("PATH", defaultPath)
	if pod.Hostname != "" {
		add("HOSTNAME", pod.Hostname)
	}
	if cfg.Terminal {
		add("TERM", "xterm")
	}
	for _, e := range img.Env {
		if name, value, ok := strings.Cut(e, "="); ok && name != "" {
			add(name, value)
		}
	}
	for _, e := range cfg.Env {
		add(e.Name, e.Value)
	}
	return out
}

func workingDir(cfg *ContainerConfig, img *ocispec.ImageConfig) string {
	for _, d := range []string{cfg.WorkingDir, img.WorkingDir} {
		if d != "" {
			return filepath.Clean("/" + d)
		}
	}
	return "/"
}

// resolveUser turns the request's user, else the image's, into numbers.
func resolveUser(rootfs string, cfg *ContainerConfig, imageUser string) (images.User, error) {
	name := cfg.User
	if name == "" {
		name = imageUser
	}
	u, err := images.ResolveUser(rootfs, name)
	if err != nil {
		return images.User{}, fmt.Errorf("%w: user %q: %w", ErrInvalid, name, err)
	}
	if cfg.RunAsNonRoot && u.UID == 0 {
		return images.User{}, fmt.Errorf("%w: runAsNonRoot is set and user %q is root; set runAsUser to another one", ErrInvalid, name)
	}
	if cfg.Group != nil {
		if *cfg.Group < 0 || *cfg.Group > maxID {
			return images.User{}, fmt.Errorf("%w: group %d: want 0 to %d", ErrInvalid, *cfg.Group, maxID)
		}
		u.GID = uint32(*cfg.Group)
	}
	if cfg.StrictGroups {
		u.AdditionalGIDs = nil
	}
	for _, g := range cfg.AdditionalGIDs {
		if g < 0 || g > maxID {
			return images.User{}, fmt.Errorf("%w: supplemental group %d: want 0 to %d", ErrInvalid, g, maxID)
		}
		if !slices.Contains(u.AdditionalGIDs, uint32(g)) {
			u.AdditionalGIDs = append(u.AdditionalGIDs, uint32(g))
		}
	}
	// The primary group is among the process's groups, as with login and every peer.
	if !slices.Contains(u.AdditionalGIDs, u.GID) {
		u.AdditionalGIDs = append([]uint32{u.GID}, u.AdditionalGIDs...)
	}
	return u, nil
}

// maxID is the highest user or group id that the kernel's signed interfaces take.
const maxID = 1<<31 - 1

// mounts are the pod's files, less those whose place the container takes itself, then its own.
func (m *Manager) mounts(c *container) []runtime.Mount {
	cfg, dir := &c.rec.Config, m.podDir(c.rec.PodID)
	taken := map[string]bool{}
	for _, mt := range cfg.Mounts {
		taken[filepath.Clean(mt.Destination)] = true
	}
	var out []runtime.Mount
	add := func(mt runtime.Mount) {
		if !taken[mt.Destination] {
			out = append(out, mt)
		}
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		add(runtime.Mount{Source: filepath.Join(dir, name), Destination: "/etc/" + name, Readonly: cfg.ReadonlyRootfs})
	}
	shm := filepath.Join(dir, "shm")
	if c.pod.rec.Config.HostIPC {
		shm = "/dev/shm"
	}
	// A bind mount that says "rw" has none of its source's flags but those it names.
	add(runtime.Mount{Source: shm, Destination: "/dev/shm", Options: []string{"nosuid", "nodev", "noexec"}})
	return append(out, cfg.Mounts...)
}

// devicesOf are the container's, and the host's for a privileged one. A user
// namespace may make none of its own.
func devicesOf(cfg *ContainerConfig, podCfg *Config) ([]runtime.Device, error) {
	if !cfg.Security.Privileged || len(podCfg.UIDMaps) > 0 {
		return cfg.Devices, nil
	}
	host, err := runtime.HostDevices("/dev")
	if err != nil {
		return nil, fmt.Errorf("list the host's devices: %w", err)
	}
	host = slices.DeleteFunc(host, func(h runtime.Device) bool {
		return slices.ContainsFunc(cfg.Devices, func(d runtime.Device) bool { return filepath.Clean(d.ContainerPath) == h.ContainerPath })
	})
	return append(host, cfg.Devices...), nil
}

// appArmor is the profile that confines the container, "" for none.
func (m *Manager) appArmor(cfg *ContainerConfig) (string, error) {
	if m.opts.AppArmor == nil || cfg.Security.Privileged {
		return "", nil
	}
	profile, err := m.opts.AppArmor(cfg.Security.AppArmor)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return profile, nil
}

// targetPID is the init of the container whose PID namespace c joins, 0 for none.
func (m *Manager) targetPID(c *container) (int, error) {
	id := c.rec.Config.TargetContainer
	if id == "" {
		return 0, nil
	}
	t, err := m.Container(id)
	if err != nil {
		return 0, errors.Join(ErrInvalid, fmt.Errorf("target of the PID namespace: %w", err))
	}
	if t.PodID != c.rec.PodID || t.Pid == 0 {
		return 0, fmt.Errorf("%w: target %s of the PID namespace does not run in this pod", ErrInvalid, id)
	}
	return t.Pid, nil
}
