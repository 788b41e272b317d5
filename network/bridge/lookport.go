package bridge

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/pausa-run/pausa/internal/nft"
)

// tables is what LookPort reads.
type tables interface {
	Sets() ([]string, error)
	Find(s nft.Set, key nft.Value) (e nft.Element, ok bool, err error)
}

// LookPort reads from the kernel to which pod's port a host port leads, on any of
// the networks; the zero AddrPort if it is none. local tells that the address is
// one of the host's.
func LookPort(conn tables, to netip.AddrPort, protocol string, local bool) (netip.AddrPort, error) {
	proto, ok := protoNumber(protocol)
	if !ok || to.Addr().IsLoopback() { // there, sockets of the daemon answer
		return netip.AddrPort{}, nil
	}
	have, err := conn.Sets()
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr := to.Addr().Unmap()
	f := nft.FamilyOf(addr)
	exact, any := rules{}.portMap(f).Name, rules{}.anyPortMap(f).Name
	for _, name := range have {
		var set nft.Set
		key := nft.Value(nil)
		switch {
		case strings.HasPrefix(name, exact):
			set, key = rules{strings.TrimPrefix(name, exact)}.portMap(f), key.Addr(addr).Proto(proto).Port(to.Port())
		case local && strings.HasPrefix(name, any):
			set, key = rules{strings.TrimPrefix(name, any)}.anyPortMap(f), key.Proto(proto).Port(to.Port())
		default:
			continue
		}
		e, ok, err := conn.Find(set, key)
		if err != nil {
			return netip.AddrPort{}, err
		}
		if a, fits := netip.AddrFromSlice(e.Data[:min(addr.BitLen()/8, len(e.Data))]); ok && fits && len(e.Data) >= addr.BitLen()/8+2 {
			return netip.AddrPortFrom(a, binary.BigEndian.Uint16(e.Data[addr.BitLen()/8:])), nil
		}
	}
	return netip.AddrPort{}, nil
}
