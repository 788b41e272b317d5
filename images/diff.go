package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
)

// WriteDiff writes what a container has changed above its image as a layer: a tar
// with whiteouts for what it has removed. Without a layer of the container's own
// the error wraps fs.ErrNotExist.
func (s *Store) WriteDiff(ctx context.Context, containerID string, w io.Writer) (err error) {
	if err := checkContainerID(containerID); err != nil {
		return fmt.Errorf("write the changes of %s: %w", short(containerID), err)
	}
	upper := s.path("rw", containerID, "upper")
	if _, err := os.Stat(upper); err != nil {
		return fmt.Errorf("write the changes of %s: %w", containerID, err)
	}
	none, err := os.MkdirTemp("", "pausa-diff-") // what is there is all new: a layer does not tell that from changed
	if err != nil {
		return fmt.Errorf("write the changes of %s: %w", containerID, err)
	}
	defer func() { err = errors.Join(err, os.Remove(none)) }()
	changes := archive.NewChangeWriter(w, upper)
	tell := func(kind fs.ChangeKind, path string, info os.FileInfo, err error) error {
		if err == nil && info != nil && isWhiteout(info) {
			kind = fs.ChangeKindDelete
		}
		return changes.HandleChange(kind, path, info, err)
	}
	if err := fs.DiffDirChanges(ctx, none, upper, fs.DiffSourceOverlayFS, tell); err != nil {
		return fmt.Errorf("write the changes of %s: %w", containerID, err)
	}
	if err := changes.Close(); err != nil {
		return fmt.Errorf("write the changes of %s: %w", containerID, err)
	}
	return nil
}

// isWhiteout tells what overlayfs puts in the place of a removed file.
func isWhiteout(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode()&os.ModeCharDevice != 0 && st.Rdev == 0
}

// ApplyDiff changes the files of a mounted container as a tar of WriteDiff says,
// which may be a stranger's: names and links stay below the root, and what is no
// file, folder or link is refused.
func (s *Store) ApplyDiff(ctx context.Context, containerID string, r io.Reader) error {
	if err := checkContainerID(containerID); err != nil {
		return fmt.Errorf("apply changes to %s: %w", short(containerID), err)
	}
	root := s.rootfs.of(containerID)
	if !isMount(root) {
		return fmt.Errorf("apply changes to %s: its image is not mounted: %w", containerID, ErrNotFound)
	}
	entries := limits{root: root}
	check := func(h *tar.Header) (bool, error) {
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
			return true, entries.check(h)
		}
		return false, fmt.Errorf("%w: file %q is of the kind %q: a checkpoint brings no devices or pipes", ErrInvalid, short(h.Name), h.Typeflag)
	}
	if _, err := archive.Apply(in(ctx), root, r, archive.WithFilter(check)); err != nil {
		return fmt.Errorf("apply changes to %s: %w", containerID, err)
	}
	return nil
}

// RestoreFolder makes an empty folder that goes with the container's writable layer.
func (s *Store) RestoreFolder(containerID string) (string, error) {
	if err := checkContainerID(containerID); err != nil {
		return "", fmt.Errorf("make folder for %s: %w", short(containerID), err)
	}
	dir := s.path("rw", containerID, "restore")
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return "", fmt.Errorf("make folder for %s: %w", containerID, err)
	}
	return dir, nil
}
