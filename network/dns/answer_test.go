package dns

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func ranges() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd88::/64"), netip.MustParsePrefix("fd96::/112")}
}

// world is a small cluster.
func world() Records {
	ep := []Port{{"http", "TCP", 8080}, {"", "UDP", 99}}
	return Records{
		Services: []Service{
			{Namespace: "kube-system", Name: "kube-dns", ClusterIPs: addrs("10.96.0.10", "fd96::a"), Ports: []Port{{"dns", "UDP", 53}, {"dns-tcp", "TCP", 53}}},
			{Namespace: "default", Name: "web", ClusterIPs: addrs("10.96.0.7"), Ports: []Port{{"http", "TCP", 80}}},
			{Namespace: "default", Name: "dual", ClusterIPs: addrs("10.96.0.8", "fd96::8"), Ports: []Port{{"", "TCP", 80}}},
			{Namespace: "default", Name: "db", Endpoints: []Endpoint{
				{"db-0", netip.MustParseAddr("10.88.0.5"), ep}, {"db-0", netip.MustParseAddr("fd88::5"), ep}, {"", netip.MustParseAddr("10.88.0.6"), ep},
			}},
			{Namespace: "default", Name: "empty"},
			{Namespace: "default", Name: "out", ExternalName: "www.Example.org"},
			{Namespace: "default", Name: "alias", ExternalName: "web.default.svc.cluster.local"},
			{Namespace: "default", Name: "twice", ExternalName: "alias.default.svc.cluster.local."},
			{Namespace: "default", Name: "loop", ExternalName: "loop.default.svc.cluster.local"},
			{Namespace: "default", Name: "ping", ExternalName: "pong.default.svc.cluster.local"},
			{Namespace: "default", Name: "pong", ExternalName: "ping.default.svc.cluster.local"},
			{Namespace: "default", Name: "phone", Endpoints: []Endpoint{
				{"a", netip.MustParseAddr("10.88.0.11"), []Port{{"sip", "UDP", 5060}}}, {"a", netip.MustParseAddr("10.88.0.12"), []Port{{"sip", "UDP", 5060}}},
			}},
			{Namespace: "default", Name: "dead", ExternalName: "none.default.svc.cluster.local"},
		},
		Pods: []Pod{{"default", "db-0", addrs("10.88.0.5", "fd88::5")}, {"other", "p", addrs("10.88.0.9", "::1", "fd88::")}},
	}
}

func newHandler(r Records) *handler {
	h := &handler{domain: "cluster.local.", log: slog.New(slog.DiscardHandler), forward: newForwarder(slog.New(slog.DiscardHandler))}
	of := ranges()
	h.ranges.Store(&of)
	h.now.Store(build(h.domain, 1, &r))
	return h
}

func (h *handler) ask(name string, qtype uint16) *dns.Msg {
	m, _ := h.reply(netip.MustParseAddr("10.88.0.5"), new(dns.Msg).SetQuestion(name, qtype))
	return m
}

// told is an answer in one line: its code, and the records of its sections, sorted.
func told(m *dns.Msg) string {
	out := []string{dns.RcodeToString[m.Rcode]}
	for _, part := range []struct {
		name string
		list []dns.RR
	}{{"", m.Answer}, {"+", m.Extra}, {"-", m.Ns}} {
		var lines []string
		for _, rr := range part.list {
			f := strings.Fields(rr.String())
			if rr.Header().Rrtype == dns.TypeSOA {
				f = f[:4]
			}
			lines = append(lines, part.name+strings.TrimSuffix(f[0], ".cluster.local.")+" "+strings.Join(f[3:], " "))
		}
		slices.Sort(lines)
		out = append(out, lines...)
	}
	return strings.Join(out, "; ")
}

