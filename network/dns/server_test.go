package dns

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstream is a server of the tests on loopback.
type upstream struct {
	addr   netip.AddrPort
	asked  atomic.Int32
	answer atomic.Pointer[func(w dns.ResponseWriter, m *dns.Msg)]
}

func (u *upstream) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	u.asked.Add(1)
	if f := u.answer.Load(); f != nil {
		(*f)(w, m)
	}
}

func (u *upstream) says(f func(w dns.ResponseWriter, m *dns.Msg)) { u.answer.Store(&f) }

// newUpstream listens on the same port of UDP and TCP; until told otherwise it is silent.
func newUpstream(t *testing.T) *upstream {
	t.Helper()
	u := &upstream{}
	var lc net.ListenConfig
	for range 20 {
		l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p, err := lc.ListenPacket(t.Context(), "udp", l.Addr().String())
		if err != nil {
			l.Close()
			continue
		}
		u.addr = netip.MustParseAddrPort(l.Addr().String())
		for _, s := range []*dns.Server{{Listener: l, Handler: u}, {PacketConn: p, Handler: u}} {
			go func() { _ = s.ActivateAndServe() }()
		}
		t.Cleanup(func() { l.Close(); p.Close() })
		return u
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil
}

func a(ttl int, addr string) func(w dns.ResponseWriter, m *dns.Msg) {
	return func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		rr, _ := dns.NewRR(fmt.Sprintf("%s %d A %s", m.Question[0].Name, ttl, addr))
		r.Answer = []dns.RR{rr}
		_ = w.WriteMsg(r)
	}
}

func rcode(code int) func(w dns.ResponseWriter, m *dns.Msg) {
	return func(w dns.ResponseWriter, m *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(m, code)) }
}

func TestForward(t *testing.T) {
	u, v := newUpstream(t), newUpstream(t)
	h := newHandler(world())
	h.forward.try = 4 * time.Second // nobody answers late on a busy machine
	h.forward.setServers([]netip.AddrPort{u.addr, v.addr})
	u.says(a(60, "192.0.2.1"))
	v.says(a(60, "192.0.2.2"))
	if got := told(h.ask("One.example.org.", dns.TypeA)); got != "NOERROR; One.example.org. A 192.0.2.1" {
		t.Error(got)
	}
	if got := told(h.ask("oNE.example.org.", dns.TypeA)); got != "NOERROR; oNE.example.org. A 192.0.2.1" || u.asked.Load() != 1 {
		t.Errorf("%s after %d questions, want the cached answer in the letters of the question", got, u.asked.Load())
	}
	if got := told(h.ask("out.default.svc.cluster.local.", dns.TypeA)); !strings.Contains(got, "www.example.org. A 192.0.2.1") {
		t.Error("external name:", got)
	}
	u.says(rcode(dns.RcodeServerFailure))
	if got := told(h.ask("two.example.org.", dns.TypeA)); got != "NOERROR; two.example.org. A 192.0.2.2" {
		t.Error("the first has failed:", got)
	}
	h.forward.try = time.Second
	u.says(func(dns.ResponseWriter, *dns.Msg) {})
	if got := told(h.ask("three.example.org.", dns.TypeA)); got != "NOERROR; three.example.org. A 192.0.2.2" {
		t.Error("the first is silent:", got)
	}
	before := u.asked.Load()
	if got := told(h.ask("four.example.org.", dns.TypeA)); got != "NOERROR; four.example.org. A 192.0.2.2" || u.asked.Load() != before {
		t.Errorf("%s; a silent server was asked first again", got)
	}
	v.says(rcode(dns.RcodeNameError))
	if got := told(h.ask("five.example.org.", dns.TypeA)); got != "NXDOMAIN" {
		t.Error("no such name:", got)
	}
	v.says(rcode(dns.RcodeRefused))
	if got := told(h.ask("six.example.org.", dns.TypeA)); got != "REFUSED" {
		t.Error("nobody has an answer:", got)
	}
	v.says(func(w dns.ResponseWriter, m *dns.Msg) {
		m = m.Copy()
		m.Question[0].Name = "evil.example.org."
		a(60, "192.0.2.66")(w, m)
	})
	if got := told(h.ask("seven.example.org.", dns.TypeA)); got != "SERVFAIL" {
		t.Error("an answer to another question was taken:", got)
	}
	h.forward.setServers([]netip.AddrPort{v.addr})
	v.says(a(60, "192.0.2.3"))
	if got := told(h.ask("one.example.org.", dns.TypeA)); got != "NOERROR; one.example.org. A 192.0.2.3" {
		t.Error("after a change of servers:", got)
	}
	v.says(func(w dns.ResponseWriter, m *dns.Msg) {
		if m.IsEdns0() != nil {
			rcode(dns.RcodeFormatError)(w, m)
			return
		}
		a(60, "192.0.2.4")(w, m)
	})
	if got := told(h.ask("eight.example.org.", dns.TypeA)); got != "NOERROR; eight.example.org. A 192.0.2.4" {
		t.Error("a server without EDNS:", got)
	}
}

