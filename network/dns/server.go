package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/loopback"
)

// Ports to listen on, the first that is free: clients ask the Service's address,
// which leads to whatever port it is.
const (
	port      = 53
	otherPort = 10053
)

// streams are the TCP connections that an address has at once.
const streams = 256

// Options are the parts that Listen needs. Domain and Addrs are required.
type Options struct {
	Domain string       // of the cluster, "cluster.local"
	Addrs  []netip.Addr // this host's addresses to listen on; they may come to be later
	// Ranges are those of pods and Services: the names of these addresses are
	// never asked elsewhere.
	Ranges []netip.Prefix
	// Own are further addresses that lead here, and must not be asked themselves.
	Own        []netip.Addr
	ResolvConf string // "" is /etc/resolv.conf
	Log        *slog.Logger
}

// Server holds the sockets.
type Server struct {
	opts      Options
	handler   *handler
	follower  *follower
	servers   []*dns.Server
	endpoints []Listener
	warnings  []string
	serial    uint32
	known     chan struct{} // closed by the first Set
}

// Listener is where a protocol of one address is served.
type Listener struct {
	Protocol string // "UDP" or "TCP"
	Addr     netip.AddrPort
}

// Listen binds the sockets, and answers nothing yet. A port that is taken is
// replaced by another one, which Warnings tells.
func Listen(opts Options) (*Server, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.ResolvConf == "" {
		opts.ResolvConf = "/etc/resolv.conf"
	}
	domain := strings.ToLower(dns.Fqdn(opts.Domain))
	if _, ok := dns.IsDomainName(domain); !ok || domain == "." {
		return nil, fmt.Errorf("serve DNS: %q is not a domain: write a name such as cluster.local", opts.Domain)
	}
	if len(opts.Addrs) == 0 {
		return nil, errors.New("serve DNS: no address to listen on")
	}
	s := &Server{opts: opts, handler: &handler{domain: domain, ranges: opts.Ranges, log: opts.Log, forward: newForwarder(opts.Log)}, known: make(chan struct{})}
	s.follower = &follower{path: opts.ResolvConf, own: s.own, set: s.handler.forward.setServers, log: opts.Log}
	for _, a := range opts.Addrs {
		if err := errors.Join(s.bind("UDP", a), s.bind("TCP", a)); err != nil {
			return nil, errors.Join(fmt.Errorf("serve DNS: %w", err), s.Close())
		}
	}
	return s, nil
}

// Listeners are the addresses and ports that were got.
func (s *Server) Listeners() []Listener { return slices.Clone(s.endpoints) }

// Warnings say which ports could not be had, and who holds them.
func (s *Server) Warnings() []string { return slices.Clone(s.warnings) }

// Set replaces all names at once. It must not be called by two at a time.
func (s *Server) Set(r Records) {
	s.serial++
	s.handler.now.Store(build(s.handler.domain, s.serial, &r))
	if s.serial == 1 {
		close(s.known)
	}
}

// Serve answers until ctx ends, and closes the sockets. Until the first Set,
// questions wait: that a name does not exist would be a lie.
func (s *Server) Serve(ctx context.Context) error {
	s.follower.look()
	select {
	case <-s.known:
	case <-ctx.Done():
		return s.Close()
	}
	work, ctx := errgroup.WithContext(ctx)
	for _, server := range s.servers {
		work.Go(server.ActivateAndServe)
	}
	work.Go(func() error {
		s.follower.run(ctx)
		return s.Close()
	})
	if err := work.Wait(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve DNS: %w", err)
	}
	return nil
}

// Close closes the sockets; Serve does so by itself.
func (s *Server) Close() error {
	var errs []error
	for _, server := range s.servers {
		if server.Listener != nil {
			errs = append(errs, server.Listener.Close())
		} else {
			errs = append(errs, server.PacketConn.Close())
		}
	}
	s.servers = nil
	return errors.Join(errs...)
}

// own tells whether an upstream would be this server.
func (s *Server) own(a netip.AddrPort) bool {
	if slices.Contains(s.opts.Own, a.Addr()) {
		return true
	}
	return slices.ContainsFunc(s.endpoints, func(l Listener) bool { return l.Addr == a })
}

// bind takes the first port that is free of an address.
func (s *Server) bind(protocol string, a netip.Addr) error {
	var err error
	for _, p := range []uint16{port, otherPort, 0} {
		if err = s.bindPort(protocol, netip.AddrPortFrom(a, p)); err == nil {
			got := s.endpoints[len(s.endpoints)-1]
			if p != port {
				s.warnings = append(s.warnings, fmt.Sprintf(
					"DNS: port %d/%s of %s is taken by %s: served at port %d instead, behind the address of Service kube-system/kube-dns",
					port, protocol, a, loopback.Holder(strings.ToLower(protocol), port), got.Addr.Port()))
			}
			return nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return fmt.Errorf("listen on %s/%s: %w", a, protocol, err)
}

func (s *Server) bindPort(protocol string, at netip.AddrPort) error {
	// The exact address, so that answers have the source that was asked; before
	// it exists, so that a bridge that is made later, or anew, is served too.
	config := net.ListenConfig{Control: freeBind}
	server := &dns.Server{Handler: s.handler, UDPSize: udpSize, MaxTCPQueries: -1, IdleTimeout: func() time.Duration { return 10 * time.Second }}
	var got net.Addr
	if protocol == "UDP" {
		conn, err := config.ListenPacket(context.Background(), "udp", at.String())
		if err != nil {
			return err
		}
		server.PacketConn, got = conn, conn.LocalAddr()
	} else {
		listener, err := config.Listen(context.Background(), "tcp", at.String())
		if err != nil {
			return err
		}
		server.Listener, got = netutil.LimitListener(listener, streams), listener.Addr()
	}
	addr, err := netip.ParseAddrPort(got.String())
	if err != nil {
		return err
	}
	s.servers = append(s.servers, server)
	s.endpoints = append(s.endpoints, Listener{protocol, addr})
	return nil
}

func freeBind(network, _ string, conn syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if strings.HasSuffix(network, "6") {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	var err error
	outer := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(outer, err)
}
