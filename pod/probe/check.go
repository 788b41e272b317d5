package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// maxBody is how much of an answer is read.
const maxBody = 10 << 10

// answer is the outcome of one check. It is not known when nobody could ask.
type answer struct {
	ok, known bool
	message   string
}

func yes() answer { return answer{ok: true, known: true} }

func no(format string, args ...any) answer {
	return answer{known: true, message: fmt.Sprintf(format, args...)}
}

// check asks once; ctx ends at the probe's timeout.
type check func(ctx context.Context) answer

func newCheck(access Access, t Target, p *corev1.Probe) check {
	r := reach{access, t}
	switch {
	case p.HTTPGet != nil:
		return func(ctx context.Context) answer { return r.http(ctx, p.HTTPGet) }
	case p.TCPSocket != nil:
		return func(ctx context.Context) answer { return r.tcp(ctx, p.TCPSocket) }
	case p.GRPC != nil:
		return func(ctx context.Context) answer { return r.grpc(ctx, p.GRPC) }
	}
	return func(ctx context.Context) answer { return r.exec(ctx, p) }
}

// reach is the way to one container.
type reach struct {
	access Access
	target Target
}

// port resolves a port by number or by the name that the container gives it.
func (r reach) port(p intstr.IntOrString) (uint16, error) {
	if p.Type == intstr.Int {
		return uint16(p.IntVal), nil
	}
	for _, c := range r.target.Ports {
		if c.Name == p.StrVal {
			return uint16(c.ContainerPort), nil
		}
	}
	if n, err := strconv.ParseUint(p.StrVal, 10, 16); err == nil {
		return uint16(n), nil
	}
	return 0, fmt.Errorf("the container has no port %q", p.StrVal)
}

// hostPort is where to connect to: the probe's own host, else the pod.
func (r reach) hostPort(host string, p intstr.IntOrString) (string, error) {
	n, err := r.port(p)
	if err != nil {
		return "", err
	}
	if host == "" {
		host = r.target.Host
	}
	if host == "" {
		return "", errors.New("the pod has no address")
	}
	return net.JoinHostPort(host, strconv.Itoa(int(n))), nil
}

func (r reach) dial(ctx context.Context, hostPort string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", port, err)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, err
		}
		addr = found[0].Unmap()
	}
	return r.access.Dial(ctx, r.target.PodID, netip.AddrPortFrom(addr, uint16(n)))
}

func (r reach) tcp(ctx context.Context, p *corev1.TCPSocketAction) answer {
	to, err := r.hostPort(p.Host, p.Port)
	if err != nil {
		return no("%v", err)
	}
	conn, err := r.dial(ctx, to)
	if err != nil {
		return no("%v", err)
	}
	conn.Close()
	return yes()
}

func (r reach) grpc(ctx context.Context, g *corev1.GRPCAction) answer {
	to, err := r.hostPort("", intstr.FromInt32(g.Port))
	if err != nil {
		return no("%v", err)
	}
	secret := insecure.NewCredentials()
	if g.Mode != nil && *g.Mode == corev1.GRPCProbeModeTLS {
		secret = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}) // who is there is not asked
	}
	conn, err := grpc.NewClient("passthrough:///"+to, grpc.WithTransportCredentials(secret), grpc.WithNoProxy(),
		grpc.WithUserAgent("pausa-probe"), grpc.WithContextDialer(r.dial))
	if err != nil {
		return no("%v", err)
	}
	defer conn.Close()
	req := &grpc_health_v1.HealthCheckRequest{}
	if g.Service != nil {
		req.Service = *g.Service
	}
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, req)
	switch {
	case status.Code(err) == codes.Unimplemented:
		return no("the server at %s has no grpc.health.v1.Health service", to)
	case err != nil:
		return no("%v", err)
	case resp.Status != grpc_health_v1.HealthCheckResponse_SERVING:
		return no("the server at %s says %s", to, resp.Status)
	}
	return yes()
}

func (r reach) exec(ctx context.Context, p *corev1.Probe) answer {
	_, stderr, code, err := r.access.ExecSync(ctx, r.target.ContainerID, p.Exec.Command, seconds(p.TimeoutSeconds))
	switch {
	case errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
		return no("the command did not end within %s", seconds(p.TimeoutSeconds))
	case err != nil:
		return answer{message: err.Error()} // nobody was asked
	case code != 0:
		return no("the command ends with %d: %s", code, firstLine(stderr))
	}
	return yes()
}

// firstLine is short enough for a log.
func firstLine(b []byte) string {
	s, _, _ := strings.Cut(strings.TrimSpace(string(b[:min(len(b), maxBody)])), "\n")
	return s[:min(len(s), 200)]
}

// Hook runs a lifecycle handler of a container until it is done or ctx ends. Its
// sleep is the caller's, who has the clock.
func Hook(ctx context.Context, access Access, t Target, h *corev1.LifecycleHandler) error {
	r := reach{access, t}
	switch {
	case h.Exec != nil:
		_, stderr, code, err := access.ExecSync(ctx, t.ContainerID, h.Exec.Command, 0)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("the command ends with %d: %s", code, firstLine(stderr))
		}
	case h.HTTPGet != nil:
		if a := r.http(ctx, h.HTTPGet); !a.ok {
			return errors.New(a.message)
		}
	}
	return nil
}
