package images

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

const (
	maxID        = math.MaxInt32 // largest id that Linux tools agree on
	maxAccounts  = 8 << 20       // bytes of /etc/passwd or /etc/group that are read
	maxExtraGIDs = 65536         // the kernel's own limit
)

// ResolveUser finds who "user[:group]" is in the root file system at rootfs:
// "" is root; names and ids are looked up in its /etc/passwd and /etc/group,
// and an id needs no entry there. Symbolic links lead nowhere outside rootfs.
// Ids are 0 to 2147483647.
func ResolveUser(rootfs, spec string) (User, error) {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return User{}, fmt.Errorf("resolve user %q: open root file system %s: %w", short(spec), rootfs, err)
	}
	defer func() { _ = unix.Close(root) }()
	passwd, err := readInside(root, "etc/passwd")
	if err != nil {
		return User{}, fmt.Errorf("resolve user %q: %w", short(spec), err)
	}
	group, err := readInside(root, "etc/group")
	if err != nil {
		return User{}, fmt.Errorf("resolve user %q: %w", short(spec), err)
	}
	return lookUp(spec, passwd, group)
}

// readInside reads a regular file below root; nil when there is none.
func readInside(root int, path string) ([]byte, error) {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open /%s of the image: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open /%s of the image: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("/%s of the image is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err != nil {
		return nil, fmt.Errorf("read /%s of the image: %w", path, err)
	}
	if len(data) > maxAccounts {
		return nil, fmt.Errorf("/%s of the image is larger than %d bytes", path, maxAccounts)
	}
	return data, nil
}

// lookUp finds spec in the two files.
func lookUp(spec string, passwd, group []byte) (User, error) {
	found, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if errors.Is(err, user.ErrRange) {
		return User{}, fmt.Errorf("resolve user %q: ids must be between 0 and %d", short(spec), maxID)
	}
	if err != nil {
		return User{}, fmt.Errorf("resolve user %q: %s: name one of the image's /etc/passwd and /etc/group, or use ids",
			short(spec), short(err.Error()))
	}
	if len(found.Sgids) > maxExtraGIDs {
		return User{}, fmt.Errorf("resolve user %q: %d groups are more than the kernel's %d", short(spec), len(found.Sgids), maxExtraGIDs)
	}
	u := User{Home: found.Home}
	if u.Home == "" {
		u.Home = "/"
	}
	if u.UID, err = id(found.Uid); err != nil {
		return User{}, fmt.Errorf("resolve user %q: user %w", short(spec), err)
	}
	if u.GID, err = id(found.Gid); err != nil {
		return User{}, fmt.Errorf("resolve user %q: group %w", short(spec), err)
	}
	for _, g := range found.Sgids {
		extra, err := id(g)
		if err != nil {
			return User{}, fmt.Errorf("resolve user %q: group %w", short(spec), err)
		}
		u.AdditionalGIDs = append(u.AdditionalGIDs, extra)
	}
	return u, nil
}

func id(n int) (uint32, error) {
	if n < 0 || n > maxID {
		return 0, fmt.Errorf("id %d of the image is not between 0 and %d", n, maxID)
	}
	return uint32(n), nil
}
