package bridge

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// Host ports are translated before Services are.
const hostPortPriority = nft.PriorityDNAT - 5

// families are the two halves of the rules.
func families() []nft.Family { return []nft.Family{nft.IPv4, nft.IPv6} }

// rules names the network's chains and sets in table inet pausa. Each name ends
// with the bridge's, so that two networks do not meet.
type rules struct {
	bridge string
}

func (r rules) name(what string) string { return what + "-" + r.bridge }

func digit(f nft.Family) string {
	if f == nft.IPv4 {
		return "4"
	}
	return "6"
}

// portMap is for host ports on one address of the host.
func (r rules) portMap(f nft.Family) nft.Set {
	return nft.Set{
		Name: r.name("hostports" + digit(f)),
		Key:  []nft.Type{f.AddrType(), nft.TypeProto, nft.TypePort}, Data: []nft.Type{f.AddrType(), nft.TypePort},
	}
}

// anyPortMap is for host ports on every address of the host.
func (r rules) anyPortMap(f nft.Family) nft.Set {
	return nft.Set{
		Name: r.name("hostports-any" + digit(f)),
		Key:  []nft.Type{nft.TypeProto, nft.TypePort}, Data: []nft.Type{f.AddrType(), nft.TypePort},
	}
}

// hairpinSet holds the pods that may reach themselves by a host port.
func (r rules) hairpinSet(f nft.Family) nft.Set {
	return nft.Set{Name: r.name("hostports-hairpin" + digit(f)), Key: []nft.Type{f.AddrType(), f.AddrType()}}
}

func (r rules) sets() []nft.Set {
	var all []nft.Set
	for _, f := range families() {
		all = append(all, r.portMap(f), r.anyPortMap(f), r.hairpinSet(f))
	}
	return all
}

// write adds the chains and their rules to the transaction.
//
// ranges are the pods' networks, direct what they reach with their own address,
// apart the bridges that they do not reach.
func (r rules) write(tx *nft.Tx, ranges, direct []netip.Prefix, apart []string) {
	for _, s := range r.sets() {
		tx.AddSet(s)
	}
	tx.SetRules(nft.Chain{Name: r.name("hostports")}, r.hostPortRules()...)
	enter := nft.NewRule(nft.Jump(r.name("hostports")))
	tx.SetRules(nft.Chain{Name: r.name("hostports-prerouting"), Hook: nft.Prerouting, Type: nft.TypeNAT, Priority: hostPortPriority}, enter)
	tx.SetRules(nft.Chain{Name: r.name("hostports-output"), Hook: nft.Output, Type: nft.TypeNAT, Priority: hostPortPriority}, enter)
	tx.SetRules(nft.Chain{Name: r.name("masquerade"), Hook: nft.Postrouting, Type: nft.TypeNAT, Priority: nft.PrioritySNAT},
		r.masqueradeRules(ranges, direct)...)
	in, out := nft.Is(nft.IifName(), nft.Value(nil).IfName(r.bridge)), nft.Is(nft.OifName(), nft.Value(nil).IfName(r.bridge))
	tx.SetRules(nft.Chain{Name: r.name("mss"), Hook: nft.Forward, Type: nft.TypeFilter, Priority: nft.PriorityMangle},
		nft.NewRule(in, nft.ClampMSS()), nft.NewRule(out, nft.ClampMSS()))
	var isolation []nft.Rule
	for _, other := range apart {
		// A caller of TCP hears of an ICMP error only when it tries again, a second later.
		to := nft.Is(nft.OifName(), nft.Value(nil).IfName(other))
		isolation = append(isolation,
			nft.NewRule(in, to, nft.Is(nft.L4Proto(), nft.Value(nil).Proto(unix.IPPROTO_TCP)), nft.Counter(), nft.RejectTCP()),
			nft.NewRule(in, to, nft.Counter(), nft.RejectProhibited()))
	}
	tx.SetRules(nft.Chain{Name: r.name("isolation"), Hook: nft.Forward, Type: nft.TypeFilter, Priority: nft.PriorityFilter}, isolation...)
	// A pod that followed a redirect would send to another pod past the host, and lose: ports are isolated.
	tx.SetRules(nft.Chain{Name: r.name("no-redirects"), Hook: nft.Output, Type: nft.TypeFilter, Priority: nft.PriorityFilter},
		nft.NewRule(nft.NFProto(nft.IPv4), out, nft.ICMPRedirect(nft.IPv4), nft.Drop()),
		nft.NewRule(nft.NFProto(nft.IPv6), out, nft.ICMPRedirect(nft.IPv6), nft.Drop()),
	)
}

