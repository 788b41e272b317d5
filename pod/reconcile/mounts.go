package reconcile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// file is one file of a configMap or secret volume.
type file struct {
	content []byte
	mode    fs.FileMode
	user    *int64 // nil: root
}

// writeFiles makes a volume show exactly these files, all of them changing at
// one moment: they are written to a new folder, to which the link "..data" is
// switched; each name at the top is a link through "..data".
func writeFiles(dir string, files map[string]file, group *int64) error {
	old, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && sameFiles(filepath.Join(dir, old), files) {
		return nil
	}
	fresh, err := os.MkdirTemp(dir, "..data_"+time.Now().UTC().Format("20060102T150405")+"_")
	if err != nil {
		return err
	}
	if err := fill(fresh, files, group); err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	tmp := filepath.Join(dir, "..data_tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(fresh), tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
		return err
	}
	return errors.Join(linkNames(dir, files), dropOthers(dir, filepath.Base(fresh)))
}

func fill(dir string, files map[string]file, group *int64) error {
	if err := own(dir, 0o755, group); err != nil {
		return err
	}
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.content, 0o600); err != nil {
			return err
		}
		mode := f.mode
		if group != nil {
			mode |= 0o040 // the group is there to read
		}
		if f.user != nil {
			if err := os.Chown(path, int(*f.user), -1); err != nil {
				return err
			}
		}
		if err := own(path, mode, group); err != nil {
			return err
		}
	}
	return nil
}

func own(path string, mode fs.FileMode, group *int64) error {
	if group != nil {
		if err := os.Chown(path, -1, int(*group)); err != nil {
			return err
		}
	}
	return os.Chmod(path, mode)
}

func sameFiles(dir string, files map[string]file) bool {
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		have, err := os.ReadFile(path)
		if want, ok := files[rel]; err != nil || !ok || !bytes.Equal(have, want.content) {
			return errors.Join(err, fs.ErrInvalid)
		}
		return nil
	})
	return err == nil && n == len(files)
}

// linkNames makes the links at the top and removes those of files that are gone.
func linkNames(dir string, files map[string]file) error {
	want := map[string]bool{}
	var errs []error
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		if want[top] {
			continue
		}
		want[top] = true
		err := os.Symlink(filepath.Join("..data", top), filepath.Join(dir, top))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, err)
		}
	}
	entries, err := os.ReadDir(dir)
	errs = append(errs, err)
	for _, d := range entries {
		if !strings.HasPrefix(d.Name(), "..") && !want[d.Name()] {
			errs = append(errs, os.Remove(filepath.Join(dir, d.Name())))
		}
	}
	return errors.Join(errs...)
}

// dropOthers removes folders of earlier contents.
func dropOthers(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, d := range entries {
		if d.IsDir() && d.Name() != keep && strings.HasPrefix(d.Name(), "..data_") {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, d.Name())))
		}
	}
	return errors.Join(errs...)
}

// mounts are a container's mounts. A subPath is opened without following a link
// out of its volume, and pinned by a bind mount of ours, so that nothing the pod
// does to the path afterwards changes what is mounted.
func (v *volumes) mounts(p *corev1.Pod, c *corev1.Container, vars map[string]string) ([]runtime.Mount, error) {
	var out []runtime.Mount
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		at := slices.IndexFunc(p.Spec.Volumes, func(vol corev1.Volume) bool { return vol.Name == m.Name })
		if at < 0 {
			return nil, fmt.Errorf("mount %s: the pod has no volume %q", m.MountPath, m.Name)
		}
		vol := &p.Spec.Volumes[at]
		sub, err := subPath(m, vars)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.MountPath, err)
		}
		if vol.Image != nil {
			out = append(out, runtime.Mount{Image: vol.Image.Reference, Source: sub, Destination: filepath.Clean(m.MountPath), Type: "bind", Readonly: true, Propagation: "rprivate"})
			continue
		}
		src := v.path(p.UID, vol)
		if sub != "" {
			pin := filepath.Join(v.state, string(p.UID), "subpaths", c.Name, strconv.Itoa(i))
			if err := pinSubPath(src, sub, pin); err != nil {
				return nil, fmt.Errorf("mount %s: subPath %s of volume %s: %w", m.MountPath, sub, m.Name, err)
			}
			src = pin
		}
		out = append(out, runtime.Mount{
			Source: src, Destination: filepath.Clean(m.MountPath), Type: "bind", Readonly: m.ReadOnly || isProjected(vol),
			RecursiveRO: recursive(m), Propagation: propagation(m), Options: m.BindMountOptions,
		})
	}
	return out, nil
}

