package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/atomicfile"
)

// MountOptions of Mount.
type MountOptions struct {
	ReadOnly bool // a view of the image, without a writable layer
	// UIDMaps and GIDMaps shift the owners of the image's files for a container
	// in a user namespace. The writable layer holds host ids.
	UIDMaps, GIDMaps []IDMap
}

// IDMap maps Size ids from Container, inside, to Host, outside.
type IDMap struct{ Container, Host, Size uint32 }

// usedFile, in a container's folder, says which image it uses.
type usedFile struct {
	Image string `json:"image"`
}

// Mount mounts the image ref as the root file system of a container and gives
// its path, which stays the same. A second Mount of the same container gives the
// same path and mounts only what is not mounted; its writable layer is kept.
// The error wraps ErrNotFound or ErrInvalid when there is no such image.
func (s *Store) Mount(ctx context.Context, containerID, ref string, o MountOptions) (string, error) {
	target, err := s.mount(ctx, containerID, ref, o)
	if err != nil {
		return "", fmt.Errorf("mount image %s for container %s: %w", short(ref), short(containerID), s.explain(err))
	}
	return target, nil
}

func (s *Store) mount(ctx context.Context, containerID, ref string, o MountOptions) (_ string, err error) {
	if err := checkContainerID(containerID); err != nil {
		return "", err
	}
	if err := s.mounts.Lock(ctx, containerID); err != nil {
		return "", err
	}
	defer s.mounts.Unlock(containerID)
	r, fresh, err := s.claim(containerID, ref)
	if err != nil {
		return "", err
	}
	target := s.rootfs.of(containerID)
	defer func() {
		if err != nil && fresh {
			err = errors.Join(err, s.unmount(containerID))
		}
	}()
	if !fresh && isMount(target) {
		return target, nil
	}
	base, err := s.layersOf(ctx, r)
	if err != nil {
		return "", err
	}
	if err := s.rootfs.prepare(); err != nil {
		return "", err
	}
	if err := s.rootfs.enclose(containerID, o.GIDMaps); err != nil {
		return "", err
	}
	dir := s.path("rw", containerID)
	if plain := !o.ReadOnly && len(o.UIDMaps)+len(o.GIDMaps) == 0; plain {
		defer s.refill(r, base)
		if fresh && s.fromSpare(r.ID, dir, target) {
			return target, nil
		}
	}
	if err := makeWritable(dir, r.ID, base, o); err != nil {
		return "", err
	}
	return target, s.mountOverlay(base, dir, target, o)
}

// claim says that the container uses the image ref. fresh is false when it did so before.
func (s *Store) claim(containerID, ref string) (r *record, fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, err = s.cache.Load().find(ref); err != nil {
		return nil, false, err
	}
	switch was, ok := s.used[containerID]; {
	case !ok:
		s.used[containerID] = r.ID
		return r, true, nil
	case was != r.ID:
		return nil, false, fmt.Errorf("it has image %s already: unmount that first", was)
	}
	return r, false, nil
}

