package service

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// What is wrapped by the errors of an Allocator.
var (
	ErrInUse      = errors.New("in use")
	ErrOutOfRange = errors.New("out of range")
	ErrExhausted  = errors.New("nothing left")
)

// Allocator hands out cluster IPs and node ports. The first try is a hash of
// the asker's key, so that the same Services get the same addresses again. It
// holds no more than memory: what was handed out before is reserved at start.
// Keys are "namespace/name".
type Allocator struct {
	cidrs        []netip.Prefix
	npMin, npMax uint16

	mu    sync.Mutex // guards what follows
	addrs map[netip.Addr]string
	ports map[nodePort]string
	owned map[string]*holding
}

// holding is all that one key has.
type holding struct {
	addrs []netip.Addr
	ports []nodePort
}

type nodePort struct {
	proto string
	port  uint16
}

// NewAllocator makes an allocator of the addresses of the ranges, but for the
// first of each and the last IPv4 one, and of the node ports from npMin to
// npMax.
func NewAllocator(cidrs []netip.Prefix, npMin, npMax uint16) *Allocator {
	a := &Allocator{
		npMin: npMin, npMax: npMax,
		addrs: map[netip.Addr]string{}, ports: map[nodePort]string{}, owned: map[string]*holding{},
	}
	for _, c := range cidrs {
		a.cidrs = append(a.cidrs, c.Masked())
	}
	return a
}

// ClusterIP gives key an address of the family, 4 or 6: the one that it has, or
// a new one. Errors wrap ErrOutOfRange (no range of that family) or
// ErrExhausted.
func (a *Allocator) ClusterIP(key string, family int) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if have, ok := a.held(key, family); ok {
		return have, nil
	}
	found := false
	for _, c := range a.cidrs {
		if familyNumber(c.Addr()) != family {
			continue
		}
		found = true
		if addr, ok := a.free(c, key); ok {
			a.takeAddr(key, addr)
			return addr, nil
		}
	}
	if !found {
		return netip.Addr{}, fmt.Errorf("cluster IP for %s: no IPv%d range is configured: %w", key, family, ErrOutOfRange)
	}
	return netip.Addr{}, fmt.Errorf("cluster IP for %s: every IPv%d address of %s is taken: widen the range: %w",
		key, family, a.ranges(), ErrExhausted)
}

// held is the first address of the family that key got.
func (a *Allocator) held(key string, family int) (netip.Addr, bool) {
	if h := a.owned[key]; h != nil {
		for _, addr := range h.addrs {
			if familyNumber(addr) == family {
				return addr, true
			}
		}
	}
	return netip.Addr{}, false
}

func (a *Allocator) holding(key string) *holding {
	h := a.owned[key]
	if h == nil {
		h = &holding{}
		a.owned[key] = h
	}
	return h
}

func (a *Allocator) takeAddr(key string, addr netip.Addr) {
	if a.addrs[addr] == "" {
		a.addrs[addr] = key
		h := a.holding(key)
		h.addrs = append(h.addrs, addr)
	}
}

func (a *Allocator) takePort(key string, p nodePort) {
	if a.ports[p] == "" {
		a.ports[p] = key
		h := a.holding(key)
		h.ports = append(h.ports, p)
	}
}

// free looks for a free address from the one that the key's hash names.
func (a *Allocator) free(c netip.Prefix, key string) (netip.Addr, bool) {
	n := usable(c)
	if n == 0 {
		return netip.Addr{}, false
	}
	start := hash(key) % n
	// More tries than there are addresses in use are never needed.
	for i := range min(n, uint64(len(a.addrs))+1) {
		addr := nth(c, 1+(start+i)%n)
		if _, taken := a.addrs[addr]; !taken {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// usable is how many addresses of a range are handed out: all but the first
// and, for IPv4, the last; of a large IPv6 range the first 2^32.
func usable(c netip.Prefix) uint64 {
	bits := min(c.Addr().BitLen()-c.Bits(), 32)
	n := uint64(1) << bits
	if c.Addr().Is4() {
		return max(n, 2) - 2
	}
	return n - 1
}

// nth is the address that many behind the range's first.
func nth(c netip.Prefix, n uint64) netip.Addr {
	sum := new(big.Int).SetBytes(c.Addr().AsSlice())
	sum.Add(sum, new(big.Int).SetUint64(n))
	addr, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, c.Addr().BitLen()/8)))
	return addr
}

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	// FNV's low bits of similar strings are close: mix the high ones in.
	x := h.Sum64()
	x ^= x >> 32
	x *= 0x9e3779b97f4a7c15
	return x ^ x>>29
}

