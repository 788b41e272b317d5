package bridge

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// openNetNS opens a network namespace after checking that it is one: a plain
// file there means that the mount is missing.
func openNetNS(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.NSFS_MAGIC {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("open network namespace %s: not a namespace (its mount is missing)", path)
	}
	return fd, nil
}
