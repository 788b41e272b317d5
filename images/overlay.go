package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// labelUpper is where the snapshotter says in which folder a layer is.
const labelUpper = "containerd.io/snapshot/overlay.upperdir"

// layers is where an image is unpacked; it stays there as long as the image does.
type layers struct {
	dirs     []string // highest layer first, as overlayfs wants them
	uid, gid uint32   // of the root folder
	mode     uint32
}

// layersOf finds the layers of r, and unpacks the image again when they are gone.
func (s *Store) layersOf(ctx context.Context, r *record) (*layers, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.layers != nil {
		return r.layers, nil
	}
	l, err := s.findLayers(ctx, r.chain)
	if err != nil {
		s.log.Warn("an image is unpacked again", "image", r.ID, "cause", err)
		if l, err = s.unpackAgain(ctx, r); err != nil {
			return nil, err
		}
	}
	r.layers = l
	return l, nil
}

func (s *Store) findLayers(ctx context.Context, chain []string) (*layers, error) {
	l := &layers{mode: 0o755}
	for _, name := range slices.Backward(chain) {
		info, err := s.snapshot.Stat(in(ctx), name)
		if err != nil {
			return nil, err
		}
		dir := info.Labels[labelUpper]
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("find layer %s: %w", name, err)
		}
		l.dirs = append(l.dirs, dir)
	}
	if len(l.dirs) == 0 {
		return l, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(l.dirs[0], &st); err != nil {
		return nil, err
	}
	l.uid, l.gid, l.mode = st.Uid, st.Gid, st.Mode&0o7777
	return l, nil
}

// unpackAgain makes the layers of an image whose content is still there.
func (s *Store) unpackAgain(ctx context.Context, r *record) (*layers, error) {
	leased, done, err := s.lease(ctx, "unpack")
	if err != nil {
		return nil, err
	}
	defer done()
	for _, name := range slices.Backward(r.chain) {
		_ = s.snapshot.Remove(leased, name) // a record without a folder is in the way
	}
	err = s.take(leased, &taking{target: r.manifest, missing: "is gone from the store: import or pull the image again"})
	if err != nil {
		return nil, err
	}
	return s.findLayers(ctx, r.chain)
}

// mountOverlay mounts the layers under the container's folder dir at target.
func (s *Store) mountOverlay(base *layers, dir, target string, o MountOptions) error {
	lower := base.dirs
	if o.ReadOnly || len(lower) == 0 {
		// Without a writable layer overlayfs wants two layers; the work folder is empty.
		lower = append(slices.Clone(lower), filepath.Join(dir, "work"))
	}
	if o.ReadOnly && len(lower) == 1 {
		lower = append(lower, dir)
	}
	if len(o.UIDMaps)+len(o.GIDMaps) > 0 {
		shifted, undo, err := shift(lower, dir, o)
		defer undo()
		if err != nil {
			return err
		}
		lower = shifted
	}
	err := s.mountByFD(lower, dir, target, o.ReadOnly)
	if !errors.Is(err, errNoLowerAppend) {
		return err
	}
	err = s.mountByString(lower, dir, target, o.ReadOnly) // if something else was wrong, this says so
	if err == nil {
		s.oneString.Store(true)
	}
	return err
}

// errNoLowerAppend is how kernels before 6.7 answer.
var errNoLowerAppend = errors.New("overlayfs takes its layers in one string only")

// mountByFD mounts with one call per layer, so that their number and the
// lengths of their names do not matter.
func (s *Store) mountByFD(lower []string, dir, target string, readOnly bool) error {
	mnt, err := s.detached(lower, dir, readOnly)
	if err != nil {
		return err
	}
	return attach(mnt, target)
}

// attach puts a detached mount at target and closes its descriptor.
func attach(mnt int, target string) error {
	defer func() { _ = unix.Close(mnt) }()
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount at %s: %w", target, err)
	}
	return nil
}

