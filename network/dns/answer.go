package dns

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// ttl of all that we say, positive and negative: as long as an answer may be
// wrong after a pod has gone, for who caches.
const ttl = 5

// chain is how many external names that lead to one another are followed.
const chain = 8

// answer fills reply with what the snapshot knows; shift turns lists round, so
// that clients who take the first address use all of them. It returns a name
// that has to be looked up elsewhere too, "" for none.
func (s *snapshot) answer(reply *dns.Msg, q dns.Question, shift int) (elsewhere string) {
	reply.Authoritative = true
	name := strings.ToLower(q.Name)
	n := s.names[name]
	if n == nil {
		reply.Rcode = dns.RcodeNameError
		reply.Ns = []dns.RR{s.soa(s.domain)}
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
		if !within(n.cname, s.domain) {
			return n.cname
		}
		q.Name, n = n.cname, s.names[n.cname]
		if n == nil {
			reply.Rcode = dns.RcodeNameError
			n = &node{}
		}
	}
	told := len(reply.Answer)
	s.fill(reply, n, q, shift)
	if len(reply.Answer) == told {
		reply.Ns = []dns.RR{s.soa(s.domain)}
	}
	return ""
}

// fill appends the node's records of the type that is asked for.
func (s *snapshot) fill(reply *dns.Msg, n *node, q dns.Question, shift int) {
	wants := func(t uint16) bool { return q.Qtype == t || q.Qtype == dns.TypeANY }
	for i := range n.addrs {
		if rr := addrRR(q.Name, n.addrs[(i+shift)%len(n.addrs)]); wants(rr.Header().Rrtype) {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	if wants(dns.TypeSRV) {
		s.services(reply, n, q.Name, shift)
	}
	if wants(dns.TypeTXT) && n.text != "" {
		reply.Answer = append(reply.Answer, &dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{n.text}})
	}
	if n.apex && wants(dns.TypeSOA) {
		reply.Answer = append(reply.Answer, s.soa(q.Name))
	}
	if n.apex && wants(dns.TypeNS) {
		reply.Answer = append(reply.Answer, &dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: s.server()})
		if ns := s.names[s.server()]; ns != nil {
			for _, a := range ns.addrs {
				reply.Extra = append(reply.Extra, addrRR(s.server(), a))
			}
		}
	}
}

// services appends SRV records, and the addresses that they lead to.
func (s *snapshot) services(reply *dns.Msg, n *node, name string, shift int) {
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
		for _, a := range s.names[t.name].addrs {
			reply.Extra = append(reply.Extra, addrRR(t.name, a))
		}
	}
}

// answerPTR tells the names of an address of ours.
func (s *snapshot) answerPTR(reply *dns.Msg, q dns.Question, a netip.Addr) {
	reply.Authoritative = true
	names := s.ptrs[a]
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
	reply.Ns = []dns.RR{s.soa(above)}
}

// server is our own name, that of the built-in Service.
func (s *snapshot) server() string { return "kube-dns.kube-system.svc." + s.domain }

func (s *snapshot) soa(name string) dns.RR {
	return &dns.SOA{
		Hdr: header(name, dns.TypeSOA), Ns: s.server(), Mbox: "hostmaster." + s.domain,
		Serial: s.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
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
