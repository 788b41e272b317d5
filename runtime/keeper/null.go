//go:build cgo

package keeper

import (
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// nulls are null devices of our own. Some OCI runtimes make the container's user
// the owner of its streams, whatever they are: that must not be the host's
// /dev/null. The nodes are in a mount that hangs nowhere, since the run
// directory may be mounted nodev.
type nulls struct {
	mu     sync.Mutex
	folder *os.File // made at first use
	serial uint64
}

// open makes one more device, which is gone when it is closed by all.
func (n *nulls) open() (*os.File, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.folder == nil {
		folder, err := detachedTmpfs(map[string]string{"mode": "700", "size": "4k"}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
		if err != nil {
			return nil, err
		}
		n.folder = folder
	}
	n.serial++
	dir, name := int(n.folder.Fd()), "null"+strconv.FormatUint(n.serial, 10)
	if err := unix.Mknodat(dir, name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return nil, fmt.Errorf("make null device: %w", err)
	}
	defer func() { _ = unix.Unlinkat(dir, name, 0) }()
	fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open null device: %w", err)
	}
	return os.NewFile(uintptr(fd), "null"), nil
}

// detachedTmpfs is a mount that hangs nowhere.
func detachedTmpfs(options map[string]string, attributes int) (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(fs)
	for name, value := range options {
		if err := unix.FsconfigSetString(fs, name, value); err != nil {
			return nil, fmt.Errorf("configure tmpfs: %w", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	return os.NewFile(uintptr(fd), "tmpfs"), nil
}
