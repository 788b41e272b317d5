package service

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// key is what a frontend answers to. Without an address it is a node port.
type key struct {
	family nft.Family
	addr   netip.Addr
	proto  uint8
	port   uint16
}

func (k key) node() bool { return !k.addr.IsValid() }

func (k key) String() string {
	name := protocolName(k.proto)
	if k.node() {
		return fmt.Sprintf("node port %d/%s", k.port, name)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.addr, k.port), name)
}

// connectionless tells that conntrack keeps an old endpoint for as long as the
// client goes on sending.
func (k key) connectionless() bool { return k.proto != unix.IPPROTO_TCP }

// value is the key in the maps of frontends.
func (k key) value() nft.Value {
	v := make(nft.Value, 0, 28) // an IPv6 address, and three fields with that of slot
	if !k.node() {
		v = v.Addr(k.addr)
	}
	return v.Proto(k.proto).Port(k.port)
}

// slot is the key in the maps of endpoints.
func (k key) slot(i int) nft.Value { return k.value().Mark(uint32(i)) }

// frontend is one address and port of a Service and where it leads.
type frontend struct {
	key       key
	owner     string           // "namespace/name"
	cluster   bool             // the address is a cluster IP
	endpoints []netip.AddrPort // by slot
	draining  []netip.AddrPort // sorted
	sticky    sticky           // timeout 0: no affinity
	allow     *[]netip.Prefix  // nil: everybody
}

func (f *frontend) balancer() balancer {
	return balancer{f.key.family, f.key.node(), len(f.endpoints)}
}

// verdict is where the frontend's element leads.
func (f *frontend) verdict() nft.Verdict {
	if f.allow != nil {
		return nft.Verdict{Kind: nft.VerdictGoto, Chain: f.guard().name()}
	}
	return nft.Verdict{Kind: nft.VerdictGoto, Chain: f.target()}
}

// target is the chain that chooses an endpoint.
func (f *frontend) target() string {
	switch {
	case len(f.endpoints) == 0:
		return chainReject
	case f.sticky.timeout > 0:
		return f.stickyName()
	}
	return f.balancer().name()
}

// serves tells whether connections to the endpoint may go on.
func (f *frontend) serves(e netip.AddrPort) bool {
	return slices.Contains(f.endpoints, e) || slices.Contains(f.draining, e)
}

func (s Service) id() string { return s.Namespace + "/" + s.Name }

func protocolNumber(name string) (uint8, error) {
	switch name {
	case "TCP", "":
		return unix.IPPROTO_TCP, nil
	case "UDP":
		return unix.IPPROTO_UDP, nil
	case "SCTP":
		return unix.IPPROTO_SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q is unknown: use TCP, UDP or SCTP", name)
}

func protocolName(n uint8) string {
	switch n {
	case unix.IPPROTO_TCP:
		return "TCP"
	case unix.IPPROTO_UDP:
		return "UDP"
	}
	return "SCTP"
}

// render lists the frontends of a Service. What is wrong with a port is an
// error; the other ports are listed all the same.
func render(s Service) ([]frontend, error) {
	var out []frontend
	var errs []error
	for _, p := range s.Ports {
		fs, err := renderPort(s, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s, port %d: %w", s.id(), p.Port, err))
			continue
		}
		out = append(out, fs...)
	}
	return out, errors.Join(errs...)
}

func renderPort(s Service, p Port) ([]frontend, error) {
	if len(s.ClusterIPs) == 0 {
		return nil, nil
	}
	proto, err := protocolNumber(p.Protocol)
	if err != nil {
		return nil, err
	}
	if p.Port == 0 {
		return nil, errors.New("a port from 1 to 65535 is needed")
	}
	within, err := byFamily(p.Endpoints)
	if err != nil {
		return nil, err
	}
	outside := within
	if p.External != nil {
		if outside, err = byFamily(p.External); err != nil {
			return nil, err
		}
	}
	draining, err := byFamily(p.Draining)
	if err != nil {
		return nil, err
	}
	var out []frontend
	add := func(k key, endpoints map[nft.Family][]netip.AddrPort) *frontend {
		k.proto = proto
		out = append(out, frontend{
			key: k, owner: s.id(), endpoints: endpoints[k.family], draining: draining[k.family],
			sticky: sticky{s.id(), p.Port, proto, s.Affinity},
		})
		return &out[len(out)-1]
	}
	at := func(a netip.Addr) key { return key{family: nft.FamilyOf(a), addr: a.Unmap(), port: p.Port} }
	used := map[nft.Family]bool{}
	for _, a := range s.ClusterIPs {
		used[nft.FamilyOf(a)] = true
		add(at(a), within).cluster = true
	}
	for _, a := range s.ExternalIPs {
		add(at(a), outside)
	}
	for _, a := range s.BalancerIPs {
		if f := add(at(a), outside); len(s.AllowFrom) > 0 {
			f.allow = &s.AllowFrom
		}
	}
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		if p.NodePort != 0 && used[f] {
			add(key{family: f, port: p.NodePort}, outside)
		}
	}
	return out, checkAddresses(out)
}

