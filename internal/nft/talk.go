package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// sendRoom is what the kernel needs beside a message in the send buffer.
const sendRoom = 64 << 10

// reply is one message of the kernel's.
type reply struct {
	seq  uint32
	kind uint16
	data []byte
}

// errno is what an error or an acknowledgement (0) says.
func (r reply) errno() unix.Errno {
	if len(r.data) < 4 {
		return unix.EBADMSG
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(r.data)))
}

// errSilent is a kernel that has not said what became of a request.
var errSilent = errors.New("the kernel has not answered")

// talk sends messages and reads what the kernel has to say. It works in the
// sender's own call, so all of its answers are there when that returns. An answer
// that the socket had no room for is unix.ENOBUFS.
func (c *Conn) talk(m *messages) ([]reply, error) {
	if err := c.makeRoom(len(m.buf) + sendRoom); err != nil {
		return nil, err
	}
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	var ioErr error
	if err := raw.Control(func(fd uintptr) {
		ioErr = unix.Sendto(int(fd), m.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); err != nil {
		return nil, err
	}
	if errors.Is(ioErr, unix.EMSGSIZE) {
		return nil, fmt.Errorf("%w: %d bytes at once: raise net.core.wmem_max to that", ioErr, len(m.buf))
	}
	if ioErr != nil {
		return nil, ioErr
	}
	var out []reply
	if err := raw.Control(func(fd uintptr) { out, ioErr = drain(int(fd)) }); err != nil {
		return nil, err
	}
	return out, ioErr
}

// makeRoom lets the send buffer take one message of a size. Without the right to
// have more than net.core.wmem_max it takes that much.
func (c *Conn) makeRoom(size int) error {
	if size <= c.room {
		return nil
	}
	c.room = max(size, 1<<20)
	return c.sock.SetWriteBuffer(c.room)
}

// drain reads all messages that wait.
func drain(fd int) (out []reply, err error) {
	for {
		n, _, recvErr := unix.Recvfrom(fd, nil, unix.MSG_DONTWAIT|unix.MSG_PEEK|unix.MSG_TRUNC)
		buf := make([]byte, max(n, 0))
		if recvErr == nil {
			n, _, recvErr = unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		}
		switch {
		case errors.Is(recvErr, unix.EAGAIN):
			return out, err
		case errors.Is(recvErr, unix.EINTR):
		case errors.Is(recvErr, unix.ENOBUFS):
			err = recvErr // what is there can be read all the same
		case recvErr != nil:
			return out, recvErr
		default:
			out = appendReplies(out, buf[:n])
		}
	}
}

func appendReplies(out []reply, b []byte) []reply {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			break
		}
		out = append(out, reply{
			seq: binary.NativeEndian.Uint32(b[8:]), kind: binary.NativeEndian.Uint16(b[4:]), data: b[unix.SizeofNlMsghdr:n],
		})
		b = b[min((n+3)&^3, len(b)):]
	}
	return out
}

// settle says what became of a transaction. The kernel tells of errors before it
// acknowledges, and drops the rest once the socket is full: so the first error is
// always there, and the acknowledgement without one means that all is done.
func (b *batch) settle(answers []reply, err error) error {
	acknowledged := false
	for _, r := range answers {
		if r.kind != unix.NLMSG_ERROR || int32(r.seq-b.first) < 0 {
			continue // of a request before
		}
		errno := r.errno()
		if errno == 0 {
			acknowledged = acknowledged || r.seq == b.last()
			continue
		}
		if what := b.cause(r.seq); what != "" {
			return fmt.Errorf("%s: %w", what, errno)
		}
		return errno
	}
	if acknowledged {
		return nil
	}
	if err != nil {
		return err
	}
	return errSilent
}
