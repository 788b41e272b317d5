package bridge

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/loopback"
	"github.com/pausa-run/pausa/internal/thread"
)

// portsFree tries to bind each port in the host's namespace: a process that
// listens there would lose its clients to the pod without a word.
func (p *Plugin) portsFree(ports []hostPort) error {
	if len(ports) == 0 {
		return nil
	}
	return thread.InNetNS(p.hostNS, func() error {
		for _, port := range ports {
			err := tryBind(port)
			if errors.Is(err, unix.EADDRINUSE) {
				return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("publish host port %s", port),
					fmt.Sprintf("%s of this host listens there; stop it or choose another port", loopback.Holder(protoName(port.Proto), port.Host.Port())))
			}
		}
		return nil
	})
}

// tryBind reports EADDRINUSE; other errors (an address that the host does not
// have, no SCTP) say nothing about a listener.
func tryBind(p hostPort) error {
	kind, domain := unix.SOCK_STREAM, unix.AF_INET6
	if p.Proto == unix.IPPROTO_UDP {
		kind = unix.SOCK_DGRAM
	}
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(p.Host.Port()), Addr: p.Host.Addr().As16()}
	if p.Host.Addr().Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(p.Host.Port()), Addr: p.Host.Addr().As4()}
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, int(p.Proto))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if domain == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	if kind == unix.SOCK_STREAM { // connections that have ended do not count
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	return unix.Bind(fd, sa)
}
