package service

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// flow is one tracked connection: where the client sent it and who answers.
type flow struct {
	proto uint8
	to    netip.AddrPort // original destination
	by    netip.AddrPort // source of the replies
}

// flows is the kernel's connection tracking.
type flows interface {
	// Forget deletes the flows of the family and protocol that match.
	Forget(f nft.Family, proto uint8, match func(flow) bool) error
	// LocalAddrs lists the host's own addresses.
	LocalAddrs() ([]netip.Addr, error)
	Close() error
}

// forgetFlows deletes what conntrack knows of stale frontends' connections but
// for those that lead to an endpoint in force; a client that goes on sending
// then gets one of these. What fails is tried again after the next Sync.
func (t *Table) forgetFlows() error {
	type kind struct {
		family nft.Family
		proto  uint8
	}
	stale := map[kind]map[key]bool{}
	node := false
	for k := range t.stale {
		if !k.connectionless() {
			continue
		}
		of := kind{k.family, k.proto}
		if stale[of] == nil {
			stale[of] = map[key]bool{}
		}
		stale[of][k] = true
		node = node || k.node()
	}
	var local []netip.Addr
	if node {
		var err error
		if local, err = t.flows.LocalAddrs(); err != nil {
			return fmt.Errorf("forget stale connections: %w", err)
		}
	}
	for of, keys := range stale {
		if err := t.flows.Forget(of.family, of.proto, t.state.staleFlows(of.family, keys, local)); err != nil {
			return fmt.Errorf("forget stale connections: %w", err)
		}
	}
	t.stale = emptied(t.stale)
	return nil
}

// staleFlows matches flows of the frontends that no endpoint of theirs answers.
func (s *state) staleFlows(f nft.Family, keys map[key]bool, local []netip.Addr) func(flow) bool {
	isLocal := make(map[netip.Addr]bool, len(local))
	for _, a := range local {
		isLocal[a] = true
	}
	return func(fl flow) bool {
		k := key{f, fl.to.Addr(), fl.proto, fl.to.Port()}
		if !keys[k] {
			k.addr = netip.Addr{}
			// A node port is one only at the host's own addresses.
			if !keys[k] || !isLocal[fl.to.Addr()] || fl.to.Addr().IsLoopback() {
				return false
			}
		}
		front := s.frontends[k]
		return front == nil || !front.serves(fl.by)
	}
}

// handle is the real kernel.
type handle struct {
	nl *netlink.Handle
	ct *conntrack
}

func openHandle() (*handle, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	ct, err := openConntrack()
	if err != nil {
		nl.Close()
		return nil, err
	}
	return &handle{nl, ct}, nil
}

func (h *handle) Close() error {
	h.nl.Close()
	return h.ct.conn.Close()
}

// Forget deletes flows.
func (h *handle) Forget(f nft.Family, proto uint8, match func(flow) bool) error {
	return h.ct.forget(f, proto, match)
}

// LocalAddrs lists the addresses of all interfaces.
func (h *handle) LocalAddrs() ([]netip.Addr, error) {
	addrs, err := h.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}

// parseKey reads the key of a frontend's element.
func parseKey(f nft.Family, v nft.Value) (key, bool) {
	k := key{family: f}
	if n := len(v) - 8; n > 0 {
		a, ok := netip.AddrFromSlice(v[:n])
		if !ok {
			return k, false
		}
		k.addr, v = a, v[n:]
	}
	if len(v) != 8 {
		return k, false
	}
	k.proto, k.port = v[0], binary.BigEndian.Uint16(v[4:])
	return k, true
}
