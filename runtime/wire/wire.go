// Package wire is the protocol between a Client and the keeper: JSON messages
// with a length in front on a unix stream socket, and file descriptors beside
// them. One call at a time runs on a connection; it may have several replies.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage bounds one message, in bytes: a spec with a large seccomp profile stays far below.
	MaxMessage = 16 << 20
	maxFiles   = 16
)

// Request asks for one call.
type Request struct {
	Method string          `json:"method"`
	Body   json.RawMessage `json:"body,omitempty"`
}

// Reply answers a Request. Kind names the sentinel that Error stands for ("" when it is none of them).
type Reply struct {
	Error string          `json:"error,omitempty"`
	Kind  string          `json:"kind,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// Conn sends and receives whole messages. One goroutine may send while another receives.
type Conn struct {
	*net.UnixConn
}

// Send writes v and passes the files along; the caller still owns them.
func (c Conn) Send(v any, files ...*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	return c.SendFDs(v, fds)
}

// SendFDs is Send for descriptors that no os.File stands for.
func (c Conn) SendFDs(v any, fds []int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxMessage {
		return fmt.Errorf("message of %d bytes is longer than %d", len(body), MaxMessage)
	}
	message := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	message = append(message, body...)
	if len(fds) > 0 {
		return c.sendWithFiles(message, fds)
	}
	_, err = c.Write(message)
	return err
}

func (c Conn) sendWithFiles(message []byte, fds []int) error {
	if len(fds) > maxFiles {
		return fmt.Errorf("%d files in one message, %d is the most", len(fds), maxFiles)
	}
	n, _, err := c.WriteMsgUnix(message, unix.UnixRights(fds...), nil)
	if err == nil && n < len(message) {
		_, err = c.Write(message[n:])
	}
	return err
}

// Receive reads the next message into v. The files are the caller's to close; io.EOF says that the peer is gone.
func (c Conn) Receive(v any) (files []*os.File, err error) {
	fds, err := c.ReceiveFDs(v)
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "passed"))
	}
	return files, err
}

// ReceiveFDs is Receive for descriptors that are only to be kept: an os.File
// would wake this process up whenever something happens to them.
func (c Conn) ReceiveFDs(v any) (fds []int, err error) {
	head := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			CloseFDs(fds)
			fds = nil
		}
	}()
	if fds, err = fdsOf(oob[:oobn]); err != nil {
		return fds, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return fds, errors.New("too many files in one message")
	}
	if n == 0 {
		return fds, io.EOF
	}
	if _, err = io.ReadFull(c, head[n:]); err != nil {
		return fds, err
	}
	size := binary.BigEndian.Uint32(head)
	if size > MaxMessage {
		return fds, fmt.Errorf("message of %d bytes is longer than %d", size, MaxMessage)
	}
	body := make([]byte, size)
	if _, err = io.ReadFull(c, body); err != nil {
		return fds, err
	}
	if err = json.Unmarshal(body, v); err != nil {
		return fds, fmt.Errorf("decode message: %w", err)
	}
	return fds, nil
}

func fdsOf(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read control message: %w", err)
	}
	var all []int
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		all = append(all, fds...)
	}
	return all, nil
}

// Duplicate is another descriptor of the same file, for SendFDs. Fd would make the
// file blocking, for everybody who has it.
func Duplicate(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	return fd, errors.Join(err, dupErr)
}

// CloseFDs closes descriptors that nobody needs any more.
func CloseFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// CloseAll closes files that nobody needs any more.
func CloseAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// Alive says whether the peer still holds its end of an idle connection.
func (c Conn) Alive() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Control(func(fd uintptr) {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		alive = errors.Is(err, unix.EAGAIN)
	})
	return err == nil && alive
}
