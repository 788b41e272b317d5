package images

import (
	"fmt"
	"os"
	"path/filepath"
)

// CanShift is nil when images can be mounted for pods with user namespaces: this
// host allows such namespaces, and the store's file system idmapped mounts.
func (s *Store) CanShift() error {
	err := os.MkdirAll(s.opts.Run, 0o711)
	dir := filepath.Join(s.opts.Run, "shift")
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("make folder for a mount: %w", err)
	}
	defer func() { _ = os.Remove(dir) }()
	one := []IDMap{{Host: 1 << 16, Size: 1 << 16}}
	_, undo, err := shift([]string{s.path()}, dir, MountOptions{UIDMaps: one, GIDMaps: one})
	undo()
	return err
}
