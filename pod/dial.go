package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	goruntime "runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Dial opens a TCP connection from inside the pod's network namespace, without a
// process of its own. A pod that is not ready is an error that wraps ErrState.
func (m *Manager) Dial(ctx context.Context, podID string, addr netip.AddrPort) (net.Conn, error) {
	p, err := m.Pod(podID)
	if err != nil {
		return nil, err
	}
	if !p.Ready {
		return nil, fmt.Errorf("connect to %s in pod %s: it is not ready: %w", addr, p.ID, ErrState)
	}
	return dialFrom(ctx, p, addr)
}

// dialPod opens a connection to the pod's own port: on 127.0.0.1, else ::1, else its own address.
func dialPod(ctx context.Context, p Pod, port uint16) (*net.TCPConn, error) {
	var errs []error
	for _, a := range append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, p.IPs...) {
		conn, err := dialFrom(ctx, p, netip.AddrPortFrom(a, port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func dialFrom(ctx context.Context, p Pod, to netip.AddrPort) (*net.TCPConn, error) {
	netns := p.NetNS
	if p.Config.HostNetwork {
		netns = ""
	}
	fd, err := socketIn(netns, to.Addr().Is4() || to.Addr().Is4In6())
	if err != nil {
		return nil, err
	}
	conn, err := connect(ctx, fd, to)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return conn, nil
}

// socketIn makes a TCP socket in a network namespace ("" is our own). Only the
// making happens there: a socket stays in its namespace, whoever uses it.
func socketIn(netns string, v4 bool) (int, error) {
	family := unix.AF_INET6
	if v4 {
		family = unix.AF_INET
	}
	kind := unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	if netns == "" {
		return unix.Socket(family, kind, 0)
	}
	goruntime.LockOSThread()
	back, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		goruntime.UnlockOSThread()
		return 0, fmt.Errorf("open own network namespace: %w", err)
	}
	defer func() { _ = unix.Close(back) }()
	if err := enterNetNS(netns); err != nil {
		goruntime.UnlockOSThread() // it never left
		return 0, err
	}
	fd, err := unix.Socket(family, kind, 0)
	if home := unix.Setns(back, unix.CLONE_NEWNET); home != nil {
		// The thread stays locked: nothing else runs on it, and it ends with this goroutine.
		if err == nil {
			_ = unix.Close(fd)
		}
		return 0, fmt.Errorf("come back from network namespace %s: %w", netns, home)
	}
	goruntime.UnlockOSThread()
	return fd, err
}

// connect waits for a connection, or for the end of ctx, without holding a thread. It owns fd.
func connect(ctx context.Context, fd int, to netip.AddrPort) (*net.TCPConn, error) {
	err := unix.Connect(fd, sockaddr(to))
	f := os.NewFile(uintptr(fd), "socket") // not blocking: joins the poller
	defer f.Close()
	if errors.Is(err, unix.EINPROGRESS) {
		err = awaitConnect(ctx, f)
	}
	if err != nil {
		return nil, err
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func awaitConnect(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		if _, err := unix.Getpeername(int(fd)); err == nil {
			return true
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			result = err
		case code != 0:
			result = unix.Errno(code)
		}
		return result != nil // else not yet: called again when the socket is writable
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(result, err)
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if a := to.Addr().Unmap(); a.Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
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
