package service

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// prefix begins the name of each chain and set of this package in the table.
const prefix = "svc-"

// Chains that are always there. svc-lb4-3 and its like, one for each number of
// endpoints in use, come and go.
const (
	chainDispatch    = prefix + "dispatch"
	chainReject      = prefix + "reject"
	chainPrerouting  = prefix + "prerouting"
	chainOutput      = prefix + "output"
	chainPostrouting = prefix + "postrouting"
)

// familySets is the sets and maps of one address family.
type familySets struct {
	family nft.Family
	// frontends: address . protocol . port → goto the chain for the number of
	// endpoints, or svc-reject.
	frontends nft.Set
	// endpoints: address . protocol . port . slot → endpoint. The slots of a
	// frontend with n endpoints are 0 to n-1 without a hole.
	endpoints nft.Set
	// nodePorts and nodeEndpoints: the same without an address.
	nodePorts, nodeEndpoints nft.Set
	// clusterIPs: addresses whose other ports are rejected.
	clusterIPs nft.Set
	// hairpin: pairs of an endpoint with itself, which need masquerading.
	hairpin nft.Set
	// remotes: endpoints that are not on this host.
	remotes nft.Set
}

func setsOf(f nft.Family) familySets {
	v, addr := "4", f.AddrType()
	if f == nft.IPv6 {
		v = "6"
	}
	endpoint := []nft.Type{addr, nft.TypePort}
	return familySets{
		family: f,
		frontends: nft.Set{
			Name: prefix + "frontends" + v, Key: []nft.Type{addr, nft.TypeProto, nft.TypePort}, Verdicts: true,
		},
		endpoints: nft.Set{
			Name: prefix + "endpoints" + v, Key: []nft.Type{addr, nft.TypeProto, nft.TypePort, nft.TypeMark}, Data: endpoint,
		},
		nodePorts: nft.Set{
			Name: prefix + "nodeports" + v, Key: []nft.Type{nft.TypeProto, nft.TypePort}, Verdicts: true,
		},
		nodeEndpoints: nft.Set{
			Name: prefix + "node-endpoints" + v, Key: []nft.Type{nft.TypeProto, nft.TypePort, nft.TypeMark}, Data: endpoint,
		},
		clusterIPs: nft.Set{Name: prefix + "cluster-ips" + v, Key: []nft.Type{addr}},
		hairpin:    nft.Set{Name: prefix + "hairpin" + v, Key: []nft.Type{addr, addr}},
		remotes:    nft.Set{Name: prefix + "remotes" + v, Key: []nft.Type{addr}},
	}
}

func (s familySets) all() []nft.Set {
	return []nft.Set{s.frontends, s.endpoints, s.nodePorts, s.nodeEndpoints, s.clusterIPs, s.hairpin, s.remotes}
}

// families is both, in the order in which all else is written.
func families() [2]familySets {
	return [2]familySets{setsOf(nft.IPv4), setsOf(nft.IPv6)}
}

// staticChains is the chains that are always there with their rules; those that
// are led to come before those that lead to them.
func staticChains(cidrs, pods []netip.Prefix) ([]nft.Chain, map[string][]nft.Rule) {
	chains := []nft.Chain{
		{Name: chainReject},
		{Name: chainDispatch},
		{Name: chainPrerouting, Hook: nft.Prerouting, Type: nft.TypeNAT, Priority: nft.PriorityDNAT},
		{Name: chainOutput, Hook: nft.Output, Type: nft.TypeNAT, Priority: nft.PriorityDNAT},
		{Name: chainPostrouting, Hook: nft.Postrouting, Type: nft.TypeNAT, Priority: nft.PrioritySNAT},
	}
	rules := map[string][]nft.Rule{
		chainReject: {
			// meta l4proto tcp reject with tcp reset
			nft.NewRule(nft.Is(nft.L4Proto(), nft.Value(nil).Proto(unix.IPPROTO_TCP)), nft.RejectTCP()),
			// reject (icmpx port-unreachable)
			nft.NewRule(nft.Reject()),
		},
		chainPrerouting: {nft.NewRule(nft.Jump(chainDispatch))},
		chainOutput:     {nft.NewRule(nft.Jump(chainDispatch))},
	}
	for _, f := range families() {
		rules[chainDispatch] = append(rules[chainDispatch], f.dispatch(cidrs)...)
		rules[chainPostrouting] = append(rules[chainPostrouting], f.masquerade(pods)...)
	}
	return chains, rules
}

