package images

import (
	"errors"
	"fmt"
	"os"
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

// isMount says whether something is mounted at path.
func isMount(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	return err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