func TestAnswers(t *testing.T) {
	h := newHandler(world())
	const none, nodata = "NXDOMAIN; -cluster.local. SOA", "NOERROR; -cluster.local. SOA"
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"web.default.svc", dns.TypeA, "NOERROR; web.default.svc A 10.96.0.7"},
		{"web.default.svc", dns.TypeAAAA, nodata},
		{"web.default.svc", dns.TypeMX, nodata},
		{"WEB.Default.svc", dns.TypeA, "NOERROR; WEB.Default.svc A 10.96.0.7"},
		{"dual.default.svc", dns.TypeAAAA, "NOERROR; dual.default.svc AAAA fd96::8"},
		{"dual.default.svc", dns.TypeANY, "NOERROR; dual.default.svc A 10.96.0.8; dual.default.svc AAAA fd96::8; dual.default.svc SRV 0 100 80 dual.default.svc.cluster.local.; +dual.default.svc A 10.96.0.8; +dual.default.svc AAAA fd96::8"},
		{"db.default.svc", dns.TypeA, "NOERROR; db.default.svc A 10.88.0.5; db.default.svc A 10.88.0.6"},
		{"db.default.svc", dns.TypeAAAA, "NOERROR; db.default.svc AAAA fd88::5"},
		{"db-0.db.default.svc", dns.TypeA, "NOERROR; db-0.db.default.svc A 10.88.0.5"},
		{"10-88-0-6.db.default.svc", dns.TypeA, "NOERROR; 10-88-0-6.db.default.svc A 10.88.0.6"},
		{"10-88-0-6.db.default.svc", dns.TypeAAAA, nodata},
		{"db-1.db.default.svc", dns.TypeA, none},
		{"empty.default.svc", dns.TypeA, nodata},
		{"none.default.svc", dns.TypeA, none},
		{"web.other.svc", dns.TypeA, none},
		{"a.web.default.svc", dns.TypeA, none},
		{"_http._tcp.web.default.svc", dns.TypeSRV, "NOERROR; _http._tcp.web.default.svc SRV 0 100 80 web.default.svc.cluster.local.; +web.default.svc A 10.96.0.7"},
		{"_http._udp.web.default.svc", dns.TypeSRV, none},
		{"_tcp.web.default.svc", dns.TypeSRV, nodata},
		{"_http._tcp.web.default.svc", dns.TypeA, nodata},
		{"_http._tcp.db.default.svc", dns.TypeSRV, "NOERROR; _http._tcp.db.default.svc SRV 0 50 8080 10-88-0-6.db.default.svc.cluster.local.; _http._tcp.db.default.svc SRV 0 50 8080 db-0.db.default.svc.cluster.local.; +10-88-0-6.db.default.svc A 10.88.0.6; +db-0.db.default.svc A 10.88.0.5; +db-0.db.default.svc AAAA fd88::5"},
		{"alias.default.svc", dns.TypeA, "NOERROR; alias.default.svc CNAME web.default.svc.cluster.local.; web.default.svc A 10.96.0.7"},
		{"twice.default.svc", dns.TypeA, "NOERROR; alias.default.svc CNAME web.default.svc.cluster.local.; twice.default.svc CNAME alias.default.svc.cluster.local.; web.default.svc A 10.96.0.7"},
		{"alias.default.svc", dns.TypeAAAA, "NOERROR; alias.default.svc CNAME web.default.svc.cluster.local.; -cluster.local. SOA"},
		{"ping.default.svc", dns.TypeAAAA, "NOERROR; " + strings.Repeat("ping.default.svc CNAME pong.default.svc.cluster.local.; ", chain/2) + strings.Repeat("pong.default.svc CNAME ping.default.svc.cluster.local.; ", chain/2) + "-cluster.local. SOA"},
		{"*.default.svc", dns.TypeA, none},
		{"*.db.default.svc", dns.TypeA, none},
		{"_sip._udp.phone.default.svc", dns.TypeSRV, "NOERROR; _sip._udp.phone.default.svc SRV 0 100 5060 a.phone.default.svc.cluster.local.; +a.phone.default.svc A 10.88.0.11; +a.phone.default.svc A 10.88.0.12"},
		{"_SIP._Udp.phone.default.svc", dns.TypeSRV, "NOERROR; _SIP._Udp.phone.default.svc SRV 0 100 5060 a.phone.default.svc.cluster.local.; +a.phone.default.svc A 10.88.0.11; +a.phone.default.svc A 10.88.0.12"},
		{"a.phone.default.svc", dns.TypeA, "NOERROR; a.phone.default.svc A 10.88.0.11; a.phone.default.svc A 10.88.0.12"},
		{"_udp.phone.default.svc", dns.TypeA, nodata},
		{"web.default.svc.cluster.local.default.svc", dns.TypeA, none}, // a full name that goes through the search path
		{"default", dns.TypeA, none},
		{"dead.default.svc", dns.TypeA, "NXDOMAIN; dead.default.svc CNAME none.default.svc.cluster.local.; -cluster.local. SOA"},
		{"out.default.svc", dns.TypeCNAME, "NOERROR; out.default.svc CNAME www.example.org."},
		{"out.default.svc", dns.TypeA, "SERVFAIL; out.default.svc CNAME www.example.org."}, // no upstream to ask
		{"10-88-0-5.default.pod", dns.TypeA, "NOERROR; 10-88-0-5.default.pod A 10.88.0.5"},
		{"10-88-0-5.default.pod", dns.TypeAAAA, nodata},
		{"fd88--5.default.pod", dns.TypeAAAA, "NOERROR; fd88--5.default.pod AAAA fd88::5"},
		{"0--1.other.pod", dns.TypeAAAA, "NOERROR; 0--1.other.pod AAAA ::1"},
		{"fd88--0.other.pod", dns.TypeAAAA, "NOERROR; fd88--0.other.pod AAAA fd88::"},
		{"10-88-0-5.other.pod", dns.TypeA, none},
		{"default.svc", dns.TypeA, nodata},
		{"svc", dns.TypeA, nodata},
		{"pod", dns.TypeA, nodata},
		{"absent", dns.TypeA, none},
		{"dns-version", dns.TypeTXT, `NOERROR; dns-version TXT "1.1.0"`},
	} {
		if got := told(h.ask(c.name+".cluster.local.", c.qtype)); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], got, c.want)
		}
	}
	if m := h.ask("loop.default.svc.cluster.local.", dns.TypeA); len(m.Answer) != chain {
		t.Errorf("a name that leads to itself: %s", told(m))
	}
}