// hostPortRules, for IPv4 (127.0.0.1 has no way back from a pod):
//
//	meta nfproto ipv4 ip daddr 127.0.0.0/8 return
//	meta nfproto ipv4 dnat ip to ip daddr . meta l4proto . th dport map @hostports4
//	meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @hostports-any4
func (r rules) hostPortRules() []nft.Rule {
	loopback := map[nft.Family]netip.Prefix{nft.IPv4: netip.MustParsePrefix("127.0.0.0/8"), nft.IPv6: netip.MustParsePrefix("::1/128")}
	var all []nft.Rule
	for _, f := range families() {
		all = append(all,
			nft.NewRule(nft.NFProto(f), nft.In(nft.Daddr(f), loopback[f]), nft.Return()),
			nft.NewRule(nft.NFProto(f), nft.DNATMap(f, r.portMap(f), nft.Daddr(f), nft.L4Proto(), nft.Dport())),
			nft.NewRule(nft.NFProto(f), nft.DaddrLocal(), nft.DNATMap(f, r.anyPortMap(f), nft.L4Proto(), nft.Dport())),
		)
	}
	return all
}

// masqueradeRules, for IPv4:
//
//	meta nfproto ipv4 ct status dnat ip saddr . ip daddr @hostports-hairpin4 masquerade
//	meta nfproto ipv4 ip saddr RANGE ip daddr DIRECT return
//	meta nfproto ipv4 ip saddr RANGE oifname != BRIDGE masquerade
func (r rules) masqueradeRules(ranges, direct []netip.Prefix) []nft.Rule {
	var all []nft.Rule
	for _, f := range families() {
		all = append(all, nft.NewRule(nft.NFProto(f), nft.CtStatus(nft.CtDNAT), nft.InSet(r.hairpinSet(f), nft.Saddr(f), nft.Daddr(f)), nft.Masquerade()))
	}
	for _, from := range ranges {
		f := nft.FamilyOf(from.Addr())
		for _, to := range direct {
			if nft.FamilyOf(to.Addr()) == f {
				all = append(all, nft.NewRule(nft.NFProto(f), nft.In(nft.Saddr(f), from), nft.In(nft.Daddr(f), to), nft.Return()))
			}
		}
		all = append(all, nft.NewRule(nft.NFProto(f), nft.In(nft.Saddr(f), from), nft.IsNot(nft.OifName(), nft.Value(nil).IfName(r.bridge)), nft.Masquerade()))
	}
	return all
}

// elements are what one attachment has in the sets.
func (r rules) elements(a attachment) map[string][]nft.Element {
	out := map[string][]nft.Element{}
	for _, p := range a.Ports {
		f := nft.FamilyOf(p.Pod.Addr())
		data := nft.Value(nil).Addr(p.Pod.Addr()).Port(p.Pod.Port())
		key, set := nft.Value(nil).Proto(p.Proto).Port(p.Host.Port()), r.anyPortMap(f)
		if !p.any() {
			key, set = nft.Value(nil).Addr(p.Host.Addr()).Proto(p.Proto).Port(p.Host.Port()), r.portMap(f)
		}
		out[set.Name] = append(out[set.Name], nft.Element{Key: key, Data: data})
	}
	for _, addr := range a.Addrs {
		if len(a.Ports) > 0 {
			set := r.hairpinSet(nft.FamilyOf(addr))
			out[set.Name] = append(out[set.Name], nft.Element{Key: nft.Value(nil).Addr(addr).Addr(addr)})
		}
	}
	return out
}

// add puts the attachment's elements into the transaction.
func (r rules) add(tx *nft.Tx, a attachment) {
	elems := r.elements(a)
	for _, s := range r.sets() {
		tx.AddElements(s, elems[s.Name]...)
	}
}

// removeElements takes the attachment's elements out, one transaction for all
// or, if something is missing (somebody flushed), one for each.
func (p *Plugin) removeElements(r rules, a attachment) error {
	elems := r.elements(a)
	tx := nft.NewTx()
	for _, s := range r.sets() {
		tx.DeleteElements(s, elems[s.Name]...)
	}
	if tx.Empty() {
		return nil
	}
	err := p.nft.Commit(tx)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return wrapRules(err)
	}
	var errs []error
	for _, s := range r.sets() {
		for _, e := range elems[s.Name] {
			tx := nft.NewTx()
			tx.DeleteElements(s, e)
			if err := p.nft.Commit(tx); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, wrapRules(err))
			}
		}
	}
	return errors.Join(errs...)
}

func wrapRules(err error) error {
	if err != nil {
		return fmt.Errorf("write rules: %w", err)
	}
	return nil
}
