//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runc/libcontainer/utils"
	"golang.org/x/sys/unix"
)

// console is the socket over which a container's init sends its terminal's master.
type console struct {
	parent, child *os.File
}

func newConsole() (*console, error) {
	parent, child, err := utils.NewSockPair("console")
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	return &console{parent: parent, child: child}, nil
}

func (c *console) close() {
	_ = c.parent.Close()
	_ = c.child.Close()
}

// master takes the master that init has sent before it was parked.
func (c *console) master() (*os.File, error) {
	_ = c.child.Close()
	return receiveMaster(int(c.parent.Fd()))
}

func receiveMaster(socket int) (*os.File, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(errors.New("receive terminal: none was sent"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errors.New("receive terminal: none was sent"), err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(fmt.Errorf("set up terminal: %w", err), unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// consolePatience bounds the wait for a master that should have been sent already.
const consolePatience = 5 * time.Second

// consoleSocket is a socket by name, to which the program of a runtime handler sends the master.
type consoleSocket struct {
	listener *net.UnixListener
	name     string // relative to the folder: a whole path may be too long for a socket
	path     string
}

func listenConsole(folder string) (*consoleSocket, error) {
	dir, err := os.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	defer dir.Close()
	f, err := os.CreateTemp(folder, "tty-")
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	s := &consoleSocket{name: filepath.Base(f.Name()), path: f.Name()}
	if err := errors.Join(f.Close(), os.Remove(s.path)); err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), s.name), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	s.listener.SetUnlinkOnClose(false)
	return s, nil
}

func (s *consoleSocket) close() {
	_ = s.listener.Close()
	_ = os.Remove(s.path)
}

func (s *consoleSocket) master() (master *os.File, err error) {
	_ = s.listener.SetDeadline(time.Now().Add(consolePatience))
	conn, err := s.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	defer conn.Close()
	f, err := conn.File() // blocking
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	defer f.Close()
	return receiveMaster(int(f.Fd()))
}
