package bridge

import (
	"fmt"
	goruntime "runtime"

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

// inNetNS runs fn on a thread of its own that is in the network namespace; the
// thread ends with it, so that no other goroutine can come to run there.
func inNetNS(fd int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}
