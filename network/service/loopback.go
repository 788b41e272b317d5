package service

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/loopback"
	"github.com/pausa-run/pausa/internal/nft"
)

// localPorts keeps the node ports of TCP and UDP open on 127.0.0.1 and ::1. The
// Table's lock guards it.
type localPorts struct {
	server *loopback.Server
	open   map[key]bool
	failed map[key]bool // tried again with each Sync
}

func newLocalPorts(server *loopback.Server) *localPorts {
	return &localPorts{server: server, open: map[key]bool{}, failed: map[key]bool{}}
}

// follow brings the listeners of the keys (all: of all that are open, too), and
// those that failed before, to what the state says. Connections that are open
// stay open.
func (l *localPorts) follow(s *state, keys []key, all bool) error {
	for k := range l.failed {
		keys = append(keys, k)
	}
	if all {
		for k := range l.open {
			if s.frontends[k] == nil {
				keys = append(keys, k)
			}
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

// set opens, updates or (f is nil) closes one listener.
func (l *localPorts) set(k key, f *frontend) error {
	delete(l.failed, k)
	if f == nil {
		delete(l.open, k)
		return l.server.Unset(k.loopback())
	}
	if err := l.server.Set(k.loopback(), f.endpoints); err != nil {
		l.failed[k] = true
		return fmt.Errorf("node port %d of service %s on loopback: %w", k.port, f.owner, err)
	}
	l.open[k] = true
	return nil
}

func (l *localPorts) close() error {
	clear(l.open)
	clear(l.failed)
	return l.server.Close()
}

// loopback is the node port at the loopback address of its family.
func (k key) loopback() loopback.Port {
	addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if k.family == nft.IPv6 {
		addr = netip.IPv6Loopback()
	}
	return loopback.Port{AddrPort: netip.AddrPortFrom(addr, k.port), UDP: k.proto == unix.IPPROTO_UDP}
}
