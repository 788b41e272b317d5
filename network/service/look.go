package service

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/pausa-run/pausa/internal/nft"
)

// Found is what the kernel's maps hold for an address and a port.
type Found struct {
	Kind  string // "service", "node port", or "" for nothing
	Chain string // that the packet goes to: it picks one of the endpoints, or rejects
	// Endpoints in the order of their slots; none: it is rejected.
	Endpoints []netip.AddrPort
	ClusterIP bool // the address is a Service's: its other ports are rejected
}

// tables is what Look reads.
type tables interface {
	Sets() ([]string, error)
	Find(s nft.Set, key nft.Value) (e nft.Element, ok bool, err error)
}

// Look reads from the kernel where a packet to an address and port is sent.
// local tells that the address is one of the host's, where node ports answer.
// Without any rule of Services it finds nothing.
func Look(conn tables, to netip.AddrPort, protocol string, local bool) (Found, error) {
	proto, err := protocolNumber(protocol)
	if err != nil {
		return Found{}, err
	}
	have, err := conn.Sets()
	if err != nil {
		return Found{}, err
	}
	sets := setsOf(nft.FamilyOf(to.Addr()))
	if !slices.Contains(have, sets.frontends.Name) {
		return Found{}, nil
	}
	k := key{sets.family, to.Addr().Unmap(), proto, to.Port()}
	f, err := look(conn, sets.frontends, sets.endpoints, k, "service")
	if err != nil || f.Kind != "" {
		return f, err
	}
	if local && !to.Addr().IsLoopback() {
		k.addr = netip.Addr{}
		if f, err = look(conn, sets.nodePorts, sets.nodeEndpoints, k, "node port"); err != nil || f.Kind != "" {
			return f, err
		}
	}
	_, f.ClusterIP, err = conn.Find(sets.clusterIPs, nft.Value(nil).Addr(to.Addr()))
	return f, err
}

func look(conn tables, frontends, endpoints nft.Set, k key, kind string) (Found, error) {
	front, ok, err := conn.Find(frontends, k.value())
	if err != nil || !ok {
		return Found{}, err
	}
	f := Found{Kind: kind, Chain: front.Verdict.Chain}
	if f.Chain == chainReject {
		return f, nil
	}
	for i := 0; ; i++ { // the slots have no hole
		e, ok, err := conn.Find(endpoints, k.slot(i))
		if err != nil || !ok {
			return f, err
		}
		f.Endpoints = append(f.Endpoints, endpointOf(addrLen(k.family), e.Data))
	}
}

// addrLen is the length of an address of the family.
func addrLen(f nft.Family) int {
	if f == nft.IPv4 {
		return 4
	}
	return 16
}

// endpointOf reads an endpoint as it is in the maps: its address, then its port.
func endpointOf(length int, data nft.Value) netip.AddrPort {
	if len(data) < length+2 {
		return netip.AddrPort{}
	}
	a, _ := netip.AddrFromSlice(data[:length])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(data[length:]))
}