// subPath is subPathExpr with the container's variables in it, or subPath as it is.
func subPath(m *corev1.VolumeMount, vars map[string]string) (string, error) {
	if m.SubPathExpr == "" {
		return m.SubPath, nil
	}
	var missing []string
	sub := expandBy(m.SubPathExpr, func(name string) string {
		value, ok := vars[name]
		if !ok {
			missing = append(missing, name)
		}
		return value
	})
	switch {
	case len(missing) > 0:
		return "", fmt.Errorf("subPathExpr %s: the container has no variable %s", m.SubPathExpr, strings.Join(missing, ", "))
	case sub == "" || !filepath.IsLocal(sub):
		return "", fmt.Errorf("subPathExpr %s: %q is not a relative path without \"..\"", m.SubPathExpr, sub)
	}
	return sub, nil
}

func recursive(m *corev1.VolumeMount) bool {
	return m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled
}

func propagation(m *corev1.VolumeMount) string {
	if m.MountPropagation == nil {
		return "rprivate"
	}
	switch *m.MountPropagation {
	case corev1.MountPropagationHostToContainer:
		return "rslave"
	case corev1.MountPropagationBidirectional:
		return "rshared"
	}
	return "rprivate"
}

// shifted gives the mounts of a pod with users of its own the owners that these
// are in the pod; an image has them anyway.
func shifted(mounts []runtime.Mount, box *pod.Config) []runtime.Mount {
	for i := range mounts {
		if mounts[i].Image == "" {
			mounts[i].UIDMaps, mounts[i].GIDMaps = box.UIDMaps, box.GIDMaps
		}
	}
	return mounts
}

// pinSubPath binds root/sub to pin, making the folder sub if there is nothing.
func pinSubPath(root, sub, pin string) error {
	f, err := pathrs.OpenInRoot(root, sub)
	if errors.Is(err, fs.ErrNotExist) {
		if err := pathrs.MkdirAll(root, sub, 0o750); err != nil {
			return err
		}
		f, err = pathrs.OpenInRoot(root, sub)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unpin(pin); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(pin), 0o711); err != nil {
		return err
	}
	if info.IsDir() {
		err = os.Mkdir(pin, 0o711)
	} else {
		err = os.WriteFile(pin, nil, 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), pin, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// unpin removes an earlier pin; a container that runs keeps its own mount.
func unpin(pin string) error {
	for isMount(pin) {
		if err := unix.Unmount(pin, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", pin, err)
		}
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func isMount(path string) bool {
	ok, err := mountinfo.Mounted(path)
	return err == nil && ok
}

func onTmpfs(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && (st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC)
}

// removeTree unmounts everything below dir and removes it. If an unmount fails
// nothing is removed: what is mounted may be somebody's files.
func removeTree(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	list, err := mountinfo.GetMounts(mountinfo.PrefixFilter(real))
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b *mountinfo.Info) int { return len(b.Mountpoint) - len(a.Mountpoint) })
	for _, m := range list {
		if err := unix.Unmount(m.Mountpoint, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
			}
		}
	}
	if list, err = mountinfo.GetMounts(mountinfo.PrefixFilter(real)); err != nil || len(list) > 0 {
		return fmt.Errorf("%d mounts are left in %s: %w", len(list), dir, errors.Join(err, fs.ErrExist))
	}
	return os.RemoveAll(dir)
}
