package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Pin keeps the network namespace of process pid alive as RunDir/netns/ID and
// returns that path. A nil error means that the path holds that namespace, now
// or from an earlier call.
func (m *Manager) Pin(id string, pid int) (path string, err error) {
	if err := checkID(id); err != nil {
		return "", err
	}
	defer m.lock(id)()
	if err := m.mountNetNSDir(); err != nil {
		return "", err
	}
	path, source := m.netns(id), "/proc/"+strconv.Itoa(pid)+"/ns/net"
	switch same, err := sameNamespace(path, source); {
	case err != nil:
		return "", fmt.Errorf("pin network namespace of %s: %w", id, err)
	case same:
		return path, nil
	case isNamespace(path):
		return "", fmt.Errorf("pin network namespace of %s: %s holds another one; detach the pod first", id, path)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return "", fmt.Errorf("pin network namespace of %s: %w", id, err)
	}
	if err := errors.Join(f.Close(), unix.Mount(source, path, "", unix.MS_BIND, "")); err != nil {
		return "", errors.Join(fmt.Errorf("pin network namespace of %s: mount %s: %w", id, path, err), os.Remove(path))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pinned[id] = time.Now()
	return path, nil
}

func (m *Manager) netns(id string) string { return m.path("netns", id) }

// sameNamespace tells whether path is the namespace of source; an error means that source has none.
func sameNamespace(path, source string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Stat(source, &b); err != nil {
		return false, fmt.Errorf("look at %s: %w", source, err)
	}
	if err := unix.Stat(path, &a); err != nil {
		return false, nil
	}
	return isNamespace(path) && a.Ino == b.Ino && a.Dev == b.Dev, nil
}

// isNamespace tells a mounted namespace from the plain file that is left when the mount has gone.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// mountNetNSDir makes the folder a shared mount of its own: a pin made here is
// seen, and its end too, in every mount namespace that has a copy, and nobody
// else's change of propagation reaches it.
func (m *Manager) mountNetNSDir() error {
	m.mountMu.Lock()
	defer m.mountMu.Unlock()
	dir := m.path("netns")
	mounted, err := mountinfo.Mounted(dir)
	if err != nil {
		return fmt.Errorf("look at mount %s: %w", dir, err)
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mount %s shared: %w", dir, err)
	}
	return nil
}

// unmountNetNSDir takes the folder's own mount away if nothing is pinned.
func (m *Manager) unmountNetNSDir() error {
	m.mountMu.Lock()
	defer m.mountMu.Unlock()
	dir := m.path("netns")
	ids, err := m.pins()
	if err != nil || len(ids) > 0 {
		return err
	}
	if mounted, err := mountinfo.Mounted(dir); err != nil || !mounted {
		return err
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// unpin lets go of the namespace; it is not an error if it is not pinned.
func (m *Manager) unpin(id string) error {
	path := m.netns(id)
	for isNamespace(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unpin network namespace of %s: %w", id, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin network namespace of %s: %w", id, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pinned, id)
	return nil
}

// pins lists the ids with a file in RunDir/netns.
func (m *Manager) pins() ([]string, error) {
	entries, err := os.ReadDir(m.path("netns"))
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.Name()
	}
	return ids, nil
}

// oldPin tells whether a pin without an attempt is a remainder: the pod of a
// young one may be on its way to Attach.
func (m *Manager) oldPin(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.pinned[id]) > gcGrace
}