// Names of pods that others know of: those that exist, and no others.
func TestOtherPods(t *testing.T) {
	h := newHandler(world())
	has := func(namespace string, a netip.Addr) bool {
		return namespace == "theirs" && slices.Contains(addrs("10.88.7.7", "fd88::7", "fd88::"), a)
	}
	h.pods.Store(&has)
	const none, nodata = "NXDOMAIN; -cluster.local. SOA", "NOERROR; -cluster.local. SOA"
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"10-88-7-7.theirs.pod", dns.TypeA, "NOERROR; 10-88-7-7.theirs.pod A 10.88.7.7"},
		{"10-88-7-7.Theirs.pod", dns.TypeAAAA, nodata},
		{"fd88--7.theirs.pod", dns.TypeAAAA, "NOERROR; fd88--7.theirs.pod AAAA fd88::7"},
		{"fd88--0.theirs.pod", dns.TypeAAAA, "NOERROR; fd88--0.theirs.pod AAAA fd88::"},
		{"fd88-0-0-0-0-0-0-7.theirs.pod", dns.TypeAAAA, none}, // a name has one form
		{"10-88-7-8.theirs.pod", dns.TypeA, none},
		{"10-88-7-7.default.pod", dns.TypeA, none},
		{"10-88-7-7.pod", dns.TypeA, none},
		{"10-88-0-5.default.pod", dns.TypeA, "NOERROR; 10-88-0-5.default.pod A 10.88.0.5"},
	} {
		if got := told(h.ask(c.name+".cluster.local.", c.qtype)); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], got, c.want)
		}
	}
}

func TestApexAndReverse(t *testing.T) {
	h := newHandler(world())
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"cluster.local.", dns.TypeSOA, "NOERROR; cluster.local. SOA"},
		{"Cluster.Local.", dns.TypeNS, "NOERROR; Cluster.Local. NS kube-dns.kube-system.svc.cluster.local.; +kube-dns.kube-system.svc A 10.96.0.10; +kube-dns.kube-system.svc AAAA fd96::a"},
		{"cluster.local.", dns.TypeA, "NOERROR; -cluster.local. SOA"},
		{"7.0.96.10.in-addr.arpa.", dns.TypePTR, "NOERROR; 7.0.96.10.in-addr.arpa. PTR web.default.svc.cluster.local."},
		{"7.0.96.10.in-addr.arpa.", dns.TypeA, "NOERROR; -0.96.10.in-addr.arpa. SOA"},
		{"6.0.88.10.IN-ADDR.arpa.", dns.TypePTR, "NOERROR; 6.0.88.10.IN-ADDR.arpa. PTR 10-88-0-6.db.default.svc.cluster.local."},
		{"9.0.88.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN; -0.88.10.in-addr.arpa. SOA"},
		{"8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.d.f.ip6.arpa.", dns.TypePTR, "NOERROR; 8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.d.f.ip6.arpa. PTR dual.default.svc.cluster.local."},
		{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa.", dns.TypePTR, "NOERROR; 5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa. PTR db-0.db.default.svc.cluster.local."},
		{"6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa.", dns.TypePTR, "NXDOMAIN; -0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa. SOA"},
		{"1.2.0.192.in-addr.arpa.", dns.TypePTR, "SERVFAIL"}, // not ours, and nobody to ask
		{"88.10.in-addr.arpa.", dns.TypePTR, "SERVFAIL"},
		{"example.org.", dns.TypeA, "SERVFAIL"},
		{"notcluster.local.", dns.TypeA, "SERVFAIL"},
	} {
		if got := told(h.ask(c.name, c.qtype)); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], got, c.want)
		}
	}
}

func TestEveryAnswerIsShortLived(t *testing.T) {
	h := newHandler(world())
	for name := range h.now.Load().names {
		m := h.ask(name, dns.TypeANY)
		for _, rr := range records(m) {
			if rr.Header().Ttl != ttl {
				t.Errorf("%s: TTL of %s is not %d", name, rr, ttl)
			}
			if soa, ok := rr.(*dns.SOA); ok && soa.Minttl != ttl {
				t.Errorf("%s: negative TTL of %s is not %d", name, rr, ttl)
			}
		}
		if _, err := m.Pack(); err != nil || m.Rcode != dns.RcodeSuccess && !strings.HasPrefix(name, "dead") {
			t.Errorf("%s: %s, %v", name, told(m), err)
		}
	}
}

