package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// spoofGuard is table bridge pausa: what comes in by a pod's port must have the
// pod's hardware and IP address. Only the bridge family sees the port's name;
// table inet sees the bridge.
type spoofGuard struct {
	netNS int
	mu    sync.Mutex // guards conn
	conn  *nftables.Conn
}

const (
	reg32 = unix.NFT_REG32_00
	// chunk is how many elements go into one message; the library loses the rest of a longer one.
	chunk = 500
	// socketBuffer holds the transaction of some thousand pods.
	socketBuffer = 4 << 20
)

func openSpoofGuard(netNS int) (*spoofGuard, error) {
	g := &spoofGuard{netNS: netNS}
	if err := g.dial(); err != nil {
		return nil, err
	}
	return g, nil
}

// dial connects. The caller holds mu or is the only user.
func (g *spoofGuard) dial() (err error) {
	g.conn, err = nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(g.netNS), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(socketBuffer), c.SetReadBuffer(socketBuffer))
	}))
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	return nil
}

// flush commits what the caller, who holds mu, has collected. After an error it connects anew:
// answers may still be on their way in the old socket.
func (g *spoofGuard) flush() error {
	err := g.conn.Flush()
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		err = fmt.Errorf("%w (the kernel needs NF_TABLES_BRIDGE)", err)
	}
	return errors.Join(fmt.Errorf("write anti-spoofing rules: %w", err), g.conn.CloseLasting(), g.dial())
}

func (g *spoofGuard) close() error { return g.conn.CloseLasting() }

func spoofTable() *nftables.Table {
	return &nftables.Table{Name: nft.TableName, Family: nftables.TableFamilyBridge}
}

func spoofChain(bridge string) *nftables.Chain {
	return &nftables.Chain{
		Name: "antispoof-" + bridge, Table: spoofTable(), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300),
	}
}

// sourceSet is { port name . hardware address . IP address }.
func sourceSet(bridge string, f nft.Family) *nftables.Set {
	addr := nftables.TypeIPAddr
	if f == nft.IPv6 {
		addr = nftables.TypeIP6Addr
	}
	return &nftables.Set{
		ID:    uint32(f), // unlike the others in a transaction; with 0 the library counts in a variable without a lock
		Table: spoofTable(), Name: "sources" + digit(f) + "-" + bridge, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, addr),
	}
}

// sources are the addresses that the attachment may send from. An IPv6 host
// also uses its link-local address, and none at all before it has one.
func sources(a attachment, f nft.Family) []nftables.SetElement {
	mac, err := net.ParseMAC(a.MAC)
	if err != nil {
		return nil
	}
	var addrs []netip.Addr
	for _, addr := range a.Addrs {
		if nft.FamilyOf(addr) == f {
			addrs = append(addrs, addr)
		}
	}
	if f == nft.IPv6 && len(addrs) > 0 {
		addrs = append(addrs, linkLocal(mac), netip.IPv6Unspecified())
	}
	elems := make([]nftables.SetElement, len(addrs))
	for i, addr := range addrs {
		elems[i].Key = nft.Value(nil).IfName(a.Veth).Ether(mac).Addr(addr)
	}
	return elems
}

// replace writes the whole guard of one bridge, in one transaction.
func (g *spoofGuard) replace(bridge string, all []attachment) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conn.AddTable(spoofTable())
	for _, f := range families() {
		set := sourceSet(bridge, f)
		var elems []nftables.SetElement
		for _, a := range all {
			elems = append(elems, sources(a, f)...)
		}
		if err := g.conn.AddSet(set, nil); err != nil {
			return err
		}
		g.conn.FlushSet(set)
		for len(elems) > 0 {
			n := min(len(elems), chunk)
			if err := g.conn.SetAddElements(set, elems[:n]); err != nil {
				return err
			}
			elems = elems[n:]
		}
	}
	chain := spoofChain(bridge)
	g.conn.AddChain(chain)
	g.conn.FlushChain(chain)
	for _, exprs := range spoofRules(bridge) {
		g.conn.AddRule(&nftables.Rule{Table: spoofTable(), Chain: chain, Exprs: exprs})
	}
	return g.flush()
}

// add lets the attachment send; ENOENT is wrapped when somebody flushed the table.
func (g *spoofGuard) add(bridge string, a attachment) error {
	return g.change(bridge, a, (*nftables.Conn).SetAddElements)
}

