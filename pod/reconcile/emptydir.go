package reconcile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod/manifest"
)

// makeEmptyDir makes the folder under another name and renames it, so that one
// that is there is complete and stays as the pod has left it.
func makeEmptyDir(path string, p *corev1.Pod, e *corev1.EmptyDirVolumeSource) error {
	mode := fs.FileMode(0o777)
	if e.Mode != nil {
		mode = fs.FileMode(*e.Mode)
	}
	group := fsGroup(p)
	if group != nil {
		mode |= 0o2070 // it is there to write
	}
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = makeSharedDir(path, mode, group)
	}
	if err != nil || e.Medium == corev1.StorageMediumDefault || isMount(path) {
		return err
	}
	options := "mode=" + strconv.FormatUint(uint64(mode), 8)
	if group != nil {
		options += ",gid=" + strconv.FormatInt(*group, 10)
	}
	if e.SizeLimit != nil && !e.SizeLimit.IsZero() {
		options += ",size=" + strconv.FormatInt(e.SizeLimit.Value(), 10)
	}
	if e.Medium == corev1.StorageMediumMemory {
		err = unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options)
	} else {
		err = mountHugepages(path, pageSize(p, e.Medium), options)
	}
	if err != nil {
		return fmt.Errorf("mount emptyDir of medium %s: %w", e.Medium, err)
	}
	return nil
}

// pageSize is that of the medium, as "2Mi", or that of the pod's only hugepages.
func pageSize(p *corev1.Pod, medium corev1.StorageMedium) string {
	if size, ok := strings.CutPrefix(string(medium), string(corev1.StorageMediumHugePagesPrefix)); ok {
		return size
	}
	for size := range manifest.Hugepages(&p.Spec) {
		return size
	}
	return ""
}

func mountHugepages(path, size, options string) error {
	if size != "" {
		options += ",pagesize=" + strings.TrimSuffix(size, "i")
	}
	err := unix.Mount("none", path, "hugetlbfs", unix.MS_NOSUID|unix.MS_NODEV, options)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("this kernel has no pages of %s: %w", size, err)
	}
	return err
}

func makeSharedDir(path string, mode fs.FileMode, group *int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	if group != nil {
		if err := os.Chown(tmp, -1, int(*group)); err != nil {
			return err
		}
	}
	if err := unix.Chmod(tmp, uint32(mode)); err != nil { // the kernel's bits, setgid and sticky among them
		return err
	}
	return os.Rename(tmp, path)
}
