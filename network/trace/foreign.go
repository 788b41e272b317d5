package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// foreign walks the packet through the chains of others: each base chain on its
// way sees it, and any of them may drop it, whatever ours say.
func (w *walk) foreign(end netip.AddrPort) {
	conn, err := nftables.New()
	if err != nil {
		w.add("other rules", Warn, fmt.Sprintf("rules of others cannot be read: %v", err), "")
		return
	}
	chains, err := others(conn, end.Addr())
	if err != nil {
		w.add("other rules", Warn, fmt.Sprintf("rules of others cannot be read: %v", err), "")
		return
	}
	seen := 0
	for _, hop := range w.hops(end) {
		for _, c := range chains {
			if *c.Hooknum != *hop.hook {
				continue
			}
			seen++
			packet := hop.packet
			if c.Priority == nil || *c.Priority >= dnatPriority || hop.translated {
				packet.dst = end
			}
			f := follow(conn, c, packet)
			switch f.verdict {
			case drops:
				w.add("other rules", Stop, fmt.Sprintf("chain %s drops it: %s", nameOfChain(c), f.why), w.cureOf(c, f))
				return
			case unsure:
				w.add("other rules", Warn, fmt.Sprintf("chain %s may drop it: %s", nameOfChain(c), f.why), w.cureOf(c, f))
			}
		}
	}
	w.add("other rules", OK, fmt.Sprintf("%d chains of others let it pass", seen), "")
}

// dnatPriority is where Services are translated: what comes later sees the endpoint.
const dnatPriority = -100

// hop is one hook on the packet's way.
type hop struct {
	hook       *nftables.ChainHook
	packet     packet
	translated bool
}

// packet is the first one of a connection.
type packet struct {
	src, dst netip.AddrPort
	proto    uint8
	iif, oif string
}

func (w *walk) hops(end netip.AddrPort) []hop {
	p := packet{src: netip.AddrPortFrom(w.src, 0), dst: w.To, proto: unix.IPPROTO_TCP}
	if w.Protocol == "UDP" {
		p.proto = unix.IPPROTO_UDP
	}
	out := w.linkTo(end.Addr())
	if w.From.NetNS == "" {
		p.oif = out
		return []hop{{nftables.ChainHookOutput, p, false}, {nftables.ChainHookPostrouting, p, true}}
	}
	p.iif = w.link
	if l, err := w.host.LinkByName(w.link); err == nil && l.Attrs().MasterIndex != 0 {
		if master, err := w.host.LinkByIndex(l.Attrs().MasterIndex); err == nil {
			p.iif = master.Attrs().Name
		}
	}
	hops := []hop{{nftables.ChainHookPrerouting, p, false}}
	if w.isLocal(end.Addr()) {
		return append(hops, hop{nftables.ChainHookInput, p, true})
	}
	p.oif = out
	hops = append(hops, hop{nftables.ChainHookForward, p, true})
	p.iif = ""
	return append(hops, hop{nftables.ChainHookPostrouting, p, true})
}

func (w *walk) linkTo(a netip.Addr) string {
	routes, err := w.host.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return ""
	}
	l, err := w.host.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return ""
	}
	return l.Attrs().Name
}

// others are the filtering base chains that are not ours, in the order in which
// the kernel asks them.
func others(conn *nftables.Conn, to netip.Addr) ([]*nftables.Chain, error) {
	families := []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4}
	if to.Is6() {
		families[1] = nftables.TableFamilyIPv6
	}
	var out []*nftables.Chain
	for _, f := range families {
		all, err := conn.ListChainsOfTableFamily(f)
		if err != nil {
			return nil, err
		}
		for _, c := range all {
			if c.Hooknum != nil && c.Table != nil && (f != nftables.TableFamilyINet || c.Table.Name != nft.TableName) {
				out = append(out, c)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b *nftables.Chain) int { return int(priority(a)) - int(priority(b)) })
	return out, nil
}

func priority(c *nftables.Chain) nftables.ChainPriority {
	if c.Priority == nil {
		return 0
	}
	return *c.Priority
}

func nameOfChain(c *nftables.Chain) string {
	families := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}
	return families[c.Table.Family] + " " + c.Table.Name + " " + c.Name
}

// cureOf is the command that lets the packet pass.
func (w *walk) cureOf(c *nftables.Chain, f fate) string {
	if f.rule != nil && f.verdict == drops {
		return fmt.Sprintf("nft delete rule %s handle %d", nameOfChain(f.rule.Chain), f.rule.Handle)
	}
	name := nameOfChain(c)
	if *c.Hooknum == *nftables.ChainHookForward {
		return fmt.Sprintf("nft 'insert rule %s iifname %q accept; insert rule %s oifname %q accept'", name, w.Bridge, name, w.Bridge)
	}
	return w.acceptIn(name)
}

// acceptIn is the command that lets a chain pass what comes from here.
func (w *walk) acceptIn(chain string) string {
	switch {
	case !w.src.IsValid():
		return "nft list chain " + chain
	case w.src.Is4():
		return fmt.Sprintf("nft insert rule %s ip saddr %s accept", chain, w.src)
	default:
		return fmt.Sprintf("nft insert rule %s ip6 saddr %s accept", chain, w.src)
	}
}

// errUnknown says that an expression is one that we cannot work out.
var errUnknown = errors.New("a condition that only the kernel knows")
