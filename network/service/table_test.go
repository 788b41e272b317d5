package service

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// kernelState is a host without a kernel: its flows and its routes.
type kernelState struct {
	flows  map[nft.Family][]flow
	local  []netip.Addr
	routes map[netip.Prefix]string
	fail   error
}

func (k *kernelState) Forget(f nft.Family, proto uint8, match func(flow) bool) error {
	if k.fail != nil {
		return k.fail
	}
	k.flows[f] = slices.DeleteFunc(k.flows[f], func(fl flow) bool { return fl.proto == proto && match(fl) })
	return nil
}

func (k *kernelState) LocalAddrs() ([]netip.Addr, error) { return k.local, nil }
func (k *kernelState) Close() error                      { return nil }
func (k *kernelState) Assert(dst netip.Prefix, dev string) error {
	k.routes[dst] = dev
	return nil
}

func (k *kernelState) Remove(dst netip.Prefix) error {
	delete(k.routes, dst)
	return nil
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

var testCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd96::/112")}

func newFakeTable(t *testing.T, opts Options) (*Table, *nft.Fake, *kernelState) {
	t.Helper()
	fake := nft.NewFake()
	k := &kernelState{flows: map[nft.Family][]flow{}, routes: map[netip.Prefix]string{}}
	opts.ServiceCIDRs, opts.NoLoopback, opts.Log = testCIDRs, true, quiet()
	tab := newTable(opts, fake, k, k)
	if err := tab.makeChains(context.Background()); err != nil {
		t.Fatal(err)
	}
	return tab, fake, k
}

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func endpoints(list ...string) (out []netip.AddrPort) {
	for _, a := range list {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

// web is a Service with all kinds of frontends.
func web(eps ...string) Service {
	if eps == nil {
		eps = []string{"10.1.0.11:8080", "10.1.0.12:8080", "[fd01::11]:8080", "[fd01::12]:8080"}
	}
	return Service{
		Namespace: "default", Name: "web",
		ClusterIPs: addrs("10.96.0.1", "fd96::1"), ExternalIPs: addrs("192.0.2.7", "2001:db8::7"),
		Ports: []Port{
			{Name: "http", Protocol: "TCP", Port: 80, NodePort: 30080, Endpoints: endpoints(eps...)},
			{Name: "dns", Protocol: "UDP", Port: 53, NodePort: 30053, Endpoints: endpoints(eps...)},
		},
	}
}

func mustSync(t testing.TB, tab *Table, services ...Service) {
	t.Helper()
	if err := tab.Sync(context.Background(), services); err != nil {
		t.Fatal(err)
	}
}

// hostAddr has the host's own addresses.
func hostAddr(a netip.Addr) bool {
	return slices.Contains(addrs("192.168.0.1", "fd00::1", "127.0.0.1", "::1"), a)
}

func packet(proto uint8, src, dst string) nft.Packet {
	return nft.Packet{
		Proto: proto, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst),
		Local: hostAddr, Random: rand.Uint32N,
	}
}

func walk(t *testing.T, fake *nft.Fake, hook nft.Hook, p nft.Packet) nft.Fate {
	t.Helper()
	fate, err := fake.Walk(hook, p)
	if err != nil {
		t.Fatal(err)
	}
	return fate
}

const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP

func TestWherePacketsEnd(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	empty := Service{
		Namespace: "default", Name: "empty", ClusterIPs: addrs("10.96.0.2", "fd96::2"), ExternalIPs: addrs("192.0.2.8"),
		Ports: []Port{{Protocol: "TCP", Port: 80, NodePort: 30081}, {Protocol: "UDP", Port: 53}},
	}
	headless := Service{Namespace: "default", Name: "headless", Ports: []Port{{Port: 99, Endpoints: endpoints("10.1.0.1:1")}}}
	mustSync(t, tab, web(), empty, headless)
	const web4, web6 = "accept dnat 10.1.0.1X:8080", "accept dnat [fd01::1X]:8080"
	for _, c := range []struct {
		proto uint8
		dst   string
		want  string
	}{
		{tcp, "10.96.0.1:80", web4},
		{udp, "10.96.0.1:53", web4},
		{tcp, "[fd96::1]:80", web6},
		{udp, "[fd96::1]:53", web6},
		{tcp, "192.0.2.7:80", web4},
		{tcp, "[2001:db8::7]:80", web6},
		{tcp, "192.168.0.1:30080", web4},
		{udp, "192.168.0.1:30053", web4},
		{tcp, "[fd00::1]:30080", web6},
		{udp, "[fd00::1]:30053", web6},
		// What is not a frontend.
		{udp, "10.96.0.1:80", "reject"},
		{tcp, "10.96.0.1:81", "reset"},
		{tcp, "[fd96::1]:81", "reset"},
		{udp, "[fd96::1]:81", "reject"},
		{tcp, "192.0.2.7:81", "accept"},
		{tcp, "8.8.8.8:30080", "accept"},
		{udp, "192.168.0.1:30080", "accept"},
		{tcp, "127.0.0.1:30080", "accept"},
		{tcp, "[::1]:30080", "accept"},
		{tcp, "192.168.0.1:80", "accept"},
		{tcp, "10.1.0.11:8080", "accept"},
		// Service addresses that nobody has.
		{tcp, "10.96.7.7:80", "drop"},
		{udp, "[fd96::7]:53", "drop"},
		// No endpoints.
		{tcp, "10.96.0.2:80", "reset"},
		{udp, "10.96.0.2:53", "reject"},
		{tcp, "[fd96::2]:80", "reset"},
		{tcp, "192.0.2.8:80", "reset"},
		{tcp, "192.168.0.1:30081", "reset"},
	} {
		src := "10.1.0.99:40000"
		if strings.HasPrefix(c.dst, "[") {
			src = "[fd01::99]:40000"
		}
		for _, hook := range []nft.Hook{nft.Prerouting, nft.Output} {
			got := walk(t, fake, hook, packet(c.proto, src, c.dst)).String()
			got = strings.NewReplacer(".11:", ".1X:", ".12:", ".1X:", ":11]", ":1X]", ":12]", ":1X]").Replace(got)
			if got != c.want {
				t.Errorf("hook %d, protocol %d to %s: %s, want %s", hook, c.proto, c.dst, got, c.want)
			}
		}
	}
}

func TestOnlyHairpinIsMasqueraded(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	mustSync(t, tab, web())
	for _, c := range []struct {
		src, dst string
		status   uint32
		want     string
	}{
		{"10.1.0.11:4000", "10.1.0.11:8080", nft.CtDNAT, "accept masquerade"},
		{"[fd01::11]:4000", "[fd01::11]:8080", nft.CtDNAT, "accept masquerade"},
		{"10.1.0.12:4000", "10.1.0.11:8080", nft.CtDNAT, "accept"},
		{"192.0.2.99:4000", "10.1.0.11:8080", nft.CtDNAT, "accept"},
		{"10.1.0.11:4000", "10.1.0.11:8080", 0, "accept"},
	} {
		p := packet(tcp, c.src, c.dst)
		p.CtStatus = c.status
		if got := walk(t, fake, nft.Postrouting, p).String(); got != c.want {
			t.Errorf("%s to %s: %s, want %s", c.src, c.dst, got, c.want)
		}
	}
	mustSync(t, tab)
	tidied(t, tab)
	p := packet(tcp, "10.1.0.11:4000", "10.1.0.11:8080")
	p.CtStatus = nft.CtDNAT
	if got := walk(t, fake, nft.Postrouting, p).String(); got != "accept" {
		t.Errorf("without services: %s", got)
	}
}

func TestEverySlotIsReached(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	var eps []string
	for i := range 7 {
		eps = append(eps, fmt.Sprintf("10.1.0.%d:80", i+1))
	}
	mustSync(t, tab, web(eps...))
	p := packet(tcp, "10.1.0.99:4000", "10.96.0.1:80")
	seen := map[netip.AddrPort]int{}
	for i := range uint32(70) {
		p.Random = func(mod uint32) uint32 { return i % mod }
		seen[walk(t, fake, nft.Prerouting, p).DNAT]++
	}
	for _, e := range endpoints(eps...) {
		if seen[e] != 10 {
			t.Errorf("endpoint %s got %d of 70", e, seen[e])
		}
	}
}

// TestLostSlot shows what a packet meets that chose its number of endpoints
// before a transaction and its slot after.
func TestLostSlot(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	mustSync(t, tab, web("10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"))
	sets := setsOf(nft.IPv4)
	k := key{nft.IPv4, netip.MustParseAddr("10.96.0.1"), tcp, 80}
	p := packet(tcp, "10.1.0.99:4000", "10.96.0.1:80")
	p.Random = func(mod uint32) uint32 { return mod - 1 }
	for slot, want := range map[int]string{2: "accept dnat 10.1.0.1:80", 0: "reset"} {
		tx := nft.NewTx()
		tx.DeleteElements(sets.endpoints, nft.Element{Key: k.slot(slot)})
		if slot == 0 {
			tx.DeleteElements(sets.endpoints, nft.Element{Key: k.slot(2)})
		}
		if err := fake.Commit(tx); err != nil {
			t.Fatal(err)
		}
		if got := walk(t, fake, nft.Prerouting, p).String(); got != want {
			t.Errorf("without slot %d: %s, want %s", slot, got, want)
		}
		if err := tab.Resync(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}
