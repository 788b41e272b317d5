package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// rootfsFolder holds the mount points. It is a private mount of its own: what
// is mounted in it does not spread to every service of the host.
type rootfsFolder struct {
	path  string
	mu    sync.Mutex
	ready bool
}

func (f *rootfsFolder) prepare() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ready {
		return nil
	}
	if err := os.MkdirAll(f.path, 0o711); err != nil {
		return err
	}
	if !isMount(f.path) {
		if err := unix.Mount(f.path, f.path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("make %s a mount: %w", f.path, err)
		}
	}
	if err := unix.Mount("", f.path, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s a private mount: %w", f.path, err)
	}
	f.ready = true
	return nil
}

// close takes the mount away when no container has its root file system there.
func (f *rootfsFolder) close() error {
	list, err := os.ReadDir(f.path)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(list) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return detach(f.path)
}

// of is where a container has its root file system.
func (f *rootfsFolder) of(container string) string { return filepath.Join(f.path, container, "fs") }

// enclose makes the mount point in a folder that only root can enter, and the
// root of the container's user namespace: else any user of the host could run
// what a container has made setuid root.
func (f *rootfsFolder) enclose(container string, gids []IDMap) error {
	target := f.of(container)
	dir := filepath.Dir(target)
	for _, d := range []string{dir, target} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if len(gids) == 0 {
		return nil
	}
	return errors.Join(os.Lchown(dir, 0, int(toHost(gids, 0))), unix.Chmod(dir, 0o710))
}

// remove takes the mount and its folder away; it is no error when there is none.
func (f *rootfsFolder) remove(container string) error {
	target := f.of(container)
	// An earlier version mounted where the folder is now.
	for _, d := range []string{target, filepath.Dir(target)} {
		if err := detach(d); err != nil {
			return err
		}
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove mount point: %w", err)
		}
	}
	return nil
}

// isMount says whether something is mounted at path.
func isMount(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	return err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
