package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime/wire"
)

// Stdio is where a process's standard streams come from and go to; a nil one
// is /dev/null. With a terminal everything comes out of Stdout.
type Stdio struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size // new sizes of a terminal
}

// copying is the client's half of the streams: pipes that are copied, beside
// files of the caller's that the process has itself.
type copying struct {
	passed  []*os.File // for the keeper, in order
	own     []*os.File // of these, ours to close once they are passed
	readers []*os.File
	inputs  []*os.File
	outputs sync.WaitGroup
}

// drainLimit is what a pipe may hold: so much is read after the process has ended.
const drainLimit = 1 << 20

func pipe() (reader, writer *os.File, err error) {
	fds := make([]int, 2)
	// Not os.Pipe: the process's end must stay blocking.
	if err := unix.Pipe2(fds, unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// nonblocking makes a new file of f's, which deadlines work on.
func nonblocking(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	_ = f.Close()
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("set up pipe: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (c *copying) input(from io.Reader) error {
	if f, ok := from.(*os.File); ok {
		c.passed = append(c.passed, f)
		return nil
	}
	r, w, err := pipe()
	if err != nil {
		return err
	}
	c.passed, c.own = append(c.passed, r), append(c.own, r)
	if w, err = nonblocking(w); err != nil {
		return err
	}
	c.feed(w, from)
	return nil
}

// feed copies input until it or the process ends. It is not waited for: a
// Reader may block for ever.
func (c *copying) feed(to *os.File, from io.Reader) {
	c.inputs = append(c.inputs, to)
	go func() {
		_, _ = io.Copy(to, from)
		_ = to.Close()
	}()
}

func (c *copying) output(to io.Writer, pass bool) error {
	if f, ok := to.(*os.File); ok && pass {
		c.passed = append(c.passed, f)
		return nil
	}
	r, w, err := pipe()
	if err != nil {
		return err
	}
	c.passed, c.own = append(c.passed, w), append(c.own, w)
	if r, err = nonblocking(r); err != nil {
		return err
	}
	c.drainTo(to, r)
	return nil
}

func (c *copying) drainTo(to io.Writer, from *os.File) {
	c.readers = append(c.readers, from)
	c.outputs.Go(func() {
		defer from.Close()
		_, err := io.Copy(to, onlyReader{from})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			copyRest(to, from)
		}
	})
}

// onlyReader keeps io.Copy from handing a pipe to splice, which would not see the deadline's rest.
type onlyReader struct{ io.Reader }

// copyRest takes what the pipe holds now, and does not wait for more: some
// process that the ended one left behind may hold the other end for ever.
func copyRest(to io.Writer, from *os.File) {
	raw, err := from.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 32<<10)
	for total := 0; total < drainLimit; {
		n := 0
		if err := raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) }); err != nil || n <= 0 {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
		total += n
	}
}

func (c *copying) handedOver() { wire.CloseAll(c.own); c.own = nil }

// finish copies what the ended process has written, and no more.
func (c *copying) finish() {
	c.handedOver()
	for _, f := range c.inputs {
		_ = f.Close()
	}
	for _, f := range c.readers {
		_ = f.SetReadDeadline(time.Unix(1, 0))
	}
	c.outputs.Wait()
}

// endPatience bounds the wait for the end of an exec's processes after its
// context's: the keeper takes 3 s for SIGHUP and 10 s for SIGKILL.
const endPatience = 15 * time.Second

