package trace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/thread"
)

// probed is how a connection went that was tried.
type probed struct {
	err  error
	what string
	cure string
}

// silence is for how long a datagram is listened after: an answer, or word that
// nobody is there, comes at once or not at all.
const silence = 500 * time.Millisecond

// probe connects from the place, as its programs would.
func (w *walk) probe(ctx context.Context) probed {
	began := time.Now()
	from, answered, err := w.dial(ctx)
	took := time.Since(began).Round(10 * time.Microsecond)
	by := w.answeredBy(from)
	switch {
	case err == nil && w.Protocol == "UDP" && !answered:
		return probed{what: fmt.Sprintf("a datagram was sent to %s%s and not refused; it was empty, so silence is no fault", w.To, by)}
	case err == nil:
		return probed{what: fmt.Sprintf("connected to %s%s in %s", w.To, by, took)}
	case errors.Is(err, unix.ECONNREFUSED):
		return probed{err, fmt.Sprintf("%s%s refused the connection", w.To, by), "see who listens there"}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return probed{err, fmt.Sprintf("no answer from %s%s within %s: packets are lost on the way", w.To, by, w.Timeout), "run this again with --packet: it names the rule that drops them"}
	default:
		var no syscall.Errno
		if errors.As(err, &no) {
			err = no
		}
		return probed{err, fmt.Sprintf("connect to %s: %v", w.To, err), "run this again with --packet: it names the rule that refuses them"}
	}
}

// dial opens one connection; from is its near end.
func (w *walk) dial(ctx context.Context) (from netip.AddrPort, answered bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	err = inside(w.From.NetNS, func() error {
		network := "tcp"
		if w.Protocol == "UDP" {
			network = "udp"
		}
		var d net.Dialer
		d.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { // its port, whatever becomes of it
				if at, bindErr := bindAny(int(fd), w.src); bindErr == nil {
					from = at
				}
			})
		}
		conn, err := d.DialContext(ctx, network, w.To.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if network == "udp" {
			answered, err = hear(conn)
		}
		return err
	})
	return from, answered, err
}

// hear sends an empty datagram and waits for what comes.
func hear(conn net.Conn) (answered bool, err error) {
	if _, err := conn.Write(nil); err != nil {
		return false, err
	}
	_ = conn.SetReadDeadline(time.Now().Add(silence))
	_, err = conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	return err == nil, err
}

// bindAny gives a socket a port now, so that it is known also of a connection that fails.
func bindAny(fd int, src netip.Addr) (netip.AddrPort, error) {
	if !src.IsValid() {
		return netip.AddrPort{}, unix.EADDRNOTAVAIL
	}
	var at unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{}}
	if src.Is6() {
		at = &unix.SockaddrInet6{}
	}
	if err := unix.Bind(fd, at); err != nil {
		return netip.AddrPort{}, err
	}
	got, err := unix.Getsockname(fd)
	switch got := got.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(src, uint16(got.Port)), err
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(src, uint16(got.Port)), err
	}
	return netip.AddrPort{}, err
}

// answeredBy says to which endpoint the host's connection tracking has sent a
// connection, "" when it is not known or the destination itself.
func (w *walk) answeredBy(from netip.AddrPort) string {
	if !from.IsValid() {
		return ""
	}
	f := netlink.InetFamily(family(w.To.Addr()))
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, f)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return ""
	}
	for _, fl := range flows {
		dst, _ := netip.AddrFromSlice(fl.Forward.DstIP)
		if fl.Forward.SrcPort != from.Port() || fl.Forward.DstPort != w.To.Port() || dst.Unmap() != w.To.Addr() {
			continue
		}
		by, _ := netip.AddrFromSlice(fl.Reverse.SrcIP)
		if end := netip.AddrPortFrom(by.Unmap(), fl.Reverse.SrcPort); end != w.To {
			return fmt.Sprintf(" (sent to %s%s)", end, w.nameOf(end.Addr()))
		}
	}
	return ""
}

// nameOf is ", pod NAME" of an address that is a pod's.
func (w *walk) nameOf(a netip.Addr) string {
	if p, ok := w.PodOf(a); ok {
		return ", " + p.Name
	}
	return ""
}

// inside calls f in a network namespace; "" is the caller's.
func inside(path string, f func() error) error {
	if path == "" {
		return f()
	}
	return thread.InNetNSAt(path, f)
}
