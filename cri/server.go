// Package cri is the daemon's socket: runtime.v1 for a kubelet and pausa.v1 for
// the command line, on one root-only unix socket. It translates requests into
// the types of package pod, errors into codes, and nothing else.
package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/internal/unixsocket"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/event"
	"github.com/pausa-run/pausa/runtime"
)

// maxMessage is the largest request that is read, and the largest answer that a kubelet reads.
const maxMessage = 16 << 20

// stopTime is how long calls may go on after the end of Serve's context.
const stopTime = 5 * time.Second

// Options is what a Server is made of.
type Options struct {
	Pods    Pods
	Images  Images
	Objects Objects         // nil: pausa.v1 answers Unavailable for declared objects
	Events  *event.Recorder // nil: there are none
	Pull    PullFunc        // nil: only what was imported is here
	// ImageTools is what the command line does with images; nil: pausa.v1 answers Unavailable for it.
	ImageTools ImageTools
	Version    string // of the daemon, "1.2.3"
	// CgroupDriver is "cgroupfs" (also "") or "systemd".
	CgroupDriver string
	// Handlers are the runtime handlers that a pod may ask for; nil is the built-in one alone.
	Handlers *runtime.Handlers
	// UserNamespaces: this host can map the ids of images, so that pods may have user namespaces.
	UserNamespaces bool
	// Info tells the command line of the daemon; nil gives the version alone.
	Info func(context.Context) (Info, error)
	// Observe, if set, is told of every call when it has ended.
	Observe func(method string, code codes.Code, took time.Duration)
	Log     *slog.Logger // nil discards
}

// Info is what the daemon knows of itself and its host.
type Info struct {
	StateDir, RunDir string
	KeeperPid        int
	KeeperVersion    string
	Cgroup           string // "v1", "v2" or "hybrid"
	AppArmor         string // "on", "off", or what is missing
	StartedAt        time.Time
	Warnings         []string // limits of this host that the daemon lives with
}

// Server answers on the socket.
type Server struct {
	o    Options
	log  *slog.Logger
	grpc *grpc.Server
	// stopping is closed when Serve ends: calls that last for ever end then.
	stopping chan struct{}
	stream   *streamer
}

// New makes a Server; nothing listens until Serve.
func New(o Options) (*Server, error) {
	if o.Pods == nil || o.Images == nil {
		return nil, errors.New("make CRI server: Pods and Images are needed")
	}
	if o.CgroupDriver != "" && o.CgroupDriver != "cgroupfs" && o.CgroupDriver != "systemd" {
		return nil, fmt.Errorf("make CRI server: unknown cgroup driver %q: use cgroupfs or systemd", o.CgroupDriver)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Handlers == nil {
		var err error
		if o.Handlers, err = runtime.NewHandlers("", nil); err != nil {
			return nil, err
		}
	}
	s := &Server{o: o, log: o.Log, stopping: make(chan struct{})}
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.streaming),
	)
	var err error
	if s.stream, err = newStreamer(o.Pods, o.Log); err != nil {
		return nil, err
	}
	rt := &runtimeService{
		o: o, log: o.Log, host: readHostFacts(), usage: newUsageCache(o.Pods), stream: s.stream, stopping: s.stopping,
		podItems:       newEncodings(func(p *pod.Pod) proto.Message { return podItem(p) }),
		containerItems: newEncodings(func(c *pod.Container) proto.Message { return containerItem(c) }),
	}
	criv1.RegisterRuntimeServiceServer(s.grpc, rt)
	criv1.RegisterImageServiceServer(s.grpc, &imageService{images: o.Images, pull: o.Pull})
	pausav1.RegisterPausaServer(s.grpc, &pausaService{o: o, stopping: s.stopping})
	return s, nil
}

// Serve listens on socketPath until ctx ends, then lets calls finish for 5 s. It
// is called once. A socket left by a dead daemon is replaced; one that answers is an error.
func (s *Server) Serve(ctx context.Context, socketPath string) error {
	l, err := unixsocket.Listen(socketPath)
	if err != nil {
		return err
	}
	defer l.Remove()
	if err := s.stream.start(); err != nil {
		_ = l.Close()
		return err
	}
	defer s.stream.stop()
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(l) }()
	s.log.Info("listening", "socket", socketPath, "pid", os.Getpid())
	select {
	case err = <-served:
		close(s.stopping)
		return fmt.Errorf("serve %s: %w", socketPath, err)
	case <-ctx.Done():
	}
	close(s.stopping)
	s.shutdown()
	if err := <-served; err != nil {
		return fmt.Errorf("serve %s: %w", socketPath, err)
	}
	return nil
}

// shutdown takes no more calls, waits for those that run, and cuts off what is left.
func (s *Server) shutdown() {
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stopTime):
		s.log.Warn("calls still run after the time for stopping; ending them", "seconds", stopTime.Seconds())
		s.grpc.Stop()
		<-done
	}
}

// runtimeService is runtime.v1.RuntimeService.
type runtimeService struct {
	criv1.UnimplementedRuntimeServiceServer
	o        Options
	log      *slog.Logger
	host     hostFacts
	usage    *usageCache
	stream   *streamer
	stopping <-chan struct{}

	podItems       *encodings[pod.Pod]
	containerItems *encodings[pod.Container]
}
