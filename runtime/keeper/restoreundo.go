//go:build cgo

package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"
)

// undoRestore ends what a keeper that was killed while CRIU worked has left: tasks in
// the container's group, and mounts. These come first: what is removed below them
// would be the container's files, and those of its volumes.
func (k *Keeper) undoRestore(c *container) error {
	if c.request.Spec == nil {
		return nil
	}
	for _, dir := range []string{filepath.Join(k.lcRoot(), c.id), c.request.Spec.Root.Path} {
		if err := detachBelow(dir); err != nil {
			return err
		}
	}
	config, err := k.config(c.request.Spec)
	if err != nil {
		return err
	}
	groups, err := manager.New(config.Cgroups)
	if err != nil {
		return err
	}
	for end := time.Now().Add(killPatience); ; time.Sleep(time.Millisecond) {
		pids, err := groups.GetAllPids()
		if errors.Is(err, os.ErrNotExist) || err == nil && len(pids) == 0 {
			break
		}
		if err == nil && time.Now().After(end) {
			err = errors.New(unkillable(pids[0]))
		}
		if err != nil {
			return err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	if err := groups.Destroy(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// detachBelow unmounts all that is mounted below a folder, the last first.
func detachBelow(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	var below []string
	for line := range bytes.Lines(table) {
		fields := strings.Fields(string(line))
		if len(fields) < 5 {
			continue
		}
		at := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		if strings.HasPrefix(at, dir+"/") {
			below = append(below, at)
		}
	}
	for _, at := range slices.Backward(below) {
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	return nil
}
