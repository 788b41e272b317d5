package cri

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// streamer serves exec, attach and port-forward on a loopback port. An address
// has a secret of 128 bits of this process and a token that works once within a
// minute, so that neither a pod on the host's network nor a browser can use the
// port; the Host header says nothing, as a kubelet passes on its own client's.
type streamer struct {
	pods    Pods
	log     *slog.Logger
	server  streaming.Server // SPDY, and forwards
	http    *http.Server
	base    *url.URL
	tickets tickets

	mu       sync.Mutex                            // guards forwards and forward
	forwards map[string]map[int]context.CancelFunc // pod id → its forwards
	forward  int

	ctx      context.Context // of all streams; ends with stop
	end      context.CancelFunc
	watching chan struct{}
}

func newStreamer(pods Pods, log *slog.Logger) (*streamer, error) {
	s := &streamer{pods: pods, log: log, forwards: map[string]map[int]context.CancelFunc{}, watching: make(chan struct{})}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.base = &url.URL{Scheme: "http", Host: "127.0.0.1:0", Path: "/" + rand.Text() + "/"}
	cfg := streaming.DefaultConfig
	cfg.Addr, cfg.BaseURL = s.base.Host, s.base
	var err error
	if s.server, err = streaming.NewServer(cfg, s); err != nil {
		return nil, fmt.Errorf("make streaming server: %w", err)
	}
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return s.ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// The request's context must end with its connection, also after the
		// connection has been taken over for streams: that is what kills a
		// process whose client has gone.
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			ctx, cancel := context.WithCancel(ctx)
			c.(*watchedConn).gone = cancel
			return ctx
		},
	}
	return s, nil
}

// start listens and serves in the background until stop.
func (s *streamer) start() error {
	l, err := net.Listen("tcp", s.base.Host)
	if err != nil {
		return fmt.Errorf("listen for streams: %w", err)
	}
	s.base.Host = l.Addr().String()
	go func() {
		if err := s.http.Serve(watchedListener{l}); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("streaming server ended", "error", err)
		}
	}()
	go s.watch(s.ctx)
	return nil
}

func (s *streamer) stop() {
	s.end()
	<-s.watching
	_ = s.http.Close()
	s.endForwards(func(string) bool { return true })
}

// watchedListener hands out connections that say when they are gone.
type watchedListener struct{ net.Listener }

func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &watchedConn{Conn: c, gone: func() {}}, nil
}

type watchedConn struct {
	net.Conn
	gone context.CancelFunc
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	var t net.Error
	if err != nil && (!errors.As(err, &t) || !t.Timeout()) {
		c.gone()
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.gone()
	return c.Conn.Close()
}

// Exec runs a command with the client's streams. A code other than 0 is an
// unwrapped utilexec.CodeExitError: the protocol looks for nothing else.
func (s *streamer) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	stdio := streams(ctx, in, out, errOut, resize)
	code, err := s.pods.Exec(ctx, id, runtime.ExecSpec{ContainerID: id, ExecID: execID(), Args: cmd, Terminal: tty}, stdio)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command ended with exit code %d", code), Code: code}
	}
	return nil
}

// execID is unique among the processes of a container.
func execID() string { return rand.Text()[:16] }

// Attach joins the container's own streams.
func (s *streamer) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return s.pods.Attach(ctx, id, streams(ctx, in, out, errOut, resize))
}

// streams turns the client's streams into ours; one that is missing must be a nil interface.
func streams(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, resize <-chan remotecommand.TerminalSize) runtime.Stdio {
	stdio := runtime.Stdio{Stdin: in}
	if out != nil {
		stdio.Stdout = out
	}
	if errOut != nil {
		stdio.Stderr = errOut
	}
	if resize == nil {
		return stdio
	}
	sizes := make(chan runtime.Size, 1)
	stdio.Resize = sizes
	go func() {
		defer close(sizes)
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-resize:
				if !ok {
					return
				}
				select {
				case sizes <- runtime.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return stdio
}

// PortForward connects one of a forward's streams to a port of the pod, until
// either side or the pod ends. An error ends this connection alone, never the forward.
func (s *streamer) PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error {
	ctx, done := s.track(ctx, podID)
	defer done()
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer stop()
	err := s.pods.PortForward(ctx, podID, uint16(port), resettable{stream})
	if ctx.Err() != nil {
		err = fmt.Errorf("pod %s has stopped, or its client gone: %w", podID, ctx.Err())
	}
	if err != nil {
		// The caller resets the client's end. A stream that is reset before it was
		// accepted never existed for the client, which then does not read the error:
		// an empty write returns after the acceptance.
		_, _ = stream.Write(nil)
	}
	return err
}

// resettable refuses what is written after the client has reset its stream, so
// that the connection in the pod ends; the stream alone would drop it for ever.
type resettable struct{ io.ReadWriteCloser }

func (r resettable) Write(b []byte) (int, error) {
	if s, ok := r.ReadWriteCloser.(interface{ IsFinished() bool }); ok && s.IsFinished() {
		return 0, io.ErrClosedPipe
	}
	return r.ReadWriteCloser.Write(b)
}

func (s *streamer) track(ctx context.Context, podID string) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.forward++
	n := s.forward
	if s.forwards[podID] == nil {
		s.forwards[podID] = map[int]context.CancelFunc{}
	}
	s.forwards[podID][n] = cancel
	s.mu.Unlock()
	return ctx, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		if delete(s.forwards[podID], n); len(s.forwards[podID]) == 0 {
			delete(s.forwards, podID)
		}
	}
}

// watch ends the forwards of pods that stop. When it loses its subscription it looks at all pods and begins anew.
func (s *streamer) watch(ctx context.Context) {
	defer close(s.watching)
	for ctx.Err() == nil {
		events, cancel := s.pods.Subscribe()
		s.endForwards(func(id string) bool {
			p, err := s.pods.Pod(id)
			return err != nil || !p.Ready
		})
		s.watchEvents(ctx, events)
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // the pods may be ending for good
		}
	}
}

func (s *streamer) watchEvents(ctx context.Context, events <-chan pod.Event) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			if e.ContainerID == "" && (e.Type == pod.EventStopped || e.Type == pod.EventDeleted) {
				s.endForwards(func(id string) bool { return id == e.PodID })
			}
		}
	}
}

func (s *streamer) endForwards(of func(podID string) bool) {
	var ends []context.CancelFunc
	s.mu.Lock()
	for id, all := range s.forwards {
		if of(id) {
			for _, end := range all {
				ends = append(ends, end)
			}
		}
	}
	s.mu.Unlock()
	for _, end := range ends {
		end()
	}
}
