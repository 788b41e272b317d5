package bridge

import (
	"errors"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/loopback"
	"github.com/pausa-run/pausa/internal/thread"
)

// localPorts keeps host ports open on loopback addresses for as long as this
// process lives; the rules, which stay, leave those addresses alone.
type localPorts struct {
	server *loopback.Server

	mu   sync.Mutex // guards what follows
	open map[localOwner][]loopback.Port
}

// localOwner is an attachment to a network.
type localOwner struct{ network, owner string }

// ServeLoopback makes host ports answer on 127.0.0.1 and ::1 too, from the next
// ADD and Sync until Close. It is for a process that stays: a plugin that is
// exec'ed ends before the pod.
func (p *Plugin) ServeLoopback() {
	enter := func(f func() error) error { return thread.InNetNS(p.hostNS, f) }
	p.local = &localPorts{server: loopback.New(p.log, enter), open: map[localOwner][]loopback.Port{}}
}

// serve opens the ports of one attachment.
func (l *localPorts) serve(network string, a attachment) error {
	if l == nil || len(a.Ports) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := localOwner{network, a.Owner}
	var errs []error
	for _, hp := range a.Ports {
		at, ok := hp.loopback()
		if !ok {
			continue
		}
		if err := l.server.Set(at, []netip.AddrPort{hp.Pod}); err != nil {
			errs = append(errs, err)
			continue
		}
		if !slices.Contains(l.open[key], at) {
			l.open[key] = append(l.open[key], at)
		}
	}
	return errors.Join(errs...)
}

// end closes the ports of one attachment and their connections.
func (l *localPorts) end(network, owner string) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut(localOwner{network, owner})
}

// cut closes ports. The caller holds mu.
func (l *localPorts) cut(key localOwner) error {
	var errs []error
	for _, at := range l.open[key] {
		errs = append(errs, l.server.Cut(at))
	}
	delete(l.open, key)
	return errors.Join(errs...)
}

// follow closes what another process has detached and opens what it attached.
// living tells who is attached by this process, perhaps since all was read. The
// caller holds the store's lock.
func (l *localPorts) follow(network string, all []attachment, living func(owner string) bool) error {
	if l == nil {
		return nil
	}
	attached := map[string]bool{}
	for _, a := range all {
		attached[a.Owner] = true
	}
	var errs []error
	l.mu.Lock()
	for key := range l.open {
		if key.network == network && !attached[key.owner] && !living(key.owner) {
			errs = append(errs, l.cut(key))
		}
	}
	l.mu.Unlock()
	for _, a := range all {
		errs = append(errs, l.serve(network, a))
	}
	return errors.Join(errs...)
}

func (l *localPorts) close() error {
	if l == nil {
		return nil
	}
	return l.server.Close()
}

// loopback is where the port is served on loopback: ports on every address at
// the loopback address of the family, those on a loopback address there, others
// and SCTP not at all.
func (p hostPort) loopback() (loopback.Port, bool) {
	addr := p.Host.Addr()
	switch {
	case p.Proto == unix.IPPROTO_SCTP:
		return loopback.Port{}, false
	case p.any() && addr.Is4():
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case p.any():
		addr = netip.IPv6Loopback()
	case !addr.IsLoopback():
		return loopback.Port{}, false
	}
	return loopback.Port{AddrPort: netip.AddrPortFrom(addr, p.Host.Port()), UDP: p.Proto == unix.IPPROTO_UDP}, true
}
