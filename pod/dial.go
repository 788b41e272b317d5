package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// dialPod opens a TCP connection from inside the pod's network namespace.
func dialPod(ctx context.Context, p Pod, port uint16) (*net.TCPConn, error) {
	targets := append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, p.IPs...)
	type result struct {
		conn *net.TCPConn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// The thread stays locked and ends with this goroutine: no other code runs in the pod's namespace.
		goruntime.LockOSThread()
		if !p.Config.HostNetwork {
			if err := enterNetNS(p.NetNS); err != nil {
				done <- result{err: err}
				return
			}
		}
		var errs []error
		for _, a := range targets {
			conn, err := dialTCP(ctx, netip.AddrPortFrom(a, port))
			if err == nil {
				done <- result{conn: conn}
				return
			}
			errs = append(errs, err)
		}
		done <- result{err: errors.Join(errs...)}
	}()
	r := <-done
	return r.conn, r.err
}

func dialTCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	var d net.Dialer // one literal address: the socket is made on this thread
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func enterNetNS(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}
