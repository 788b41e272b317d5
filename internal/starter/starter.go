// Package starter makes a long-lived program independent of who started it:
// what it inherits would otherwise reach containers, plugins and files.
package starter

import (
	"os"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Forget closes what the starter left open, but the standard streams and keep,
// sets the file mode mask that files of containers begin with everywhere, and no
// longer ignores the signals that Go's runtime leaves as they were.
// It is called before anything else is opened.
func Forget(keep ...int) {
	unix.Umask(0o022)
	heedSignals()
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

// heedSignals gives the first three real-time signals, which belong to C libraries and which
// Go therefore does not touch, their default action if the starter had them ignored.
func heedSignals() {
	for signal := uintptr(32); signal <= 34; signal++ {
		var now action
		if now.exchange(signal, nil); now.handler == ignore {
			now.exchange(signal, &action{})
		}
	}
}

const ignore = 1 // SIG_IGN

// action is the kernel's struct sigaction of amd64 and arm64.
type action struct{ handler, flags, restorer, mask uintptr }

// exchange makes to the action of the signal, unless it is nil, and a what it was.
func (a *action) exchange(signal uintptr, to *action) {
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(a)), unsafe.Sizeof(a.mask), 0, 0)
}
