package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// cgroupDirs are the folders of a cgroup in every mounted hierarchy.
func cgroupDirs(group string) []string {
	var out []string
	roots := []string{"/sys/fs/cgroup"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil { // v1 or hybrid
		roots, _ = filepath.Glob("/sys/fs/cgroup/*")
	}
	for _, r := range roots {
		dir := filepath.Join(r, group)
		if fi, err := os.Lstat(r); err != nil || fi.Mode()&fs.ModeSymlink != 0 {
			continue // cpu,cpuacct and the like name the same hierarchy again
		}
		if _, err := os.Stat(dir); err == nil {
			out = append(out, dir)
		}
	}
	return out
}

// removeCgroups removes a cgroup and all below it; its processes must be gone.
func removeCgroups(group string) error {
	var errs []error
	for _, root := range cgroupDirs(group) {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			errs = append(errs, removeCgroup(d))
		}
	}
	return errors.Join(errs...)
}

// removeCgroup waits for the kernel to let killed processes go.
func removeCgroup(dir string) error {
	var err error
	for range 200 {
		if err = os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup %s: %w", dir, err)
}
