package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"github.com/urfave/cli/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/cri/pausav1"
)

const (
	defaultSocket = "/run/pausa/pausa.sock"
	// maxMessage bounds an answer: a list of all objects of a full host.
	maxMessage = 256 << 20
)

// client speaks to the daemon.
type client struct {
	pausav1.PausaClient
	images criv1.ImageServiceClient
	conn   *grpc.ClientConn
}

// dial connects to the daemon of --socket. It fails at once, and says how to
// start the daemon, when none is there.
func dial(ctx *cli.Context) (*client, error) {
	path := ctx.String("socket")
	probe, err := (&net.Dialer{}).DialContext(ctx.Context, "unix", path)
	if err != nil {
		return nil, notRunning(path, err)
	}
	_ = probe.Close() // it only proved that somebody listens
	conn, err := grpc.NewClient("passthrough:///pausa",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}),
		grpc.WithUnaryInterceptor(plainUnary), grpc.WithStreamInterceptor(plainStream),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return &client{pausav1.NewPausaClient(conn), criv1.NewImageServiceClient(conn), conn}, nil
}

func (c *client) close() { _ = c.conn.Close() }

func notRunning(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("connect to %s: permission denied: the socket is open to root alone, run pausa as root", path)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("the daemon is not running at %s: start it with 'pausa serve', or name its socket with --socket or PAUSA_SOCKET", path)
	default:
		return fmt.Errorf("connect to %s: %w: check --socket or PAUSA_SOCKET", path, err)
	}
}

// remoteError is what the daemon answered, without gRPC's wrapping.
type remoteError struct {
	code    codes.Code
	message string
}

func (e *remoteError) Error() string { return e.message }

// isNotFound tells whether the daemon said that something does not exist.
func isNotFound(err error) bool { return hasCode(err, codes.NotFound) }

func hasCode(err error, code codes.Code) bool {
	var remote *remoteError
	return errors.As(err, &remote) && remote.code == code
}

func plain(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	switch s.Code() {
	case codes.OK:
		return nil
	case codes.Canceled:
		return fmt.Errorf("%s: %w", s.Message(), context.Canceled)
	case codes.Unimplemented:
		return &remoteError{s.Code(), "the daemon does not know this request: it is another version than this pausa, see 'pausa version'"}
	case codes.Unavailable:
		return &remoteError{s.Code(), "the daemon went away or cannot serve now: " + s.Message()}
	default:
		return &remoteError{s.Code(), s.Message()}
	}
}

func plainUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return plain(next(ctx, method, req, reply, conn, opts...))
}

func plainStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := next(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, plain(err)
	}
	return plainClientStream{stream}, nil
}

// plainClientStream takes gRPC's wrapping off a stream's errors.
type plainClientStream struct{ grpc.ClientStream }

func (s plainClientStream) RecvMsg(m any) error { return plain(s.ClientStream.RecvMsg(m)) }
func (s plainClientStream) SendMsg(m any) error { return plain(s.ClientStream.SendMsg(m)) }
