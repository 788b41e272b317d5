// Package loopback serves published ports on 127.0.0.1 and ::1 by sockets of
// ours. NAT could do it for IPv4 alone, and only by letting packets with
// loopback addresses out to the bridge.
package loopback

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// dialTimeout bounds the wait for one endpoint before the next is tried.
const dialTimeout = 3 * time.Second

// Port is one port of TCP or UDP on a loopback address.
type Port struct {
	netip.AddrPort
	UDP bool
}

func (p Port) network() string {
	if p.UDP {
		return "udp"
	}
	return "tcp"
}

func (p Port) String() string { return p.network() + " " + p.AddrPort.String() }

// Server relays clients of ports to endpoints. It may be used by several
// goroutines.
type Server struct {
	log   *slog.Logger
	enter func(func() error) error

	mu        sync.Mutex // guards what follows
	listeners map[Port]*listener
	conns     map[io.Closer]Port
	closed    bool
	wait      sync.WaitGroup // of goroutines
}

// listener is one socket of ours.
type listener struct {
	io.Closer
	port      Port
	endpoints atomic.Pointer[[]netip.AddrPort]
}

// New makes a Server without ports. enter runs a function where sockets are to
// be opened, which is the host's network namespace; nil: just there.
func New(log *slog.Logger, enter func(func() error) error) *Server {
	if enter == nil {
		enter = func(f func() error) error { return f() }
	}
	return &Server{log: log, enter: enter, listeners: map[Port]*listener{}, conns: map[io.Closer]Port{}}
}

// Set opens the port, unless it is open, and leads new clients to one of the
// endpoints; without any they get a reset. Connections that are open stay. A
// host that does not have the address is no error. The error of a port that is
// taken wraps EADDRINUSE and names who has it.
func (s *Server) Set(p Port, endpoints []netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	have := s.listeners[p]
	if have == nil {
		var err error
		if have, err = s.listen(p); err != nil || have == nil {
			return err
		}
		s.listeners[p] = have
	}
	endpoints = slices.Clone(endpoints)
	have.endpoints.Store(&endpoints)
	return nil
}

// Unset closes the port. Connections of TCP that are open stay open.
func (s *Server) Unset(p Port) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unset(p)
}

// Cut closes the port and its connections: nobody answers them any more.
func (s *Server) Cut(p Port) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, of := range s.conns {
		if of == p {
			_ = c.Close()
		}
	}
	return s.unset(p)
}

// unset closes the listener. The caller holds mu.
func (s *Server) unset(p Port) error {
	have := s.listeners[p]
	delete(s.listeners, p)
	if have == nil {
		return nil
	}
	return have.Close()
}

// Ports lists the ports that are open.
func (s *Server) Ports() []Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Port, 0, len(s.listeners))
	for p := range s.listeners {
		out = append(out, p)
	}
	return out
}

// listen opens the socket of one port; nil if the host has no such address.
func (s *Server) listen(p Port) (*listener, error) {
	out := &listener{port: p}
	out.endpoints.Store(&[]netip.AddrPort{})
	err := s.enter(func() error {
		if p.UDP {
			return s.listenUDP(out)
		}
		return s.listenTCP(out)
	})
	switch {
	case err == nil:
		return out, nil
	case errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT):
		s.log.Debug("no port on loopback", "port", p, "cause", err)
		return nil, nil
	case errors.Is(err, unix.EADDRINUSE):
		_ = s.enter(func() error {
			err = fmt.Errorf("%s is taken by %s: stop it or choose another port: %w", p.AddrPort, Holder(p.network(), p.Port()), err)
			return nil
		})
	}
	return nil, err
}

func (s *Server) listenTCP(out *listener) error {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(out.port.AddrPort))
	if err != nil {
		return err
	}
	out.Closer = ln
	s.wait.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				// Out of file descriptors, most likely: others need the time too.
				s.log.Warn("accept on loopback", "port", out.port, "cause", err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			s.wait.Go(func() { s.proxy(c, out) })
		}
	})
	return nil
}

// proxy joins a client with an endpoint until both have ended. Without an
// endpoint the client gets a reset.
func (s *Server) proxy(client *net.TCPConn, l *listener) {
	if !s.track(client, l.port) {
		return
	}
	defer s.release(client)
	server := s.dial(l)
	if server == nil {
		_ = client.SetLinger(0)
		return
	}
	if !s.track(server, l.port) {
		return
	}
	defer s.release(server)
	var both sync.WaitGroup
	both.Go(func() { pump(server, client) })
	both.Go(func() { pump(client, server) })
	both.Wait()
}

// pump copies one direction and passes its end on; after an error the
// connection is of no use to either side.
func pump(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil {
		_ = dst.SetLinger(0)
		_ = dst.Close()
		_ = src.Close()
		return
	}
	_ = dst.CloseWrite()
}

// dial connects to one of the endpoints, beginning anywhere.
func (s *Server) dial(l *listener) *net.TCPConn {
	endpoints := *l.endpoints.Load()
	for _, i := range rand.Perm(len(endpoints)) {
		var c net.Conn
		err := s.enter(func() (err error) {
			c, err = net.DialTimeout("tcp", endpoints[i].String(), dialTimeout)
			return err
		})
		if err != nil {
			s.log.Debug("connect to an endpoint", "port", l.port, "endpoint", endpoints[i], "cause", err)
			continue
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			return tcp
		}
	}
	return nil
}

// track registers a connection for the end, or closes it if that has begun.
func (s *Server) track(c io.Closer, p Port) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return false
	}
	s.conns[c] = p
	return true
}

func (s *Server) release(c io.Closer) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// Close ends all ports and connections and waits for their goroutines. The
// Server may be used again.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.Close())
	}
	for c := range s.conns {
		_ = c.Close()
	}
	clear(s.listeners)
	s.mu.Unlock()
	s.wait.Wait()
	s.mu.Lock()
	s.closed = false
	s.mu.Unlock()
	return errors.Join(errs...)
}