func checkAddresses(fs []frontend) error {
	for _, f := range fs {
		if f.key.node() {
			continue
		}
		a := f.key.addr
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("address %s cannot be that of a service: use a unicast address that is not loopback", a)
		}
	}
	return nil
}

// byFamily sorts endpoints and drops those named twice.
func byFamily(endpoints []netip.AddrPort) (map[nft.Family][]netip.AddrPort, error) {
	out := map[nft.Family][]netip.AddrPort{}
	for _, e := range endpoints {
		if !e.IsValid() || e.Port() == 0 {
			return nil, fmt.Errorf("endpoint %s has no valid address and port", e)
		}
		e = netip.AddrPortFrom(e.Addr().Unmap().WithZone(""), e.Port())
		f := nft.FamilyOf(e.Addr())
		out[f] = append(out[f], e)
	}
	for f, list := range out {
		slices.SortFunc(list, netip.AddrPort.Compare)
		out[f] = slices.Compact(list)
	}
	return out, nil
}

// assign gives wanted endpoints slots so that as few as possible change: those
// that stay keep theirs, the others fill the holes.
func assign(old, want []netip.AddrPort) []netip.AddrPort {
	out := make([]netip.AddrPort, len(want))
	left := make(map[netip.AddrPort]bool, len(want))
	for _, e := range want {
		left[e] = true
	}
	for i, e := range old {
		if i < len(out) && left[e] {
			out[i] = e
			delete(left, e)
		}
	}
	next := 0
	for _, e := range want {
		if !left[e] {
			continue
		}
		for out[next].IsValid() {
			next++
		}
		out[next] = e
	}
	return out
}

// Equal tells whether two Services lead to the same rules.
func (s Service) Equal(o Service) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && s.Affinity == o.Affinity &&
		s.HealthPort == o.HealthPort && s.LocalEndpoints == o.LocalEndpoints &&
		slices.Equal(s.ClusterIPs, o.ClusterIPs) && slices.Equal(s.ExternalIPs, o.ExternalIPs) &&
		slices.Equal(s.BalancerIPs, o.BalancerIPs) && slices.Equal(s.AllowFrom, o.AllowFrom) &&
		slices.Equal(s.Remote, o.Remote) && slices.EqualFunc(s.Ports, o.Ports, Port.Equal)
}

// Equal tells whether two ports lead to the same rules.
func (p Port) Equal(o Port) bool {
	return p.Name == o.Name && p.Protocol == o.Protocol && p.Port == o.Port && p.NodePort == o.NodePort &&
		slices.Equal(p.Endpoints, o.Endpoints) && slices.Equal(p.Draining, o.Draining) &&
		(p.External == nil) == (o.External == nil) && slices.Equal(p.External, o.External)
}

func (s Service) clone() Service {
	s.ClusterIPs = slices.Clone(s.ClusterIPs)
	s.ExternalIPs = slices.Clone(s.ExternalIPs)
	s.BalancerIPs, s.AllowFrom = slices.Clone(s.BalancerIPs), slices.Clone(s.AllowFrom)
	s.Remote = slices.Clone(s.Remote)
	s.Ports = slices.Clone(s.Ports)
	for i := range s.Ports {
		p := &s.Ports[i]
		p.Endpoints, p.External, p.Draining = slices.Clone(p.Endpoints), slices.Clone(p.External), slices.Clone(p.Draining)
	}
	return s
}
