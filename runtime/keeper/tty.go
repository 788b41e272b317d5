//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"os"

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
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(c.parent.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
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