// Exec runs one more process in a running container and waits for its end. An
// *os.File as a stream is given to the process itself. When ctx is cancelled
// the process and all that it started get SIGHUP, and SIGKILL a few seconds
// later; when ctx's deadline passes they get SIGKILL at once. Either way none of
// them is left when the call returns, unless the kernel cannot end one.
func (c *Client) Exec(ctx context.Context, spec ExecSpec, stdio Stdio) (exitCode int, err error) {
	streams := &copying{}
	defer streams.finish()
	request := ExecRequest{ExecSpec: spec}
	if !spec.Terminal {
		if request.Streams, err = streams.pipes(stdio); err != nil {
			return 0, err
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	// The end of ctx must not close the connection: the keeper has yet to say that all is over.
	s, err := c.open(context.WithoutCancel(ctx), wire.ContainerExec, request, streams.passed...)
	streams.handedOver()
	if err != nil {
		return 0, err
	}
	defer s.close()
	s.ctx = ctx
	defer context.AfterFunc(ctx, s.endExec)()
	var started wire.Started
	files, err := s.receive(&started)
	if err != nil {
		return 0, err
	}
	if spec.Terminal {
		if len(files) != 1 {
			wire.CloseAll(files)
			return 0, errors.New("keeper sent no terminal")
		}
		if err := streams.terminal(ctx, files[0], stdio); err != nil {
			return 0, err
		}
	}
	var exit wire.ExecExit
	if _, err := s.receive(&exit); err != nil {
		return 0, err
	}
	return exit.Code, ctx.Err()
}

// endExec asks the keeper to end an exec, and gives it some time to answer.
func (s *stream) endExec() {
	_ = s.conn.SetDeadline(time.Now().Add(endPatience))
	method := wire.EndExec
	if errors.Is(s.ctx.Err(), context.DeadlineExceeded) {
		method = wire.KillExec
	}
	_ = s.conn.Send(wire.Request{Method: method})
}

func (c *copying) pipes(stdio Stdio) (which wire.Streams, err error) {
	if stdio.Stdin != nil {
		which.Stdin = true
		err = c.input(stdio.Stdin)
	}
	if stdio.Stdout != nil && err == nil {
		which.Stdout = true
		err = c.output(stdio.Stdout, true)
	}
	if stdio.Stderr != nil && err == nil {
		which.Stderr = true
		err = c.output(stdio.Stderr, true)
	}
	return which, err
}

// terminal copies between the caller's streams and a terminal's master.
func (c *copying) terminal(ctx context.Context, master *os.File, stdio Stdio) error {
	master, err := nonblocking(master)
	if err != nil {
		return err
	}
	if stdio.Resize != nil {
		go followSize(ctx, stdio.Resize, func(s Size) error { return setWindow(master, s) })
	}
	if stdio.Stdin != nil {
		go func() { _, _ = io.Copy(master, stdio.Stdin) }()
	}
	out := stdio.Stdout
	if out == nil {
		out = io.Discard
	}
	c.drainTo(out, master)
	return nil
}

// followSize ends with ctx, with the channel, or when the terminal has gone.
func followSize(ctx context.Context, sizes <-chan Size, set func(Size) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok || set(size) != nil {
				return
			}
		}
	}
}

func setWindow(master *os.File, s Size) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(fd uintptr) {
		result = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
	})
	return errors.Join(err, result)
}

// Attach connects the streams to those of a running container, from now on, and
// returns when the container has ended or ctx is done. A client that does not
// read loses output; neither the container nor its log waits for it.
func (c *Client) Attach(ctx context.Context, id string, stdio Stdio) error {
	streams := &copying{}
	defer streams.finish()
	request := AttachRequest{ID: id, Streams: wire.Streams{
		Stdin: stdio.Stdin != nil, Stdout: stdio.Stdout != nil, Stderr: stdio.Stderr != nil,
	}}
	for _, to := range []io.Writer{stdio.Stdout, stdio.Stderr} {
		if to != nil {
			if err := streams.output(to, false); err != nil {
				return err
			}
		}
	}
	s, err := c.open(ctx, wire.ContainerAttach, request, streams.passed...)
	streams.handedOver()
	if err != nil {
		return err
	}
	defer s.close()
	var attached wire.Attached
	files, err := s.receive(&attached)
	if err != nil {
		return err
	}
	if len(files) == 1 {
		s.feedAttached(streams, files[0], attached, stdio.Stdin)
	}
	if stdio.Resize != nil {
		go followSize(ctx, stdio.Resize, func(size Size) error { return c.Resize(ctx, id, "", size.Width, size.Height) })
	}
	_, err = s.receive(nil)
	return err
}

// feedAttached copies input. Its end is the end for the container only when it
// was made with StdinOnce; then the keeper hears of it by our half-closed connection.
func (s *stream) feedAttached(c *copying, to *os.File, attached wire.Attached, from io.Reader) {
	to, err := nonblocking(to)
	if err != nil {
		return
	}
	c.inputs = append(c.inputs, to)
	go func() {
		_, err := io.Copy(to, onlyReader{from})
		if err == nil && attached.StdinOnce && !attached.Terminal {
			_ = to.Close()
			_ = s.conn.Send(wire.Request{Method: wire.CloseInput})
		}
	}()
}
