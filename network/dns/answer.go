package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// ttl of all that we say, positive and negative: as long as an answer may be
// wrong after a pod has gone, for who caches.
const ttl = 5

// chain is how many external names that lead to one another are followed.
const chain = 8

// answer fills reply with what the zone knows; shift turns lists round, so
// that clients who take the first address use all of them. It returns a name
// that has to be looked up elsewhere too, "" for none.
func (z *zone) answer(reply *dns.Msg, q dns.Question, shift int) (elsewhere string) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	reply.Authoritative = true
	name := strings.ToLower(q.Name)
	n := z.names[name]
	if n == nil {
		reply.Rcode = dns.RcodeNameError
		reply.Ns = []dns.RR{z.soa(z.domain)}
		return ""
	}
	for range chain {
		if n.cname == "" {
			break
		}
		reply.Answer = append(reply.Answer, &dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: n.cname})
		if q.Qtype == dns.TypeCNAME || q.Qtype == dns.TypeANY {
			return ""
		}
		if !within(n.cname, z.domain) {
			return n.cname
		}
		q.Name, n = n.cname, z.names[n.cname]
		if n == nil {
			reply.Rcode = dns.RcodeNameError
			n = &node{}
		}
	}
	told := len(reply.Answer)
	z.fill(reply, n, q, shift)
	if len(reply.Answer) == told {
		reply.Ns = []dns.RR{z.soa(z.domain)}
	}
	return ""
}

// fill appends the node's records of the type that is asked for.
func (z *zone) fill(reply *dns.Msg, n *node, q dns.Question, shift int) {
	wants := func(t uint16) bool { return q.Qtype == t || q.Qtype == dns.TypeANY }
	for i := range n.addrs {
		if rr := addrRR(q.Name, n.addrs[(i+shift)%len(n.addrs)]); wants(rr.Header().Rrtype) {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	if wants(dns.TypeSRV) {
		z.services(reply, n, q.Name, shift)
	}
	if wants(dns.TypeTXT) && n.text != "" {
		reply.Answer = append(reply.Answer, &dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{n.text}})
	}
	if n.apex && wants(dns.TypeSOA) {
		reply.Answer = append(reply.Answer, z.soa(q.Name))
	}
	if n.apex && wants(dns.TypeNS) {
		reply.Answer = append(reply.Answer, &dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: z.server()})
		for _, a := range z.addrsOf(z.server()) {
			reply.Extra = append(reply.Extra, addrRR(z.server(), a))
		}
	}
}

// services appends SRV records, and the addresses that they lead to.
func (z *zone) services(reply *dns.Msg, n *node, name string, shift int) {
	told := map[string]bool{}
	for i := range n.srv {
		t := n.srv[(i+shift)%len(n.srv)]
		reply.Answer = append(reply.Answer, &dns.SRV{
			Hdr: header(name, dns.TypeSRV), Weight: uint16(max(1, 100/len(n.srv))), Port: t.port, Target: t.name,
		})
		if told[t.name] {
			continue
		}
		told[t.name] = true
		for _, a := range z.addrsOf(t.name) {
			reply.Extra = append(reply.Extra, addrRR(t.name, a))
		}
	}
}

// addrsOf are the addresses of a name, none if there is no such name.
func (z *zone) addrsOf(name string) []netip.Addr {
	if n := z.names[name]; n != nil {
		return n.addrs
	}
	return nil
}

// answerPTR tells the names of an address of ours.
func (z *zone) answerPTR(reply *dns.Msg, q dns.Question, a netip.Addr) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	reply.Authoritative = true
	names := slices.Compact(slices.Clone(z.ptrs[a]))
	if q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY {
		for _, name := range names {
			reply.Answer = append(reply.Answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name})
		}
	}
	if len(reply.Answer) > 0 {
		return
	}
	if len(names) == 0 {
		reply.Rcode = dns.RcodeNameError
	}
	_, above, _ := strings.Cut(strings.ToLower(q.Name), ".")
	reply.Ns = []dns.RR{z.soa(above)}
}

// server is our own name, that of the built-in Service.
func (z *zone) server() string { return "kube-dns.kube-system.svc." + z.domain }

func (z *zone) soa(name string) dns.RR {
	return &dns.SOA{
		Hdr: header(name, dns.TypeSOA), Ns: z.server(), Mbox: "hostmaster." + z.domain,
		Serial: z.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func addrRR(name string, a netip.Addr) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()}
}
