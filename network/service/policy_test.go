package service

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// balanced has an address for clients of some ranges, and endpoints here (.11)
// and on another host (172.16.0.9); clients outside get those here.
func balanced() Service {
	s := web("10.1.0.11:8080", "172.16.0.9:8080", "[fd01::11]:8080")
	s.BalancerIPs = addrs("198.51.100.1", "2001:db8:1::1")
	s.AllowFrom = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("192.168.0.2/32")}
	s.Remote = addrs("172.16.0.9")
	for i := range s.Ports {
		s.Ports[i].External = endpoints("10.1.0.11:8080", "[fd01::11]:8080")
	}
	return s
}

func TestSourceRanges(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	mustSync(t, tab, balanced())
	for _, c := range []struct{ from, to, want string }{
		{"203.0.113.9:1", "198.51.100.1:80", "accept dnat 10.1.0.11:8080"},
		{"192.168.0.2:1", "198.51.100.1:80", "accept dnat 10.1.0.11:8080"},
		{"192.168.0.3:1", "198.51.100.1:80", "drop"},
		{"[2001:db8::9]:1", "[2001:db8:1::1]:80", "drop"}, // no range of the family
		{"192.168.0.3:1", "192.0.2.7:80", "accept dnat 10.1.0.11:8080"},
	} {
		if got := walk(t, fake, nft.Prerouting, packet(tcp, c.from, c.to)); got.String() != c.want {
			t.Errorf("%s to %s: %s, want %s", c.from, c.to, got, c.want)
		}
	}
	all := balanced()
	all.AllowFrom = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	mustSync(t, tab, all)
	if got := walk(t, fake, nft.Prerouting, packet(tcp, "192.168.0.3:1", "198.51.100.1:80")); got.Verdict != "accept" {
		t.Errorf("the range of all addresses: %s", got)
	}
	mustSync(t, tab)
	tidied(t, tab)
	chains, err := fake.Chains()
	if err != nil {
		t.Fatal(err)
	}
	if made := leftOver(chains, nil); len(made.fresh) > 0 {
		t.Errorf("chains stay: %v", made.fresh)
	}
}

// TestOutsideGetsItsOwnEndpoints: those of the cluster IP are more.
func TestOutsideGetsItsOwnEndpoints(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
	s := balanced()
	mustSync(t, tab, s)
	seen := func(to string) map[string]bool {
		got := map[string]bool{}
		for i := range uint32(2) {
			p := packet(tcp, "192.168.0.2:1", to)
			p.Random = func(mod uint32) uint32 { return i % mod }
			got[walk(t, fake, nft.Prerouting, p).String()] = true
		}
		return got
	}
	if got := seen("10.96.0.1:80"); len(got) != 2 {
		t.Errorf("the cluster IP leads to %v, want both endpoints", got)
	}
	for _, to := range []string{"192.0.2.7:80", "192.168.0.1:30080", "198.51.100.1:80"} {
		if got := seen(to); len(got) != 1 || !got["accept dnat 10.1.0.11:8080"] {
			t.Errorf("%s leads to %v, want the endpoint of this host alone", to, got)
		}
	}
	none := balanced()
	none.Ports[0].External = []netip.AddrPort{}
	mustSync(t, tab, none)
	if got := walk(t, fake, nft.Prerouting, packet(tcp, "192.168.0.2:1", "192.168.0.1:30080")); got.Verdict != "reset" {
		t.Errorf("without an endpoint on this host: %s", got)
	}

	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"192.168.0.2:1", "172.16.0.9:8080", true}, // the answer must come back by this host
		{"10.1.0.12:1", "172.16.0.9:8080", false},  // of the pods' network
		{"192.168.0.2:1", "10.1.0.11:8080", false},
	} {
		p := packet(tcp, c.from, c.to)
		p.CtStatus = nft.CtDNAT
		if got := walk(t, fake, nft.Postrouting, p); got.Masquerade != c.want {
			t.Errorf("%s to %s: %s, want masquerading %v", c.from, c.to, got, c.want)
		}
	}
}

// TestPodsOfAnotherRangeKeepTheirAddresses once the table knows of it.
func TestPodsOfAnotherRangeKeepTheirAddresses(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
	mustSync(t, tab, balanced())
	masqueraded := func(from string) bool {
		p := packet(tcp, from, "172.16.0.9:8080")
		p.CtStatus = nft.CtDNAT
		return walk(t, fake, nft.Postrouting, p).Masquerade
	}
	if !masqueraded("10.2.0.5:1") {
		t.Error("a client outside keeps its address")
	}
	for range 2 {
		if err := tab.SetPodCIDRs([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/24")}); err != nil {
			t.Fatal(err)
		}
		if masqueraded("10.2.0.5:1") || masqueraded("10.1.0.5:1") || !masqueraded("192.168.0.2:1") {
			t.Error("want the pods' addresses kept, and no others")
		}
		if err := tab.Resync(t.Context()); err != nil { // the second time from what is known
			t.Fatal(err)
		}
	}
}

// TestDrainingEndpointsKeepTheirFlows until they are gone.
func TestDrainingEndpointsKeepTheirFlows(t *testing.T) {
	tab, _, k := newFakeTable(t, Options{})
	mustSync(t, tab, web("10.1.0.11:53", "10.1.0.12:53"))
	flows := []flow{
		{proto: unix.IPPROTO_UDP, to: netip.MustParseAddrPort("10.96.0.1:53"), by: netip.MustParseAddrPort("10.1.0.11:53")},
		{proto: unix.IPPROTO_UDP, to: netip.MustParseAddrPort("10.96.0.1:53"), by: netip.MustParseAddrPort("10.1.0.12:53")},
	}
	k.flows[nft.IPv4] = append(k.flows[nft.IPv4], flows...)
	s := web("10.1.0.11:53")
	for i := range s.Ports {
		s.Ports[i].Draining = endpoints("10.1.0.12:53")
	}
	mustSync(t, tab, s)
	if len(k.flows[nft.IPv4]) != 2 {
		t.Errorf("flows %v, want both", k.flows)
	}
	mustSync(t, tab, web("10.1.0.11:53"))
	if left := k.flows[nft.IPv4]; len(left) != 1 || left[0] != flows[0] {
		t.Errorf("flows %v, want the first", left)
	}
}

func TestHealthPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	tab, _, _ := newFakeTable(t, Options{})
	t.Cleanup(func() { _ = tab.Close() })
	ask := func() (int, int) {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", port))
		if err != nil {
			return 0, 0
		}
		defer resp.Body.Close()
		var body struct{ LocalEndpoints int }
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		return resp.StatusCode, body.LocalEndpoints
	}
	s := web()
	for n, want := range []int{http.StatusServiceUnavailable, http.StatusOK} {
		s.HealthPort, s.LocalEndpoints = port, n
		if err := tab.Update(context.Background(), []Service{s}, nil); err != nil {
			t.Fatal(err)
		}
		if code, got := ask(); code != want || got != n {
			t.Errorf("with %d endpoints: %d, %d", n, code, got)
		}
	}
	rival := web()
	rival.Name, rival.ClusterIPs, rival.ExternalIPs, rival.Ports, rival.HealthPort = "rival", addrs("10.96.0.9"), nil, nil, port
	if err := tab.Update(context.Background(), []Service{rival}, nil); err == nil {
		t.Error("two Services have one health check node port")
	}
	if err := tab.Update(context.Background(), nil, []ID{{"default", "web"}, {"default", "rival"}}); err != nil {
		t.Fatal(err)
	}
	if code, _ := ask(); code != 0 {
		t.Errorf("after its Service has gone the port answers %d", code)
	}
}