// A cut answer is asked for again over TCP.
func TestForwardTruncated(t *testing.T) {
	u := newUpstream(t)
	u.says(func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		for i := range 200 {
			rr, _ := dns.NewRR(fmt.Sprintf("%s 60 A 192.0.2.%d", m.Question[0].Name, i))
			r.Answer = append(r.Answer, rr)
		}
		if _, stream := remoteOf(w.RemoteAddr()); !stream {
			r.Truncate(512)
		}
		_ = w.WriteMsg(r)
	})
	h := newHandler(world())
	h.forward.setServers([]netip.AddrPort{u.addr})
	if m := h.ask("big.example.org.", dns.TypeA); len(m.Answer) != 200 || m.Truncated {
		t.Errorf("%d of 200 records, truncated %v", len(m.Answer), m.Truncated)
	}
}

func TestCacheTimes(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCache(func() time.Time { return now })
	m := new(dns.Msg).SetQuestion("x.example.", dns.TypeA)
	m.Response = true
	rr, _ := dns.NewRR("x.example. 20 A 192.0.2.1")
	m.Answer = []dns.RR{rr}
	key := keyOf(m)
	_, epoch := c.get(key, "x.example.")
	c.put(key, m, epoch)
	now = now.Add(19 * time.Second)
	if got, _ := c.get(key, "x.example."); got == nil || got.Answer[0].Header().Ttl != 1 {
		t.Errorf("after 19 of 20 seconds: %v", got)
	}
	now = now.Add(time.Second)
	if got, _ := c.get(key, "x.example."); got != nil {
		t.Errorf("after its time: %v", got)
	}
	c.clear()
	c.put(key, m, epoch)
	if got, _ := c.get(key, "x.example."); got != nil {
		t.Error("an answer of former servers was kept")
	}
	_, epoch = c.get(key, "")
	for i := range 3 * cacheSize {
		key.name = fmt.Sprint(i)
		c.put(key, m, epoch)
	}
	if len(c.answers) > cacheSize {
		t.Errorf("%d answers are kept, want %d at most", len(c.answers), cacheSize)
	}
}

func TestLifetime(t *testing.T) {
	rr := func(s string) []dns.RR {
		r, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		return []dns.RR{r}
	}
	soa := rr("example. 100 SOA a. b. 1 2 3 4 7")
	for _, c := range []struct {
		what string
		m    dns.Msg
		want uint32
	}{
		{"short", dns.Msg{Answer: rr("x. 3 A 192.0.2.1")}, 3},
		{"long", dns.Msg{Answer: rr("x. 3000 A 192.0.2.1")}, cacheTTL},
		{"never", dns.Msg{Answer: rr("x. 0 A 192.0.2.1")}, 0},
		{"negative", dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError}, Ns: soa}, 7},
		{"negative without SOA", dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError}}, 0},
		{"failure", dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}, Ns: soa}, 0},
		{"cut off", dns.Msg{MsgHdr: dns.MsgHdr{Truncated: true}, Answer: rr("x. 3 A 192.0.2.1")}, 0},
	} {
		if got := lifetime(&c.m); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

func TestParseResolvConf(t *testing.T) {
	own := func(a netip.AddrPort) bool { return a.String() == "10.88.0.1:53" }
	servers, refused := parseResolvConf("# x\nnameserver 127.0.0.53\nnameserver 10.88.0.1\nsearch a b\nnameserver\nnameserver what\n"+
		"nameserver 0.0.0.0\nnameserver fe80::1%eth0\nnameserver 127.0.0.53\noptions ndots:1\n", own)
	if got := fmt.Sprint(servers, refused); got != "[127.0.0.53:53 127.0.0.1:53 [fe80::1%eth0]:53] [10.88.0.1]" {
		t.Error(got)
	}
}

// The file is followed when it is written again, put in place of another, taken
// away, and when the link that leads to it is turned.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	var got []netip.AddrPort
	f := &follower{path: filepath.Join(dir, "link"), own: func(netip.AddrPort) bool { return false }, log: newHandler(world()).log, set: func(s []netip.AddrPort) { got = s }}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	turn := func(to string) {
		t.Helper()
		_ = os.Remove(filepath.Join(dir, "link"))
		if err := os.Symlink(to, filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, servers ...string) {
		t.Helper()
		f.look()
		if fmt.Sprint(got) != fmt.Sprint(servers) {
			t.Errorf("%s: %v, want %v", what, got, servers)
		}
	}
	want("no file")
	write("one", "nameserver 192.0.2.1\n")
	turn("one")
	want("a link", "192.0.2.1:53")
	write("one", "nameserver 192.0.2.2\n")
	want("written again", "192.0.2.2:53")
	write("two", "nameserver 192.0.2.3\n")
	turn("two")
	want("turned", "192.0.2.3:53")
	write("new", "nameserver 192.0.2.4\n")
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "two")); err != nil {
		t.Fatal(err)
	}
	want("put in place", "192.0.2.4:53")
	_ = os.Remove(filepath.Join(dir, "two"))
	want("taken away")
}

