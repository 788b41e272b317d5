// Package service puts declared Services in front of pods by maps of one
// nftables table, inet pausa, written over netlink.
//
// A packet's address, protocol and port are looked up in svc-frontends4 (the
// port alone in svc-nodeports4, if the address is the host's own). The element
// leads to a chain shared by all frontends with as many endpoints, svc-lb4-3,
// which picks a slot at random and looks the endpoint up in svc-endpoints4. So
// a changed endpoint is one changed element, however many Services there are,
// and `nft list ruleset` prints all of it. Frontends without endpoints, and
// other ports of cluster IPs, are rejected at once (the host's own datagrams
// with EPERM); addresses of the service ranges that nobody has are dropped.
//
// Pods see the real address of every client. Only a pod that gets itself is
// masqueraded, and clients of 127.0.0.1 and ::1 node ports, which listeners of
// this process serve.
//
// Bridged packets must come to the rules as routed ones:
// net.bridge.bridge-nf-call-iptables is 0, and pods send all by the host.
package service

import (
	"net/netip"
	"time"
)

// ID names a Service.
type ID struct{ Namespace, Name string }

func (id ID) String() string { return id.Namespace + "/" + id.Name }

// Service is one Service with its resolved endpoints.
type Service struct {
	Namespace, Name string
	ClusterIPs      []netip.Addr // none: headless, nothing to do
	ExternalIPs     []netip.Addr
	// BalancerIPs are further addresses for the outside, for clients of the
	// ranges AllowFrom alone, if there are any.
	BalancerIPs []netip.Addr
	AllowFrom   []netip.Prefix
	Ports       []Port
	// Affinity, if not 0, leads a client to the endpoint that it had last, until
	// it has not connected for so long.
	Affinity time.Duration
	// Remote are addresses of endpoints that are not on this host. What others
	// than this host's pods send there comes from the host's own address, or the
	// answers would take another way.
	Remote []netip.Addr
	// HealthPort, if not 0, tells load balancers over HTTP whether there are
	// ready endpoints on this host: LocalEndpoints of them.
	HealthPort     uint16
	LocalEndpoints int
}

// Port is one port of a Service and where it leads.
type Port struct {
	Name      string
	Protocol  string // "TCP", "UDP", "SCTP"
	Port      uint16
	NodePort  uint16           // 0: none
	Endpoints []netip.AddrPort // both families; each frontend uses those of its own
	// External are the endpoints of all frontends but the cluster IPs; nil: the
	// same ones.
	External []netip.AddrPort
	// Draining are endpoints that get no new connections and keep those that
	// they have.
	Draining []netip.AddrPort
}
