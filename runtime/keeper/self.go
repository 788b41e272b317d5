//go:build cgo

package keeper

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// BuildID tells this build of the program from any other: what was made for
// one must not be used by another.
func BuildID() string {
	program, err := elf.Open("/proc/self/exe")
	if err != nil {
		return "unknown"
	}
	defer program.Close()
	section := program.Section(".note.go.buildid")
	if section == nil {
		return "unknown"
	}
	note, err := section.Data()
	if err != nil {
		return "unknown"
	}
	sum := sha256.Sum256(note)
	return hex.EncodeToString(sum[:12])
}

// CloseInherited closes what the keeper's starter left open, but the standard
// streams and keep: the keeper lives long, and so would a lock or a socket.
func CloseInherited(keep ...int) {
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
