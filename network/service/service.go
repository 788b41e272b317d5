// Package service puts declared Services in front of pods by maps of one
// nftables table, inet pausa, written over netlink.
package service

import "net/netip"

// Service is one Service with its resolved endpoints.
type Service struct {
	Namespace, Name string
	ClusterIPs      []netip.Addr // none: headless, nothing to do
	ExternalIPs     []netip.Addr
	Ports           []Port
}

// Port is one port of a Service and where it leads.
type Port struct {
	Name      string
	Protocol  string // "TCP", "UDP", "SCTP"
	Port      uint16
	NodePort  uint16           // 0: none
	Endpoints []netip.AddrPort // both families; each frontend uses those of its own
}
