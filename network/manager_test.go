package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

// newManager makes a Manager for a host, with the ranges 10.9.0.0/24 and fd09::/64.
func newManager(t testing.TB, h *hosttest.Host, change ...func(*Options)) *Manager {
	t.Helper()
	opts := Options{
		RunDir:   t.TempDir(),
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd09::/64")},
	}
	for _, c := range change {
		c(&opts)
	}
	return openManager(t, h, opts)
}

func openManager(t testing.TB, h *hosttest.Host, opts Options) *Manager {
	t.Helper()
	var m *Manager
	h.Must(func() (err error) {
		m, err = New(opts)
		return err
	})
	t.Cleanup(func() {
		for _, id := range must(m.pins()) {
			if err := m.unpin(id); err != nil {
				t.Error(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// newPod makes a pod on the manager's network.
func newPod(t testing.TB, m *Manager, id string, ports ...PortMapping) (*hosttest.Host, Result) {
	t.Helper()
	h := hosttest.New(t)
	if _, err := m.Pin(id, h.Tid); err != nil {
		t.Fatal(err)
	}
	r, err := m.Attach(context.Background(), Pod{ID: id, Name: "name-" + id, Namespace: "ns", UID: "uid-" + id, Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	return h, r
}

func detach(t testing.TB, m *Manager, id string) {
	t.Helper()
	if err := m.Detach(context.Background(), id); err != nil {
		t.Fatal(err)
	}
}

// wantNothing fails the test if anything of a pod is left anywhere.
func wantNothing(t testing.TB, h *hosttest.Host, m *Manager) {
	t.Helper()
	m.Drain()
	links, err := h.Net.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "veth" && strings.HasPrefix(l.Attrs().Name, "pv") {
			t.Errorf("link %s is left", l.Attrs().Name)
		}
	}
	for _, pattern := range []string{"attempts/*", "netns/*", "cni/results/*", "ipam/*/addresses/*", "ipam/*/ports/*", "ipam/*/attached/*", "ipam/*/detached/*"} {
		left, err := filepath.Glob(m.path(pattern))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			t.Errorf("files are left: %v", left)
		}
	}
	rules, err := h.Run("nft", "list", "ruleset")
	if err != nil {
		t.Fatalf("list rules: %v: %s", err, rules)
	}
	if strings.Contains(rules, "elements") {
		t.Errorf("elements are left:\n%s", rules)
	}
}

func wantCall(t testing.TB, from *hosttest.Host, network string, to netip.AddrPort, want string) {
	t.Helper()
	got, err := from.Call(network, to)
	if err != nil || got != want {
		t.Errorf("%s %s: got %q, %v; want %q", network, to, got, err, want)
	}
}

func wantNoAnswer(t testing.TB, from *hosttest.Host, network string, to netip.AddrPort) {
	t.Helper()
	if got, err := from.Call(network, to); err == nil {
		t.Errorf("%s %s: got the answer %q, want none", network, to, got)
	}
}

func TestPodsReachEachOtherAndTheHost(t *testing.T) {
	h := hosttest.New(t)
	m := newManager(t, h)
	a, ra := newPod(t, m, "aaaa")
	b, rb := newPod(t, m, "bbbb")
	if len(ra.IPs) != 2 || !ra.IPs[0].Is4() || !ra.IPs[1].Is6() || ra.Interface != "eth0" || ra.MAC == "" {
		t.Fatalf("result: %+v", ra)
	}
	for i, gw := range []string{"10.9.0.1", "fd09::1"} {
		for _, network := range []string{"tcp", "udp"} {
			port := uint16(8000 + i)
			b.Serve("b", network, netip.AddrPortFrom(rb.IPs[i], port))
			h.Serve("host", network, netip.AddrPortFrom(netip.MustParseAddr(gw), port))
			wantCall(t, a, network, netip.AddrPortFrom(rb.IPs[i], port), "b "+ra.IPs[i].String())
			wantCall(t, h, network, netip.AddrPortFrom(rb.IPs[i], port), "b "+gw)
			wantCall(t, a, network, netip.AddrPortFrom(netip.MustParseAddr(gw), port), "host "+ra.IPs[i].String())
		}
	}
	if err := m.Check(t.Context(), "aaaa"); err != nil {
		t.Error(err)
	}
	detach(t, m, "aaaa")
	detach(t, m, "bbbb")
	wantNothing(t, h, m)
}

func TestAttachTwiceGivesTheSame(t *testing.T) {
	h := hosttest.New(t)
	m := newManager(t, h)
	_, first := newPod(t, m, "aaaa")
	second, err := m.Attach(t.Context(), Pod{ID: "aaaa", Name: "n", Namespace: "ns", UID: "u"})
	if err != nil || fmt.Sprint(second) != fmt.Sprint(first) {
		t.Errorf("got %v, %v; want %v", second, err, first)
	}
	detach(t, m, "aaaa")
	detach(t, m, "aaaa")
	wantNothing(t, h, m)
}

func TestPodHasNoConnectedSubnet(t *testing.T) {
	h := hosttest.New(t)
	m := newManager(t, h)
	p, r := newPod(t, m, "aaaa")
	link := must(p.Net.LinkByName("eth0"))
	for _, a := range must(p.Net.AddrList(link, netlink.FAMILY_V4)) {
		if a.IPNet.String() != r.IPs[0].String()+"/32" {
			t.Errorf("address %s", a.IPNet)
		}
	}
	for name, want := range map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"} {
		if got := h.Sysctl(name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
	if got := h.Sysctl("net/bridge/bridge-nf-call-iptables"); got != "0" && got != "" {
		t.Errorf("bridge-nf-call-iptables is %q", got)
	}
	rules := must(os.ReadFile("/proc/self/mounts"))
	if !strings.Contains(string(rules), m.path("netns")+"/aaaa nsfs") {
		t.Errorf("namespace is not pinned:\n%s", rules)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	h := hosttest.New(b)
	m := newManager(b, h)
	p := hosttest.New(b)
	pod := Pod{ID: "aaaa", Name: "n", Namespace: "ns", UID: "u"}
	var add, del int64
	for b.Loop() {
		must(m.Pin("aaaa", p.Tid))
		t0 := b.Elapsed()
		must(m.Attach(b.Context(), pod))
		t1 := b.Elapsed()
		detach(b, m, "aaaa")
		t2 := b.Elapsed()
		add += int64(t1 - t0)
		del += int64(t2 - t1)
		m.Drain()
	}
	b.ReportMetric(float64(add)/float64(b.N)/1e6, "ms/attach")
	b.ReportMetric(float64(del)/float64(b.N)/1e6, "ms/detach")
}

func prefixes(list ...string) (all []netip.Prefix, err error) {
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}
