// Package starter makes a long-lived program independent of who started it:
// what it inherits would otherwise reach containers, plugins and files.
package starter

import (
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Forget closes what the starter left open, but the standard streams and keep,
// and sets the file mode mask that files of containers begin with everywhere.
// It is called before anything else is opened.
func Forget(keep ...int) {
	unix.Umask(0o022)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 || slices.Contains(keep, fd) {
			continue
		}
		// Go opens everything close-on-exec, so what is not was inherited.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	for _, fd := range keep {
		if fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}
