package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// The cgroup drivers: who makes the control groups of containers.
const (
	Cgroupfs = "cgroupfs" // we do, as folders
	Systemd  = "systemd"  // systemd does, as scopes in slices
)

const (
	cgroupRoot  = "/sys/fs/cgroup"
	sliceSuffix = ".slice"
	// scopePrefix begins the names of containers' scopes: pausa-ID.scope.
	scopePrefix = "pausa"
)

// Slice is the name of the systemd slice that stands for a path: slices say by
// their names where they are, "/a/b-c" is a-b_c.slice in a.slice.
func Slice(group string) string {
	if strings.HasSuffix(group, sliceSuffix) {
		return path.Base(group)
	}
	escaped := strings.ReplaceAll(strings.Trim(group, "/"), "-", "_")
	return strings.ReplaceAll(escaped, "/", "-") + sliceSuffix
}

// slicePath is where systemd puts a slice, absolute from the cgroup root.
func slicePath(slice string) string {
	out, name := "/", ""
	for part := range strings.SplitSeq(strings.TrimSuffix(slice, sliceSuffix), "-") {
		name = strings.TrimPrefix(name+"-"+part, "-")
		out = path.Join(out, name+sliceSuffix)
	}
	return out
}

// checkCgroupParent wants a clean absolute path, or with the systemd driver a
// slice: its name, or its whole path, as kubelets give it.
func (m *Manager) checkCgroupParent(parent string) error {
	slice := strings.HasSuffix(parent, sliceSuffix)
	switch {
	case parent == "":
		return nil
	case strings.ContainsAny(parent, "\x00\n:"):
		return fmt.Errorf("%w: cgroup parent %q: want a name without ':' and control characters", ErrInvalid, parent)
	case m.opts.CgroupDriver != Systemd && slice:
		return fmt.Errorf("%w: cgroup parent %q is a systemd slice, but the cgroup driver here is %s: set cgroup.driver to systemd, or the caller's (a kubelet's cgroupDriver) to cgroupfs", ErrInvalid, parent, Cgroupfs)
	case m.opts.CgroupDriver != Systemd && !cleanAbs(parent):
		return fmt.Errorf("%w: cgroup parent %q: want a clean absolute path", ErrInvalid, parent)
	case m.opts.CgroupDriver != Systemd:
		return nil
	case !slice:
		return fmt.Errorf("%w: cgroup parent %q is no systemd slice (as kubepods-burstable-podUID.slice), but the cgroup driver here is systemd: set cgroup.driver to cgroupfs, or the caller's (a kubelet's cgroupDriver) to systemd", ErrInvalid, parent)
	}
	name := path.Base(parent)
	for part := range strings.SplitSeq(strings.TrimSuffix(name, sliceSuffix), "-") {
		if part == "" || len(name) > 255 {
			return fmt.Errorf("%w: cgroup parent %q: want a slice with a name between its dashes, of 255 characters at most", ErrInvalid, parent)
		}
	}
	if parent != name && parent != slicePath(name) {
		return fmt.Errorf("%w: cgroup parent %q: systemd has the slice %s at %s", ErrInvalid, parent, name, slicePath(name))
	}
	return nil
}

// newPodGroup is the parent of the groups of a pod's containers: a slice's name with the systemd driver.
func (m *Manager) newPodGroup(id string, cfg *Config) string {
	group := cfg.CgroupParent
	if group == "" {
		group = filepath.Join(m.opts.CgroupParent, "pod"+id)
	}
	if m.opts.CgroupDriver == Systemd {
		return Slice(group)
	}
	return group
}

// podGroup is what newPodGroup said when the pod was made, also under another driver.
func (m *Manager) podGroup(p *sandbox) string {
	if p.rec.Cgroup == "" { // a record from before they held it
		return m.newPodGroup(p.rec.ID, &p.rec.Config)
	}
	return p.rec.Cgroup
}

// groupPath is a pod's group as a path from the cgroup root.
func groupPath(group string) string {
	if strings.HasSuffix(group, sliceSuffix) {
		return slicePath(group)
	}
	return group
}

// containerGroup is the form that libcontainer takes: a path, or "slice:prefix:name".
func containerGroup(podGroup, id string) string {
	if strings.HasSuffix(podGroup, sliceSuffix) {
		return strings.Join([]string{podGroup, scopePrefix, id}, ":")
	}
	return filepath.Join(podGroup, id)
}

// removePodGroup removes the group that the keeper, or systemd, made on the way to the
// containers' groups. A parent given by the caller is the caller's.
func (m *Manager) removePodGroup(ctx context.Context, p *sandbox) error {
	if p.rec.Config.CgroupParent != "" {
		return nil
	}
	group := m.podGroup(p)
	if strings.HasSuffix(group, sliceSuffix) {
		rt, err := m.runtime()
		if err != nil {
			return err
		}
		return keeperErr(rt.RemoveSlice(ctx, group))
	}
	dirs, err := filepath.Glob(filepath.Join(cgroupRoot, "*", group))
	errs := []error{err}
	for _, dir := range append(dirs, filepath.Join(cgroupRoot, group)) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}