// detached makes an overlay that is mounted nowhere yet; it goes away with its descriptor.
func (s *Store) detached(lower []string, dir string, readOnly bool) (mnt int, err error) {
	if s.oneString.Load() {
		return -1, errNoLowerAppend
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return -1, errNoLowerAppend
	}
	if err != nil {
		return -1, fmt.Errorf("open overlayfs: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	for _, l := range lower {
		if err := unix.FsconfigSetString(fs, "lowerdir+", l); errors.Is(err, unix.EINVAL) {
			return -1, errNoLowerAppend
		} else if err != nil {
			return -1, because(fs, "add layer "+l, err)
		}
	}
	for _, kv := range s.overlayOptions(dir, readOnly) {
		k, v, hasValue := strings.Cut(kv, "=")
		if hasValue {
			err = unix.FsconfigSetString(fs, k, v)
		} else {
			err = unix.FsconfigSetFlag(fs, k)
		}
		if err != nil {
			return -1, because(fs, "set overlayfs option "+kv, err)
		}
	}
	if err := unix.FsconfigCreate(fs); errors.Is(err, unix.EINVAL) {
		// Before 6.5 overlayfs hears of its options only now, and does not know "lowerdir+".
		return -1, errNoLowerAppend
	} else if err != nil {
		return -1, because(fs, "make overlayfs", err)
	}
	attr := 0
	if readOnly {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	if mnt, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr); err != nil {
		return -1, because(fs, "make overlayfs", err)
	}
	return mnt, nil
}

// overlayOptions are the options besides the layers. The writable layer of a
// container never outlives the host's next start, so nothing of it is flushed.
func (s *Store) overlayOptions(dir string, readOnly bool) []string {
	var o []string
	if s.noIndex {
		o = append(o, "index=off")
	}
	if readOnly {
		return o
	}
	return append(o, "upperdir="+filepath.Join(dir, "upper"), "workdir="+filepath.Join(dir, "work"), "volatile")
}

// mountByString is for kernels before 6.7. containerd's mount makes the names
// of many layers short enough for the one page that the kernel takes.
func (s *Store) mountByString(lower []string, dir, target string, readOnly bool) error {
	m := mount.Mount{
		Type: "overlay", Source: "overlay",
		Options: append(s.overlayOptions(dir, readOnly), "lowerdir="+strings.Join(lower, ":")),
	}
	if readOnly {
		m.Options = append(m.Options, "ro")
	}
	return m.Mount(target)
}

// because adds what the kernel says about a failed step of a mount.
func because(fs int, step string, err error) error {
	buf := make([]byte, 512)
	n, readErr := unix.Read(fs, buf)
	if readErr != nil || n <= 2 {
		return fmt.Errorf("%s: %w", step, err)
	}
	return fmt.Errorf("%s: %w (%s)", step, err, bytes.TrimSpace(buf[2:n])) // after "e "
}

// shift mounts each folder again, with its owners shifted, below dir for as
// long as it takes to mount the overlay.
func shift(lower []string, dir string, o MountOptions) (_ []string, undo func(), err error) {
	tmp := filepath.Join(dir, "shift")
	undo = func() {
		for i := range lower {
			_ = detach(filepath.Join(tmp, fmt.Sprint(i)))
			_ = unix.Rmdir(filepath.Join(tmp, fmt.Sprint(i)))
		}
		_ = unix.Rmdir(tmp)
	}
	ns, err := mount.GetUsernsFD(mapText(o.UIDMaps), mapText(o.GIDMaps))
	if err != nil {
		return nil, undo, fmt.Errorf("make a user namespace for the layers: %w", err)
	}
	defer func() { _ = ns.Close() }()
	var out []string
	for i, l := range lower {
		at := filepath.Join(tmp, fmt.Sprint(i))
		if err := os.MkdirAll(at, 0o700); err != nil {
			return nil, undo, err
		}
		if err := mount.IDMapMount(l, at, int(ns.Fd())); err != nil {
			return nil, undo, fmt.Errorf("shift the owners of layer %s (the file system must support idmapped mounts): %w", l, err)
		}
		out = append(out, at)
	}
	return out, undo, nil
}

func mapText(maps []IDMap) string {
	parts := make([]string, len(maps))
	for i, m := range maps {
		parts[i] = fmt.Sprintf("%d:%d:%d", m.Container, m.Host, m.Size)
	}
	return strings.Join(parts, ",")
}