// makeWritable makes the folder of a container: which image it has, and the
// upper and work folders of its writable layer.
func makeWritable(dir, image string, base *layers, o MountOptions) error {
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := atomicfile.WriteJSON(filepath.Join(dir, "image.json"), usedFile{image}); err != nil {
		return err
	}
	work := filepath.Join(dir, "work")
	// A work folder of a stopped host has a mark that forbids its second use.
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := os.Mkdir(work, 0o711); err != nil || o.ReadOnly {
		return err
	}
	upper := filepath.Join(dir, "upper")
	if err := os.Mkdir(upper, 0o755); errors.Is(err, os.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	// The root folder of the container is this one: it looks like the image's.
	uid, gid := base.uid, base.gid
	if len(o.UIDMaps)+len(o.GIDMaps) > 0 {
		uid, gid = toHost(o.UIDMaps, uid), toHost(o.GIDMaps, gid)
	}
	if uid|gid != 0 {
		if err := os.Lchown(upper, int(uid), int(gid)); err != nil {
			return err
		}
	}
	return unix.Chmod(upper, base.mode)
}

func toHost(maps []IDMap, id uint32) uint32 {
	for _, m := range maps {
		if id >= m.Container && id-m.Container < m.Size {
			return m.Host + id - m.Container
		}
	}
	return id
}

// Unmount unmounts the root file system of a container and removes its
// writable layer, the content of it in the background. It is no error when
// there is none.
func (s *Store) Unmount(ctx context.Context, containerID string) error {
	if err := checkContainerID(containerID); err != nil {
		return fmt.Errorf("unmount container %s: %w", short(containerID), err)
	}
	if err := s.mounts.Lock(ctx, containerID); err != nil {
		return fmt.Errorf("unmount container %s: %w", containerID, err)
	}
	defer s.mounts.Unlock(containerID)
	if err := s.unmount(containerID); err != nil {
		return fmt.Errorf("unmount container %s: %w", containerID, err)
	}
	return nil
}

func (s *Store) unmount(containerID string) error {
	if err := s.rootfs.remove(containerID); err != nil {
		return err
	}
	if err := s.discard(containerID); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if image, ok := s.used[containerID]; ok {
		s.lastUsed[image] = time.Now()
		delete(s.used, containerID)
	}
	return nil
}

// detach unmounts target, with what is mounted below it when that is in use.
func detach(target string) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			// Somebody has a file open there. The mount goes when they close it.
			err = unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil // not a mount, or not any more
		case err != nil:
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
}

// discard moves the writable layer out of the way, at once and for good, and
// removes its content later: a crash leaves it in the trash, which Open empties.
func (s *Store) discard(containerID string) error {
	dir := s.path("rw", containerID)
	bin := s.path("trash", containerID+"."+strconv.FormatInt(time.Now().UnixNano(), 36))
	err := unix.Rename(dir, bin)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove writable layer: %w", err)
	}
	s.work.Go(func() { s.shred(bin) })
	return nil
}

// emptyTrash removes, in the background, what is in the trash now.
func (s *Store) emptyTrash() error {
	list, err := os.ReadDir(s.path("trash"))
	if err != nil {
		return err
	}
	s.work.Go(func() {
		for _, e := range list {
			s.shred(s.path("trash", e.Name()))
		}
	})
	return nil
}

func (s *Store) shred(dir string) {
	if err := os.RemoveAll(dir); err != nil {
		s.log.Warn("a writable layer cannot be removed; the next start tries again", "folder", dir, "err", err)
	}
}

// Mounted gives, sorted, the ids of the containers that have a root file system
// or a writable layer here, whoever made them; mounts of View are not among them.
func (s *Store) Mounted() ([]string, error) {
	var ids []string
	for _, dir := range []string{s.path("rw"), s.rootfs.path} {
		list, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list mounted images: %w", err)
		}
		for _, e := range list {
			if !strings.HasPrefix(e.Name(), viewPrefix) {
				ids = append(ids, e.Name())
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// loadUsed reads which container uses which image.
func (s *Store) loadUsed() error {
	list, err := os.ReadDir(s.path("rw"))
	if err != nil {
		return err
	}
	for _, e := range list {
		var u usedFile
		if err := atomicfile.ReadJSON(s.path("rw", e.Name(), "image.json"), &u); err != nil {
			s.log.Warn("it is not known which image a container uses", "container", e.Name(), "err", err)
			continue
		}
		s.used[e.Name()] = u.Image
	}
	return nil
}

// checkContainerID accepts what can be the name of a folder and nothing else.
func checkContainerID(id string) error {
	ok := id != "" && len(id) <= 128 && id[0] != '.'
	for _, r := range id {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}
	if !ok {
		return errors.New("a container id is 1 to 128 letters, digits, dots, dashes and underscores, and begins with no dot")
	}
	return nil
}
