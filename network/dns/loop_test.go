package dns

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// An upstream that asks us again is found out and left out; one that answers is not.
func TestLoopIsFound(t *testing.T) {
	s := serve(t, nil)
	s.Set(world())
	round, good := newUpstream(t), newUpstream(t)
	round.says(func(w dns.ResponseWriter, m *dns.Msg) {
		if reply, err := dns.Exchange(m, s.at("UDP")); err == nil {
			_ = w.WriteMsg(reply)
		}
	})
	good.says(func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg).SetReply(m)
		if m.Question[0].Qtype == dns.TypeA {
			reply.Answer = []dns.RR{addrRR(m.Question[0].Name, addrs("192.0.2.1")[0])}
		}
		_ = w.WriteMsg(reply)
	})
	if _, err := exchange(s, "UDP", "web.default.svc.cluster.local.", 0); err != nil { // it has read its configuration
		t.Fatal(err)
	}
	f := s.handler.forward
	f.setServers([]netip.AddrPort{round.addr, good.addr})
	if got := len(f.order()); got != 2 {
		t.Fatalf("before the check %d servers are asked", got)
	}
	f.checkLoops(t.Context())
	for end := time.Now().Add(20 * time.Second); !slices.Equal(f.order(), []netip.AddrPort{good.addr}); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("these are asked: %v, though %v asks us", f.order(), round.addr)
		}
	}
	if m, err := exchange(s, "UDP", "outside.example.", 0); err != nil || len(m.Answer) != 1 {
		t.Errorf("%v, %v", m, err)
	}
	f.setServers([]netip.AddrPort{round.addr}) // it may have been corrected
	if got := len(f.order()); got != 1 {
		t.Errorf("after a change %d servers are asked", got)
	}
}
