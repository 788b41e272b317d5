// Package unixsocket makes unix sockets that only root can open.
package unixsocket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Listener is a unix socket that only root can open.
type Listener struct {
	net.Listener
	path string
	ino  uint64
}

// Listen binds under another name, takes the rights away from everybody else
// and only then puts the socket in its place: it is never open to others. A socket
// that nobody answers is replaced; anything else in its place is an error.
func Listen(path string) (*Listener, error) {
	if len(path) > 107 {
		return nil, fmt.Errorf("listen on %s: a socket's path has at most 107 bytes, this one %d: use a shorter one", path, len(path))
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the socket's folder: %w", err)
	}
	if err := checkFree(path); err != nil {
		return nil, err
	}
	tmp := filepath.Join(dir, ".s"+strconv.Itoa(os.Getpid()))
	if len(tmp) > 107 {
		return nil, fmt.Errorf("listen on %s: the folder's name is too long for a socket: use a shorter one", path)
	}
	_ = os.Remove(tmp)
	l, err := net.Listen("unix", tmp)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	var st unix.Stat_t
	err = errors.Join(os.Chmod(tmp, 0o600), unix.Stat(tmp, &st), os.Rename(tmp, path))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close(), os.RemoveAll(tmp))
	}
	return &Listener{Listener: l, path: path, ino: st.Ino}, nil
}

// checkFree is nil when path is free or a socket that nobody answers.
func checkFree(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at socket: %w", err)
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("listen on %s: it is there and is no socket: remove it or use another path", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("listen on %s: another daemon answers there: stop it or use another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("listen on %s: a socket is there and it is unknown whether it is in use: %w", path, err)
	}
	return nil
}

// Remove takes the socket away if it is still ours.
func (l *Listener) Remove() {
	var st unix.Stat_t
	if unix.Lstat(l.path, &st) == nil && st.Ino == l.ino {
		_ = os.Remove(l.path)
	}
}
