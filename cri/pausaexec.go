package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// chunk bounds the bytes of one message of output.
const chunk = 32 << 10

type execServer = grpc.BidiStreamingServer[pausav1.ExecRequest, pausav1.ExecResponse]

// Exec runs a command in a container of a declared pod. When the client goes
// away the stream's context ends, and with it the process.
func (s *pausaService) Exec(stream execServer) error {
	e, err := s.begin(stream)
	if err != nil {
		return err
	}
	if len(e.start.Command) == 0 {
		return invalid("start.command", "is empty")
	}
	if err := checkTexts("start.command", e.start.Command); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	code, err := s.o.Pods.Exec(ctx, e.container, runtime.ExecSpec{
		ContainerID: e.container, ExecID: execID(), Args: e.start.Command, Terminal: e.start.Tty, Width: uint16(e.start.Width), Height: uint16(e.start.Height),
	}, e.stdio(ctx))
	if err != nil {
		return err
	}
	return e.exited(code)
}

// Attach joins the stdio of a container of a declared pod; the code is the container's own if it ends meanwhile.
func (s *pausaService) Attach(stream execServer) error {
	e, err := s.begin(stream)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	if err := s.o.Pods.Attach(ctx, e.container, e.stdio(ctx)); err != nil {
		return err
	}
	exit, err := s.o.Pods.Wait(ctx, e.container)
	if err != nil {
		return fmt.Errorf("wait for container %s: %w", e.container, err)
	}
	return e.exited(exit.Code)
}

// session is one exec or attach.
type session struct {
	stream    execServer
	start     *pausav1.ExecRequest_Start
	container string
	sending   sync.Mutex // guards stream.Send
}

func (s *pausaService) begin(stream execServer) (*session, error) {
	first, err := stream.Recv()
	if err != nil {
		return nil, fmt.Errorf("receive start: %w", err)
	}
	if first.Start == nil {
		return nil, invalid("start", "is missing in the first message")
	}
	if first.Start.Width > 1<<16-1 || first.Start.Height > 1<<16-1 {
		return nil, invalid("start.width", "a terminal has at most 65535 columns and rows")
	}
	objects, err := s.objects()
	if err != nil {
		return nil, err
	}
	id, _, err := objects.FindContainer(first.Start.Namespace, first.Start.Pod, first.Start.Container, false)
	if err != nil {
		return nil, err
	}
	if id == "" {
		return nil, fmt.Errorf("container %s of pod %s does not run: %w", first.Start.Container, first.Start.Pod, pod.ErrState)
	}
	return &session{stream: stream, start: first.Start, container: id}, nil
}

// stdio connects the process to the stream.
func (e *session) stdio(ctx context.Context) runtime.Stdio {
	sizes := make(chan runtime.Size, 1)
	r, w := io.Pipe()
	out := runtime.Stdio{
		Stdout: output(func(b []byte) error { return e.send(&pausav1.ExecResponse{Stdout: b}) }),
		Resize: sizes,
	}
	if e.start.Stdin {
		out.Stdin = r
	}
	if !e.start.Tty {
		out.Stderr = output(func(b []byte) error { return e.send(&pausav1.ExecResponse{Stderr: b}) })
	}
	if e.start.Width > 0 && e.start.Height > 0 {
		sizes <- runtime.Size{Width: uint16(e.start.Width), Height: uint16(e.start.Height)}
	}
	context.AfterFunc(ctx, func() { _ = r.CloseWithError(io.ErrClosedPipe) }) // frees receive, should it write
	go e.receive(ctx, w, sizes)
	return out
}

// receive hands on input and sizes until the client or the process ends.
func (e *session) receive(ctx context.Context, stdin *io.PipeWriter, sizes chan<- runtime.Size) {
	defer close(sizes)
	for {
		r, err := e.stream.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = stdin.CloseWithError(err)
			}
			_ = stdin.Close()
			return
		}
		if len(r.Stdin) > 0 && e.start.Stdin {
			_, _ = stdin.Write(r.Stdin) // a process that has closed its input loses what comes
		}
		if r.StdinClosed {
			_ = stdin.Close()
		}
		if r.Width > 0 && r.Height > 0 && r.Width < 1<<16 && r.Height < 1<<16 {
			select {
			case sizes <- runtime.Size{Width: uint16(r.Width), Height: uint16(r.Height)}:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (e *session) send(r *pausav1.ExecResponse) error {
	e.sending.Lock()
	defer e.sending.Unlock()
	return e.stream.Send(r)
}

func (e *session) exited(code int) error {
	if err := e.send(&pausav1.ExecResponse{Exited: true, ExitCode: int32(code)}); err != nil {
		return fmt.Errorf("send exit code: %w", err)
	}
	return nil
}

// output sends what is written to it in chunks.
type output func([]byte) error

func (o output) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); {
		n := min(chunk, len(b)-sent)
		if err := o(b[sent : sent+n]); err != nil {
			return sent, fmt.Errorf("send output: %w", err)
		}
		sent += n
	}
	return len(b), nil
}