// Clients that always take the first address spread over all of them.
func TestTurns(t *testing.T) {
	h := newHandler(world())
	first := map[string]bool{}
	for range 6 {
		first[h.ask("db.default.svc.cluster.local.", dns.TypeA).Answer[0].String()] = true
	}
	if len(first) != 2 {
		t.Errorf("first answers: %v, want both endpoints", first)
	}
}

func TestRefusals(t *testing.T) {
	h := newHandler(world())
	for _, c := range []struct {
		what   string
		remote string
		change func(*dns.Msg)
		want   int
	}{
		{"the Internet", "198.51.100.7", func(*dns.Msg) {}, dns.RcodeRefused},
		{"a neighbour", "192.168.1.7", func(*dns.Msg) {}, dns.RcodeSuccess},
		{"a zone transfer", "10.88.0.5", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeRefused},
		{"another class", "10.88.0.5", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		{"an update", "10.88.0.5", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		{"no question", "10.88.0.5", func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		{"two questions", "10.88.0.5", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		{"an unknown version of EDNS", "10.88.0.5", func(m *dns.Msg) { m.SetEdns0(1232, false).IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
	} {
		m := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
		c.change(m)
		got, from := h.reply(netip.MustParseAddr(c.remote), m)
		if (from == FromNowhere) != (c.want != dns.RcodeSuccess) {
			t.Errorf("%s: answered from %s", c.what, from)
		}
		if _, err := got.Pack(); err != nil || got.Rcode != c.want || got.Id != m.Id || !got.Response {
			t.Errorf("%s: %s (pack: %v), want %s", c.what, dns.RcodeToString[got.Rcode], err, dns.RcodeToString[c.want])
		}
	}
}

// FuzzReply throws whatever parses at the handler: it answers with a message
// that can be sent, and never with a name of ours from elsewhere.
func FuzzReply(f *testing.F) {
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.db.default.svc.cluster.local.", "7.0.96.10.in-addr.arpa.", "twice.default.svc.cluster.local."} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeANY).SetEdns0(4096, true)
		data, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	h := newHandler(world())
	remote := netip.MustParseAddr("10.88.0.5")
	f.Fuzz(func(t *testing.T, data []byte) {
		var req dns.Msg
		if req.Unpack(data) != nil {
			return
		}
		reply, _ := h.reply(remote, &req)
		reply.Truncate(512)
		if _, err := reply.Pack(); err != nil {
			t.Fatalf("%v in the answer to %s", err, &req)
		}
	})
}

func FuzzReverseAddr(f *testing.F) {
	f.Add("7.0.96.10.in-addr.arpa.")
	f.Add("8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.d.f.ip6.arpa.")
	f.Add("0.0.%.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa.")
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := reverseAddr(name)
		if !ok {
			return
		}
		if back, err := dns.ReverseAddr(a.String()); err != nil || (!strings.EqualFold(back, name) && a.Is4()) {
			t.Errorf("%q is %s, which is %q (%v)", name, a, back, err)
		}
	})
}

// many is a cluster with n Services and a pod behind each, in a state of its own:
// generation g moves one address of each.
func many(n, g int) Records {
	r := world()
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 88, byte(1 + (i+g)%200), byte(i % 250)})
		r.Services = append(r.Services, Service{Namespace: "load", Name: fmt.Sprintf("s%d", i), Endpoints: []Endpoint{{"", a, nil}}})
		r.Pods = append(r.Pods, Pod{"load", fmt.Sprint("p", i), []netip.Addr{a}})
	}
	return r
}

func BenchmarkAnswer(b *testing.B) {
	h := newHandler(many(1000, 0))
	for b.Loop() {
		h.ask("s500.load.svc.cluster.local.", dns.TypeA)
	}
}

func BenchmarkUpdateOneOf10000(b *testing.B) {
	r := many(10000, 0)
	z := build("cluster.local.", 1, &r)
	one := r.Services[5000]
	one.Endpoints = slices.Clone(one.Endpoints)
	for i := uint32(0); b.Loop(); i++ {
		one.Endpoints[0].Addr = netip.AddrFrom4([4]byte{10, 89, byte(i >> 8), byte(i)})
		z.change(i, &Change{Set: Records{Services: []Service{one}}})
	}
}

func BenchmarkBuild(b *testing.B) {
	r := many(1000, 0)
	for b.Loop() {
		build("cluster.local.", 1, &r)
	}
}