func familyNumber(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

func (a *Allocator) ranges() string {
	out := make([]string, len(a.cidrs))
	for i, c := range a.cidrs {
		out[i] = c.String()
	}
	return strings.Join(out, ", ")
}

// ReserveClusterIP takes an address for key. It is idempotent. Errors wrap
// ErrInUse and name the owner, or ErrOutOfRange and name the ranges.
func (a *Allocator) ReserveClusterIP(key string, addr netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	addr = addr.Unmap()
	if !slices.ContainsFunc(a.cidrs, func(c netip.Prefix) bool { return handsOut(c, addr) }) {
		return fmt.Errorf("cluster IP %s of %s: not an address to hand out of %s: choose another or leave it empty: %w",
			addr, key, a.ranges(), ErrOutOfRange)
	}
	if owner, taken := a.addrs[addr]; taken && owner != key {
		return fmt.Errorf("cluster IP %s of %s: it belongs to service %s: choose another or leave it empty: %w",
			addr, key, owner, ErrInUse)
	}
	a.takeAddr(key, addr)
	return nil
}

// handsOut tells whether the range has the address for a Service.
func handsOut(c netip.Prefix, addr netip.Addr) bool {
	if !c.Contains(addr) || addr == c.Addr() || usable(c) == 0 {
		return false
	}
	last := addr.Is4() && addr == nth(c, usable(c)+1)
	return !last
}

// NodePort gives key a node port of its own for the protocol ("TCP", "UDP",
// "SCTP"); each call gives another one. Errors wrap ErrExhausted.
func (a *Allocator) NodePort(key, proto string) (uint16, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.npMin == 0 || a.npMax < a.npMin {
		return 0, fmt.Errorf("node port for %s: no range is configured: %w", key, ErrExhausted)
	}
	n := uint64(a.npMax-a.npMin) + 1
	start := hash(key+"/"+proto) % n
	for i := range n {
		p := nodePort{proto, a.npMin + uint16((start+i)%n)}
		if _, taken := a.ports[p]; !taken {
			a.takePort(key, p)
			return p.port, nil
		}
	}
	return 0, fmt.Errorf("node port for %s: every %s port of %d-%d is taken: widen the range: %w",
		key, proto, a.npMin, a.npMax, ErrExhausted)
}

// ReserveNodePort takes a node port for key. It is idempotent. Errors wrap
// ErrInUse and name the owner, or ErrOutOfRange and name the range.
func (a *Allocator) ReserveNodePort(key, proto string, port uint16) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := strconv.Itoa(int(port)) + "/" + proto
	if port == 0 || port < a.npMin || port > a.npMax {
		return fmt.Errorf("node port %s of %s: the range is %d-%d: choose another or leave it empty: %w",
			name, key, a.npMin, a.npMax, ErrOutOfRange)
	}
	p := nodePort{proto, port}
	if owner, taken := a.ports[p]; taken && owner != key {
		return fmt.Errorf("node port %s of %s: it belongs to service %s: choose another or leave it empty: %w",
			name, key, owner, ErrInUse)
	}
	a.takePort(key, p)
	return nil
}

// Release gives back all that key has.
func (a *Allocator) Release(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.owned[key]
	if h == nil {
		return
	}
	for _, addr := range h.addrs {
		delete(a.addrs, addr)
	}
	for _, p := range h.ports {
		delete(a.ports, p)
	}
	delete(a.owned, key)
}
