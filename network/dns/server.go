package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
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

// patience is how long a connection may be silent, at its beginning too: on a busy
// machine a client may need seconds from its connect to its question.
const patience = 10 * time.Second

// streams are the TCP connections that an address has at once.
const streams = 256

// Options are the parts that Listen needs. Domain and Addrs are required.
type Options struct {
	Domain string       // of the cluster, "cluster.local"
	Addrs  []netip.Addr // to listen on; they may come to be later
	// Ranges are those of pods and Services: the names of these addresses are
	// never asked elsewhere.
	Ranges     []netip.Prefix
	ResolvConf string // "" is /etc/resolv.conf
	// Inherited are the sockets of a server before (Files): what waits in them is
	// answered. Those that are of no use are left to the caller.
	Inherited map[string]*os.File
	// Answered, if set, is told of every answer: its source, and its code by name ("NOERROR").
	Answered func(from Source, code string)
	Log      *slog.Logger
}

// Server holds the sockets.
type Server struct {
	opts      Options
	handler   *handler
	follower  *follower
	servers   []*dns.Server
	sockets   []filer // of servers
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
	if opts.Answered == nil {
		opts.Answered = func(Source, string) {}
	}
	domain := strings.ToLower(dns.Fqdn(opts.Domain))
	if _, ok := dns.IsDomainName(domain); !ok || domain == "." {
		return nil, fmt.Errorf("serve DNS: %q is not a domain: write a name such as cluster.local", opts.Domain)
	}
	if len(opts.Addrs) == 0 {
		return nil, errors.New("serve DNS: no address to listen on")
	}
	s := &Server{opts: opts, handler: &handler{domain: domain, log: opts.Log, forward: newForwarder(opts.Log), answered: opts.Answered}, known: make(chan struct{})}
	s.SetRanges(opts.Ranges)
	s.follower = &follower{path: opts.ResolvConf, own: s.own, set: func(servers []netip.AddrPort) {
		s.handler.forward.setServers(servers)
		s.handler.forward.checkLoops(context.Background())
	}, log: opts.Log}
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

// SetRanges changes Options.Ranges.
func (s *Server) SetRanges(all []netip.Prefix) {
	all = slices.Clone(all)
	s.handler.ranges.Store(&all)
}

// Update replaces the names of the Services and pods of the change, after a Set. Its
// cost is that of the change. It must not be called by two at a time, nor beside Set.
func (s *Server) Update(c Change) {
	s.serial++
	s.handler.now.Load().change(s.serial, &c)
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
		return s.finish()
	})
	if err := work.Wait(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve DNS: %w", err)
	}
	return nil
}

// Close closes the sockets; Serve does so by itself.
func (s *Server) Close() error {
	var errs []error
	for _, socket := range s.sockets {
		if err := socket.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.servers, s.sockets = nil, nil
	return errors.Join(errs...)
}

// lastAnswers bounds the wait for answers that are being worked out at the end.
const lastAnswers = 2 * time.Second

// finish reads no more, and answers what was read.
func (s *Server) finish() error {
	ctx, cancel := context.WithTimeout(context.Background(), lastAnswers)
	defer cancel()
	var all sync.WaitGroup
	for _, server := range s.servers {
		all.Go(func() { _ = server.ShutdownContext(ctx) }) // who waits longer asks again
	}
	all.Wait()
	return s.Close()
}

// filer is a socket that can be handed on.
type filer interface {
	File() (*os.File, error)
	Close() error
}

// Files are duplicates of the sockets, for Options.Inherited of the next server.
// The caller closes them.
func (s *Server) Files() (map[string]*os.File, error) {
	out := map[string]*os.File{}
	for i, socket := range s.sockets {
		f, err := socket.File()
		if err != nil {
			return out, fmt.Errorf("hand on a socket of DNS: %w", err)
		}
		out[fileName(s.endpoints[i].Protocol, s.endpoints[i].Addr.Addr())] = f
	}
	return out, nil
}

func fileName(protocol string, a netip.Addr) string { return "dns " + protocol + " " + a.String() }

// own tells whether an upstream would be this server.
func (s *Server) own(a netip.AddrPort) bool {
	if slices.Contains(s.opts.Addrs, a.Addr()) { // at whatever port: rules lead to ours
		return true
	}
	return slices.ContainsFunc(s.endpoints, func(l Listener) bool { return l.Addr == a })
}

// bind takes the first port that is free of an address.
func (s *Server) bind(protocol string, a netip.Addr) error {
	var err error
	inherited := s.opts.Inherited[fileName(protocol, a)]
	if inherited != nil && s.adopt(protocol, inherited, port) {
		return nil
	}
	for _, p := range []uint16{port, otherPort, 0} {
		if p != port && inherited != nil && s.adopt(protocol, inherited, 0) {
			return nil
		}
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
	if protocol == "UDP" {
		conn, err := config.ListenPacket(context.Background(), "udp", at.String())
		if err != nil {
			return err
		}
		return s.add(protocol, conn, nil)
	}
	listener, err := config.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return err
	}
	return s.add(protocol, nil, listener)
}

// adopt takes a socket of the server before, if it is what its name says, and of
// that port (0: any).
func (s *Server) adopt(protocol string, f *os.File, port uint16) bool {
	var err error
	var conn net.PacketConn
	var listener net.Listener
	var at net.Addr
	if protocol == "UDP" {
		if conn, err = net.FilePacketConn(f); err == nil {
			at = conn.LocalAddr()
		}
	} else if listener, err = net.FileListener(f); err == nil {
		at = listener.Addr()
	}
	if err != nil {
		return false
	}
	if addr, err := netip.ParseAddrPort(at.String()); err == nil && (port == 0 || addr.Port() == port) && s.add(protocol, conn, listener) == nil {
		return true
	}
	if conn != nil {
		_ = conn.Close()
	} else {
		_ = listener.Close()
	}
	return false
}

// add makes a server of a socket: conn is that of UDP, listener that of TCP.
func (s *Server) add(protocol string, conn net.PacketConn, listener net.Listener) error {
	server := &dns.Server{Handler: s.handler, UDPSize: udpSize, MaxTCPQueries: -1, ReadTimeout: patience, IdleTimeout: func() time.Duration { return patience }}
	var socket any = conn
	var at net.Addr
	if conn != nil {
		server.PacketConn, at = conn, conn.LocalAddr()
	} else {
		server.Listener, at, socket = netutil.LimitListener(listener, streams), listener.Addr(), listener
	}
	addr, err := netip.ParseAddrPort(at.String())
	if err != nil {
		return err
	}
	file, ok := socket.(filer)
	if !ok {
		return fmt.Errorf("%T cannot be handed on", socket)
	}
	s.servers, s.sockets = append(s.servers, server), append(s.sockets, file)
	s.endpoints = append(s.endpoints, Listener{protocol, addr})
	return nil
}

func freeBind(network, _ string, conn syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if strings.HasSuffix(network, "6") {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	var err error
	outer := conn.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), level, option, 1)
		if strings.HasPrefix(network, "udp") { // without the right to it, the default will do
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, waiting)
		}
	})
	return errors.Join(outer, err)
}

// waiting is the room, in bytes, for questions that wait in a socket while the
// daemon is restarted: some thousands.
const waiting = 4 << 20