// remove takes that back; it is not an error if the table was flushed.
func (g *spoofGuard) remove(bridge string, a attachment) error {
	err := g.change(bridge, a, (*nftables.Conn).SetDeleteElements)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (g *spoofGuard) change(bridge string, a attachment, do func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range families() {
		if elems := sources(a, f); len(elems) > 0 {
			if err := do(g.conn, sourceSet(bridge, f), elems); err != nil {
				return fmt.Errorf("write anti-spoofing elements: %w", err)
			}
		}
	}
	return g.flush()
}

// drops reads the counter of packets that were dropped.
func (g *spoofGuard) drops(bridge string) (packets uint64, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	rules, err := g.conn.GetRules(spoofTable(), spoofChain(bridge))
	if err != nil {
		return 0, fmt.Errorf("read anti-spoofing counters: %w", err)
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				packets += c.Packets
			}
		}
	}
	return packets, nil
}

// has tells whether the kernel holds all the attachment's sources.
func (g *spoofGuard) has(bridge string, a attachment) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range families() {
		wanted := sources(a, f)
		if len(wanted) == 0 {
			continue
		}
		found, err := g.conn.GetSetElements(sourceSet(bridge, f))
		if err != nil {
			return false, fmt.Errorf("read anti-spoofing elements: %w", err)
		}
		keys := make(map[string]bool, len(found))
		for _, e := range found {
			keys[string(e.Key)] = true
		}
		for _, e := range wanted {
			if !keys[string(e.Key)] {
				return false, nil
			}
		}
	}
	return true, nil
}

// The header fields that spoofRules reads.
type field struct {
	base        expr.PayloadBase
	offset, len uint32
}

// spoofRules are, with PORTS the prefix of the names of the bridge's pod ports:
//
//	iifname != "PORTS*" accept
//	meta protocol ip iifname . ether saddr . ip saddr @sources4 accept
//	meta protocol arp iifname . arp saddr ether . arp saddr ip != @sources4 counter drop
//	meta protocol arp iifname . ether saddr . arp saddr ip @sources4 accept
//	meta protocol ip6 icmpv6 type nd-neighbor-advert iifname . ether saddr . icmpv6 taddr != @sources6 counter drop
//	meta protocol ip6 icmpv6 type nd-router-advert counter drop
//	meta protocol ip6 icmpv6 type nd-redirect counter drop
//	meta protocol ip6 iifname . ether saddr . ip6 saddr @sources6 accept
//	counter drop
func spoofRules(bridge string) [][]expr.Any {
	ether := field{expr.PayloadBaseLLHeader, 6, 6}
	arpEther, arpIP := field{expr.PayloadBaseNetworkHeader, 8, 6}, field{expr.PayloadBaseNetworkHeader, 14, 4}
	ip4, ip6 := field{expr.PayloadBaseNetworkHeader, 12, 4}, field{expr.PayloadBaseNetworkHeader, 8, 16}
	target := field{expr.PayloadBaseTransportHeader, 8, 16}
	s4, s6 := sourceSet(bridge, nft.IPv4).Name, sourceSet(bridge, nft.IPv6).Name
	return [][]expr.Any{
		{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg32}, cmp(expr.CmpOpNeq, []byte(VethPrefix(bridge))), verdict(expr.VerdictAccept)},
		join(protocol(unix.ETH_P_IP), source(s4, false, ether, ip4), verdict(expr.VerdictAccept)),
		join(protocol(unix.ETH_P_ARP), source(s4, true, arpEther, arpIP), drop()),
		join(protocol(unix.ETH_P_ARP), source(s4, false, ether, arpIP), verdict(expr.VerdictAccept)),
		join(protocol(unix.ETH_P_IPV6), icmp6(136), source(s6, true, ether, target), drop()),
		join(protocol(unix.ETH_P_IPV6), icmp6(134), drop()),
		join(protocol(unix.ETH_P_IPV6), icmp6(137), drop()),
		join(protocol(unix.ETH_P_IPV6), source(s6, false, ether, ip6), verdict(expr.VerdictAccept)),
		drop(),
	}
}

func join(parts ...any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		switch p := p.(type) {
		case []expr.Any:
			all = append(all, p...)
		case expr.Any:
			all = append(all, p)
		}
	}
	return all
}

func cmp(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg32, Data: data}
}

func verdict(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }

func drop() []expr.Any { return []expr.Any{&expr.Counter{}, verdict(expr.VerdictDrop)} }

func protocol(etherType uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg32},
		cmp(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, etherType)),
	}
}

func icmp6(kind byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32},
		cmp(expr.CmpOpEq, []byte{unix.IPPROTO_ICMPV6}),
		&expr.Payload{DestRegister: reg32, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		cmp(expr.CmpOpEq, []byte{kind}),
	}
}

// source looks port name . hardware address . address up in the set.
func source(set string, invert bool, ether, addr field) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg32},
		&expr.Payload{DestRegister: reg32 + 4, Base: ether.base, Offset: ether.offset, Len: ether.len},
		&expr.Payload{DestRegister: reg32 + 6, Base: addr.base, Offset: addr.offset, Len: addr.len},
		&expr.Lookup{SourceRegister: reg32, SetName: set, Invert: invert},
	}
}