// serve starts a server on loopback until the test ends.
func serve(t *testing.T, change func(*Options)) *Server {
	t.Helper()
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	opts := Options{Domain: "Cluster.Local", Addrs: addrs("127.0.0.83"), Ranges: ranges(), ResolvConf: resolv}
	if change != nil {
		change(&opts)
	}
	s, err := Listen(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Set(world())
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *Server) at(protocol string) string {
	for _, l := range s.Listeners() {
		if l.Protocol == protocol {
			return l.Addr.String()
		}
	}
	return ""
}

func exchange(s *Server, protocol, name string, size uint16) (*dns.Msg, error) {
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	if size > 0 {
		m.SetEdns0(size, false)
	}
	c := dns.Client{Net: strings.ToLower(protocol), UDPSize: max(size, 512)}
	got, _, err := c.Exchange(m, s.at(protocol))
	return got, err
}

// A client that is slow between its connect and its question is waited for.
func TestSlowClient(t *testing.T) {
	s := serve(t, nil)
	for _, server := range s.servers {
		if server.ReadTimeout != patience || server.IdleTimeout() != patience {
			t.Errorf("timeouts are %s and %s, want %s", server.ReadTimeout, server.IdleTimeout(), patience)
		}
	}
}

func TestSizes(t *testing.T) {
	s := serve(t, nil)
	r := world()
	big := Service{Namespace: "default", Name: "big"}
	for i := range 1000 {
		big.Endpoints = append(big.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, 88, byte(i / 250), byte(1 + i%250)})})
	}
	r.Services = append(r.Services, big)
	s.Set(r)
	for _, c := range []struct {
		protocol string
		size     uint16
		most     int
		cut      bool
	}{
		{"UDP", 0, 512, true},
		{"UDP", 100, 512, true},
		{"UDP", 1232, 1232, true},
		{"UDP", 65000, 1232, true},
		{"TCP", 0, 65535, false},
		{"TCP", 512, 65535, false},
	} {
		m, err := exchange(s, c.protocol, "big.default.svc.cluster.local.", c.size)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		m.Compress = true
		if m.Truncated != c.cut || m.Len() > c.most || len(m.Answer) < 20 || (!c.cut && len(m.Answer) != 1000) || (m.IsEdns0() != nil) != (c.size > 0) {
			t.Errorf("%+v: %d records in %d bytes, truncated %v, EDNS %v", c, len(m.Answer), m.Len(), m.Truncated, m.IsEdns0())
		}
	}
}

// A name server of somebody else on all addresses: this one takes another port and says who has it.
func TestPortTaken(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("port 53 is for root")
	}
	var lc net.ListenConfig
	other, err := lc.ListenPacket(t.Context(), "udp4", "127.0.0.84:53")
	if err != nil {
		t.Skip("port 53 cannot be had:", err)
	}
	defer other.Close()
	s := serve(t, func(o *Options) { o.Addrs = addrs("127.0.0.84") })
	if s.at("UDP") != "127.0.0.84:10053" || s.at("TCP") != "127.0.0.84:53" {
		t.Errorf("served at %v", s.Listeners())
	}
	if w := fmt.Sprint(s.Warnings()); !strings.Contains(w, "port 53/UDP of 127.0.0.84 is taken by ") || !strings.Contains(w, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("warnings: %s", w)
	}
	if m, err := exchange(s, "UDP", "web.default.svc.cluster.local.", 0); err != nil || len(m.Answer) != 1 {
		t.Errorf("%v, %v", m, err)
	}
}

// A bridge that is not there yet is no reason to fail.
func TestAddressThatDoesNotExist(t *testing.T) {
	s := serve(t, func(o *Options) { o.Addrs = addrs("192.0.2.77", "2001:db8::77") })
	if len(s.Listeners()) != 4 {
		t.Errorf("listeners: %v", s.Listeners())
	}
}

