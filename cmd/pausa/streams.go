package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
	"google.golang.org/grpc"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// duplex is the stream of Exec and Attach.
type duplex = grpc.BidiStreamingClient[pausav1.ExecRequest, pausav1.ExecResponse]

// session joins a process in a container to this program's stdio until it ends.
type session struct {
	p     *program
	start *pausav1.ExecRequest_Start
	open  func(context.Context, ...grpc.CallOption) (duplex, error)
	got   bool // some output arrived
}

// errNoExit: the stream ended without the word that the process has.
var errNoExit = errors.New("the connection to the container ended before its process did")

// run returns the process's exit code.
func (s *session) run(ctx context.Context) (code int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, inIsTerminal := s.p.terminal()
	if s.start.Tty && !inIsTerminal && s.start.Stdin {
		fmt.Fprintln(s.p.err, "warning: standard input is not a terminal: no terminal is made in the container")
		s.start.Tty = false
	}
	raw := s.start.Tty && inIsTerminal
	if raw {
		s.start.Width, s.start.Height = terminalSize(in)
	}
	stream, err := s.open(ctx)
	if err != nil {
		return 0, plain(err)
	}
	out := &sender{stream: stream}
	if err := out.send(&pausav1.ExecRequest{Start: s.start}); err != nil && !errors.Is(err, io.EOF) {
		return 0, plain(err)
	}
	if raw {
		before, rawErr := term.MakeRaw(in)
		if rawErr != nil {
			return 0, fmt.Errorf("set terminal to raw mode: %w", rawErr)
		}
		defer func() { err = errors.Join(err, term.Restore(in, before)) }()
		defer out.followSize(in)()
	}
	if s.start.Stdin {
		go out.copyFrom(s.p.in)
	}
	return s.receive(stream)
}

func (s *session) receive(stream duplex) (int, error) {
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return 0, errNoExit
		}
		if err != nil {
			return 0, plain(err)
		}
		s.got = s.got || len(msg.GetStdout())+len(msg.GetStderr()) > 0
		if _, err := s.p.out.Write(msg.GetStdout()); err != nil {
			return 0, fmt.Errorf("write standard output: %w", err)
		}
		if _, err := s.p.err.Write(msg.GetStderr()); err != nil {
			return 0, fmt.Errorf("write standard error: %w", err)
		}
		if msg.GetExited() {
			return int(msg.GetExitCode()), nil
		}
	}
}

// sender serializes what is sent: gRPC allows one sender at a time.
type sender struct {
	mu     sync.Mutex
	stream duplex
}

func (s *sender) send(req *pausav1.ExecRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.Send(req)
}

// copyFrom sends r until it ends. Errors are those of a stream that the
// receiving side reports.
func (s *sender) copyFrom(r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && s.send(&pausav1.ExecRequest{Stdin: buf[:n:n]}) != nil {
			return
		}
		if err != nil {
			_ = s.send(&pausav1.ExecRequest{StdinClosed: true})
			return
		}
	}
}

// followSize tells the container of every change of the terminal's size, until stop.
func (s *sender) followSize(fd int) (stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-changed:
				if w, h := terminalSize(fd); w > 0 {
					_ = s.send(&pausav1.ExecRequest{Width: w, Height: h})
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		close(done)
	}
}

// terminal is the descriptor of standard input, and whether it is a terminal.
func (p *program) terminal() (fd int, ok bool) {
	f, isFile := p.in.(*os.File)
	if !isFile {
		return -1, false
	}
	return int(f.Fd()), term.IsTerminal(int(f.Fd()))
}

func terminalSize(fd int) (width, height uint32) {
	w, h, err := term.GetSize(fd)
	if err != nil || w <= 0 || h <= 0 {
		return 0, 0
	}
	return uint32(w), uint32(h) //nolint:gosec // both are small and positive
}

func stdioFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "stdin", Aliases: []string{"i"}, Usage: "pass standard input on"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the process a terminal"},
	}
}

func containerFlag() cli.Flag {
	return &cli.StringFlag{Name: "container", Aliases: []string{"c"}, Usage: "`CONTAINER` of the pod; without it the first"}
}
