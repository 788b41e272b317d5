package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// stacking puts layers that were unpacked side by side onto each other. A
// directory in which a layer has files, and for which its tar has no entry, is
// that of the layers below: it gets their mode, owner, times and attributes. One
// that no layer has an entry for is root's, with mode 0755.
type stacking struct {
	snapshots.Snapshotter
	unpacked *applier
}

// Commit ends a layer; the one below it, which opts name, has ended before.
func (s stacking) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return err
		}
	}
	if info.Parent != "" {
		if err := s.inherit(ctx, key, info.Parent); err != nil {
			return fmt.Errorf("put layer %s onto those below it: %w", name, err)
		}
	}
	return s.Snapshotter.Commit(ctx, name, key, opts...)
}

func (s stacking) inherit(ctx context.Context, key, parent string) error {
	mounts, err := s.Mounts(ctx, key)
	if err != nil {
		return err
	}
	root, err := folderOf(mounts)
	if err != nil {
		return err
	}
	s.unpacked.mu.Lock()
	implied := s.unpacked.implied[root]
	delete(s.unpacked.implied, root)
	s.unpacked.mu.Unlock()
	if len(implied) == 0 {
		return nil
	}
	var below []string
	for parent != "" {
		info, err := s.Stat(ctx, parent)
		if err != nil {
			return err
		}
		below = append(below, info.Labels[labelUpper])
		parent = info.Parent
	}
	for _, dir := range implied {
		if err := inheritOne(root, below, dir); err != nil {
			return err
		}
	}
	return nil
}

// inheritOne gives root/dir what the highest of the layers below has for it.
func inheritOne(root string, below []string, dir string) error {
	// A later entry may have put something else there, or a link above it.
	if there, hidden, err := lookup(root, dir); err != nil || !there || hidden {
		return err
	}
	for _, layer := range below {
		found, hidden, err := lookup(layer, dir)
		if err != nil {
			return err
		}
		if found {
			return copyAttributes(filepath.Join(layer, dir), filepath.Join(root, dir))
		}
		if hidden {
			return nil
		}
	}
	return nil
}

// lookup says whether a layer has a directory, without following links, and
// whether it hides that of the layers below: something else is there or above
// it, or a directory above it is opaque.
func lookup(layer, dir string) (found, hidden bool, err error) {
	at := layer
	for part := range strings.SplitSeq(dir, "/") {
		hidden = hidden || opaque(at)
		at = filepath.Join(at, part)
		var st unix.Stat_t
		switch err := unix.Lstat(at, &st); {
		case errors.Is(err, unix.ENOENT):
			return false, hidden, nil
		case err != nil:
			return false, false, fmt.Errorf("look at %s: %w", at, err)
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return false, true, nil
		}
	}
	return true, hidden, nil
}

// opaque directories hide what the layers below have in them.
func opaque(dir string) bool {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// copyAttributes makes a directory like another but for its files, and for
// what overlayfs notes in its attributes.
func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("give %s its owner: %w", to, err)
	}
	if err := copyXattrs(from, to); err != nil {
		return fmt.Errorf("give %s the attributes of %s: %w", to, from, err)
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return fmt.Errorf("give %s its mode: %w", to, err)
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func copyXattrs(from, to string) error {
	names := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Llistxattr(from, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for name := range bytes.SplitSeq(bytes.TrimSuffix(names[:n], []byte{0}), []byte{0}) {
		if len(name) == 0 || bytes.HasPrefix(name, []byte("trusted.overlay.")) {
			continue
		}
		size, err := unix.Lgetxattr(from, string(name), value)
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(to, string(name), value[:size], 0); err != nil {
			return err
		}
	}
	return nil
}
