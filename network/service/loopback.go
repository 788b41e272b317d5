package service

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

	"github.com/pausa-run/pausa/internal/nft"
)

// dialTimeout bounds the wait for one endpoint before the next is tried.
const dialTimeout = 3 * time.Second

// loopback serves the node ports of TCP and UDP on 127.0.0.1 and ::1 by
// sockets of ours. NAT could do it for IPv4 alone, and only by letting packets
// with loopback addresses out to the bridge.
type loopback struct {
	log *slog.Logger

	mu        sync.Mutex // guards what follows
	listeners map[key]*listener
	failed    map[key]bool // tried again with each Sync
	conns     map[io.Closer]bool
	closed    bool
	wait      sync.WaitGroup // of goroutines
}

// listener is one socket of ours.
type listener struct {
	io.Closer
	endpoints atomic.Pointer[[]netip.AddrPort]
}

func newLoopback(log *slog.Logger) *loopback {
	return &loopback{log: log, listeners: map[key]*listener{}, failed: map[key]bool{}, conns: map[io.Closer]bool{}}
}

// follow brings the listeners of the keys, and those that failed before, to
// what the state says. Connections that are open stay open.
func (l *loopback) follow(s *state, keys []key) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.failed {
		keys = append(keys, k)
	}
	for k := range l.listeners {
		if s.frontends[k] == nil {
			keys = append(keys, k)
		}
	}
	var errs []error
	for _, k := range keys {
		if k.node() && k.proto != unix.IPPROTO_SCTP {
			errs = append(errs, l.set(k, s.frontends[k]))
		}
	}
	return errors.Join(errs...)
}

// set opens, updates or (f is nil) closes one listener. The caller holds mu.
func (l *loopback) set(k key, f *frontend) error {
	delete(l.failed, k)
	have := l.listeners[k]
	if f == nil {
		delete(l.listeners, k)
		if have == nil {
			return nil
		}
		return have.Close()
	}
	if have == nil {
		var err error
		if have, err = l.listen(k); err != nil {
			l.failed[k] = true
			return fmt.Errorf("node port %d of service %s on loopback: %w", k.port, f.owner, err)
		}
		if have == nil {
			return nil
		}
		l.listeners[k] = have
	}
	endpoints := slices.Clone(f.endpoints)
	have.endpoints.Store(&endpoints)
	return nil
}

// listen opens the socket of one node port; nil if the host has no such
// address.
func (l *loopback) listen(k key) (*listener, error) {
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), k.port)
	if k.family == nft.IPv6 {
		addr = netip.AddrPortFrom(netip.IPv6Loopback(), k.port)
	}
	out := &listener{}
	out.endpoints.Store(&[]netip.AddrPort{})
	var err error
	if k.proto == unix.IPPROTO_UDP {
		err = l.listenUDP(out, addr)
	} else {
		err = l.listenTCP(out, addr)
	}
	switch {
	case err == nil:
		return out, nil
	case errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT):
		l.log.Debug("no node port on loopback", "address", addr, "cause", err)
		return nil, nil
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%s is taken by %s: stop it or choose another node port: %w", addr, portOwner(k), err)
	}
	return nil, err
}

func (l *loopback) listenTCP(out *listener, addr netip.AddrPort) error {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	out.Closer = ln
	l.wait.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				// Out of file descriptors, most likely: others need the time too.
				l.log.Warn("accept on node port", "address", addr, "cause", err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			l.wait.Go(func() { l.proxy(c, *out.endpoints.Load()) })
		}
	})
	return nil
}

// proxy joins a client with an endpoint until both have ended. Without an
// endpoint the client gets a reset.
func (l *loopback) proxy(client *net.TCPConn, endpoints []netip.AddrPort) {
	if !l.track(client) {
		return
	}
	defer l.release(client)
	server := l.dial(endpoints)
	if server == nil {
		_ = client.SetLinger(0)
		return
	}
	if !l.track(server) {
		return
	}
	defer l.release(server)
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
func (l *loopback) dial(endpoints []netip.AddrPort) *net.TCPConn {
	for _, i := range rand.Perm(len(endpoints)) {
		c, err := net.DialTimeout("tcp", endpoints[i].String(), dialTimeout)
		if err != nil {
			l.log.Debug("endpoint of a node port", "endpoint", endpoints[i], "cause", err)
			continue
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			return tcp
		}
	}
	return nil
}

// track registers a connection for close, or closes it if that has begun.
func (l *loopback) track(c io.Closer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = c.Close()
		return false
	}
	l.conns[c] = true
	return true
}

func (l *loopback) release(c io.Closer) {
	_ = c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// close ends all listeners and connections and waits for their goroutines.
func (l *loopback) close() error {
	l.mu.Lock()
	l.closed = true
	var errs []error
	for _, ln := range l.listeners {
		errs = append(errs, ln.Close())
	}
	for c := range l.conns {
		_ = c.Close()
	}
	clear(l.listeners)
	clear(l.failed)
	l.mu.Unlock()
	l.wait.Wait()
	l.mu.Lock()
	l.closed = false // it may be used again after Remove
	l.mu.Unlock()
	return errors.Join(errs...)
}