func TestListenErrors(t *testing.T) {
	for _, o := range []Options{{Domain: "cluster.local"}, {Domain: "", Addrs: addrs("127.0.0.1")}, {Domain: "a..b", Addrs: addrs("127.0.0.1")}} {
		if s, err := Listen(o); err == nil {
			_ = s.Close()
			t.Errorf("%+v is accepted", o)
		}
	}
}

// The upstream changes on disk, and the next names come from there.
func TestServeFollowsTheFile(t *testing.T) {
	var file string
	s := serve(t, func(o *Options) { file = o.ResolvConf })
	if m, err := exchange(s, "UDP", "x.example.org.", 0); err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Fatalf("without a server to ask: %v, %v", m, err)
	}
	if err := os.WriteFile(file, []byte("nameserver "+strings.Split(s.at("UDP"), ":")[0]+"\nnameserver 192.0.2.9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		order := s.handler.forward.order()
		if slices.Equal(order, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:53")}) {
			return
		}
		if len(order) > 0 && strings.HasSuffix(s.at("UDP"), ":53") || time.Now().After(end) {
			t.Fatalf("servers are %v; this one itself is to be left out", order)
		}
		if len(order) == 2 { // we are at another port: what is at 53 is somebody else
			return
		}
	}
}

// What is asked before the names are known is answered when they are.
func TestQuestionsWaitForNames(t *testing.T) {
	s, err := Listen(Options{Domain: "cluster.local", Addrs: addrs("127.0.0.85"), ResolvConf: filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	conn, err := dns.Dial("udp", s.at("UDP"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	s.Set(world())
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if m, err := conn.ReadMsg(); err != nil || len(m.Answer) != 1 {
		t.Errorf("%v, %v", m, err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Without a name ever, it ends all the same.
func TestServeEndsUnused(t *testing.T) {
	s, err := Listen(Options{Domain: "cluster.local", Addrs: addrs("127.0.0.86"), ResolvConf: filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := s.Serve(ctx); err != nil {
		t.Error(err)
	}
}

// No answer is lost, and none is wrong, while 1,000 Services and pods change.
func TestNothingLostInChange(t *testing.T) {
	const services, rounds, askers, questions = 1000, 100, 8, 250
	s := serve(t, nil)
	s.Set(many(services, 0))
	stop := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		for g := 1; g <= rounds; g++ {
			s.Set(many(services, g))
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	var lost atomic.Int32
	var all sync.WaitGroup
	for asker := range askers {
		all.Go(func() {
			for i := range questions {
				protocol := "UDP"
				if i%10 == 0 {
					protocol = "TCP"
				}
				name := fmt.Sprintf("s%d.load.svc.cluster.local.", (asker*questions+i*7)%services)
				m, err := exchange(s, protocol, name, 0)
				if err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
					lost.Add(1)
					t.Logf("%s over %s: %v, %v", name, protocol, m, err)
				}
			}
		})
	}
	all.Wait()
	close(stop)
	changes.Wait()
	if n := lost.Load(); n > 0 {
		t.Errorf("%d of %d answers were lost", n, askers*questions)
	}
}

// Every answer is counted with its source and code.
func TestAnswersAreCounted(t *testing.T) {
	var mu sync.Mutex
	counts := map[string]int{}
	s := serve(t, func(o *Options) {
		o.Answered = func(from Source, code string) {
			mu.Lock()
			defer mu.Unlock()
			counts[string(from)+" "+code]++
		}
	})
	u := newUpstream(t)
	u.says(func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg).SetReply(m)
		reply.Answer = []dns.RR{addrRR(m.Question[0].Name, addrs("192.0.2.1")[0])}
		_ = w.WriteMsg(reply)
	})
	ask := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if _, err := exchange(s, "UDP", name, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	ask("web.default.svc.cluster.local.", "none.default.svc.cluster.local.", "outside.example.") // without a server to ask
	s.handler.forward.setServers([]netip.AddrPort{u.addr})
	ask("outside.example.", "outside.example.")
	want := map[string]int{"cluster NOERROR": 1, "cluster NXDOMAIN": 1, "upstream SERVFAIL": 1, "upstream NOERROR": 1, "cache NOERROR": 1}
	mu.Lock()
	defer mu.Unlock()
	if !maps.Equal(counts, want) {
		t.Errorf("counted %v, want %v", counts, want)
	}
	if got := code(4095); got != "OTHER" {
		t.Errorf("an unknown code is %s", got)
	}
}