// dispatch is how a packet finds its Service.
func (s familySets) dispatch(cidrs []netip.Prefix) []nft.Rule {
	f := s.family
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	if f == nft.IPv6 {
		loopback = netip.MustParsePrefix("::1/128")
	}
	rules := []nft.Rule{
		// ip daddr . meta l4proto . th dport vmap @svc-frontends4
		nft.NewRule(nft.NFProto(f), nft.VMap(s.frontends, nft.Daddr(f), nft.L4Proto(), nft.Dport())),
		// ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @svc-nodeports4
		nft.NewRule(nft.NFProto(f), nft.NotIn(nft.Daddr(f), loopback), nft.DaddrLocal(),
			nft.VMap(s.nodePorts, nft.L4Proto(), nft.Dport())),
		// ip daddr @svc-cluster-ips4 goto svc-reject
		nft.NewRule(nft.NFProto(f), nft.InSet(s.clusterIPs, nft.Daddr(f)), nft.Goto(chainReject)),
	}
	for _, c := range cidrs {
		if nft.FamilyOf(c.Addr()) == f {
			// ip daddr 10.96.0.0/16 drop
			rules = append(rules, nft.NewRule(nft.NFProto(f), nft.In(nft.Daddr(f), c), nft.Drop()))
		}
	}
	return rules
}

// masquerade is for a pod that got itself as the endpoint: it must not see its
// own address as the client's; and for clients that got an endpoint on another
// host, which does not know the way back, but not for pods: that is their
// network's business. All other clients keep their addresses.
func (s familySets) masquerade(pods []netip.Prefix) []nft.Rule {
	f := s.family
	rules := []nft.Rule{
		// ct status dnat ip saddr . ip daddr @svc-hairpin4 masquerade fully-random
		nft.NewRule(nft.NFProto(f), nft.CtStatus(nft.CtDNAT), nft.InSet(s.hairpin, nft.Saddr(f), nft.Daddr(f)), nft.Masquerade()),
	}
	for _, c := range pods {
		if nft.FamilyOf(c.Addr()) == f {
			// ip saddr 10.88.0.0/16 return
			rules = append(rules, nft.NewRule(nft.NFProto(f), nft.In(nft.Saddr(f), c), nft.Return()))
		}
	}
	// ct status dnat ip daddr @svc-remotes4 masquerade fully-random
	return append(rules, nft.NewRule(nft.NFProto(f), nft.CtStatus(nft.CtDNAT), nft.InSet(s.remotes, nft.Daddr(f)), nft.Masquerade()))
}

// balancer names the chain shared by all frontends of one kind and family with
// the same number of endpoints.
type balancer struct {
	family nft.Family
	node   bool // node ports: without the address in the key
	n      int
}

func (b balancer) name() string {
	kind, v := "lb", "4"
	if b.node {
		kind = "node"
	}
	if b.family == nft.IPv6 {
		v = "6"
	}
	return fmt.Sprintf("%s%s%s-%d", prefix, kind, v, b.n)
}

// rules picks one of n slots at random. The second rule and the third catch a
// packet that was under way here while a transaction took away its slot.
func (b balancer) rules() []nft.Rule {
	f, s := b.family, setsOf(b.family)
	to := func(mod int) nft.Rule {
		if b.node {
			// dnat ip to meta l4proto . th dport . numgen random mod 3 map @svc-node-endpoints4
			return nft.NewRule(nft.NFProto(f), nft.DNATMap(f, s.nodeEndpoints, nft.L4Proto(), nft.Dport(), nft.Random(uint32(mod))))
		}
		// dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @svc-endpoints4
		return nft.NewRule(nft.NFProto(f), nft.DNATMap(f, s.endpoints, nft.Daddr(f), nft.L4Proto(), nft.Dport(), nft.Random(uint32(mod))))
	}
	rules := []nft.Rule{to(b.n)}
	if b.n > 1 {
		rules = append(rules, to(1))
	}
	return append(rules, nft.NewRule(nft.Goto(chainReject)))
}
