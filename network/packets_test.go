package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

// twoHosts are a host with pods and another one on the network 192.0.2.0/24, 2001:db8::/64.
func twoHosts(t testing.TB, change ...func(*Options)) (h, other *hosttest.Host, m *Manager) {
	t.Helper()
	h, other = hosttest.New(t), hosttest.New(t)
	hosttest.Link(t, h, "uplink", []string{"192.0.2.1/24", "192.0.2.9/24", "2001:db8::1/64"}, other, "uplink", []string{"192.0.2.2/24", "2001:db8::2/64"})
	h.Route("0.0.0.0/0", "192.0.2.2")
	h.Route("::/0", "2001:db8::2")
	m = newManager(t, h, change...)
	if err := m.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h, other, m
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestMasqueradeOnlyOutwards(t *testing.T) {
	_, other, m := twoHosts(t, func(o *Options) {
		o.NonMasqueradeCIDRs = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	})
	// A peer's pods: reached with the pod's own address, so the answer needs the route back.
	link := must(other.Net.LinkByName("lo"))
	if err := other.Net.AddrAdd(link, must(netlink.ParseAddr("198.51.100.7/32"))); err != nil {
		t.Fatal(err)
	}
	other.Route("10.9.0.0/24", "192.0.2.1")
	a, ra := newPod(t, m, "aaaa")
	b, rb := newPod(t, m, "bbbb")
	for _, network := range []string{"tcp", "udp"} {
		other.Serve("other", network, ap("[::]:7000"))
		b.Serve("b", network, ap("[::]:7000"))
		wantCall(t, a, network, ap("192.0.2.2:7000"), "other 192.0.2.1")
		wantCall(t, a, network, ap("[2001:db8::2]:7000"), "other 2001:db8::1")
		if network == "tcp" { // an UDP answer from the unspecified address would have another source
			wantCall(t, a, network, ap("198.51.100.7:7000"), "other "+ra.IPs[0].String())
		}
		for i, ip := range rb.IPs {
			wantCall(t, a, network, netip.AddrPortFrom(ip, 7000), "b "+ra.IPs[i].String())
		}
	}
}

func TestHostPorts(t *testing.T) {
	h, other, m := twoHosts(t)
	p, r := newPod(t, m, "aaaa",
		PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "TCP"},
		PortMapping{HostPort: 8080, ContainerPort: 81, Protocol: "udp"},
		PortMapping{HostIP: "192.0.2.1", HostPort: 9090, ContainerPort: 80, Protocol: "tcp"},
		PortMapping{ContainerPort: 82, Protocol: "tcp"},
	)
	p.Serve("pod", "tcp", ap("[::]:80"))
	p.Serve("pod", "udp", ap("[::]:81"))
	for network := range map[string]bool{"tcp": true, "udp": true} {
		wantCall(t, other, network, ap("192.0.2.1:8080"), "pod 192.0.2.2")
		wantCall(t, other, network, ap("[2001:db8::1]:8080"), "pod 2001:db8::2")
		wantCall(t, h, network, ap("192.0.2.1:8080"), "pod 192.0.2.1")
		wantCall(t, h, network, ap("[2001:db8::1]:8080"), "pod 2001:db8::1")
		// The pod's way to itself comes from the gateway, else the answer would go past the host.
		wantCall(t, p, network, ap("192.0.2.1:8080"), "pod 10.9.0.1")
		wantCall(t, p, network, ap("[2001:db8::1]:8080"), "pod fd09::1")
	}
	wantCall(t, other, "tcp", ap("192.0.2.1:9090"), "pod 192.0.2.2")
	wantNoAnswer(t, other, "tcp", ap("192.0.2.9:9090"))
	wantNoAnswer(t, other, "tcp", ap("[2001:db8::1]:9090"))
	wantCall(t, other, "tcp", ap("192.0.2.9:8080"), "pod 192.0.2.2")
	q, rq := newPod(t, m, "bbbb")
	wantCall(t, q, "tcp", ap("192.0.2.1:8080"), "pod "+rq.IPs[0].String())
	if err := m.Check(t.Context(), "aaaa"); err != nil {
		t.Error(err)
	}
	detach(t, m, "aaaa")
	wantNoAnswer(t, other, "tcp", ap("192.0.2.1:8080"))
	detach(t, m, "bbbb")
	wantNothing(t, h, m)
	_ = r
}

// TestHostPortsOnLoopback: the daemon's own sockets, back after its restart.
func TestHostPortsOnLoopback(t *testing.T) {
	h, _, next := twoHosts(t)
	var m *Manager // the daemon before next
	h.Must(func() (err error) { m, err = New(next.opts); return err })
	p, _ := newPod(t, m, "aaaa",
		PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "TCP"},
		PortMapping{HostPort: 8080, ContainerPort: 81, Protocol: "udp"},
		PortMapping{HostIP: "192.0.2.1", HostPort: 9090, ContainerPort: 80, Protocol: "tcp"},
		PortMapping{HostIP: "127.0.0.1", HostPort: 7070, ContainerPort: 80, Protocol: "tcp"},
	)
	p.Serve("pod", "tcp", ap("[::]:80"))
	p.Serve("pod", "udp", ap("[::]:81"))
	answers := func() {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			wantCall(t, h, network, ap("127.0.0.1:8080"), "pod 10.9.0.1")
			wantCall(t, h, network, ap("[::1]:8080"), "pod fd09::1")
		}
		wantCall(t, h, "tcp", ap("127.0.0.1:7070"), "pod 10.9.0.1")
		wantNoAnswer(t, h, "tcp", ap("127.0.0.1:9090"))
		wantNoAnswer(t, h, "tcp", ap("[::1]:7070"))
	}
	answers()
	must0(t, m.plugin.Close()) // as the end of a daemon does
	wantNoAnswer(t, h, "tcp", ap("127.0.0.1:8080"))
	must0(t, next.Sync(t.Context()))
	answers()
	detach(t, next, "aaaa")
	for _, to := range []string{"127.0.0.1:8080", "[::1]:8080", "127.0.0.1:7070"} {
		wantNoAnswer(t, h, "tcp", ap(to))
	}
	newPod(t, next, "cccc", PortMapping{HostPort: 8080, ContainerPort: 80}) // the port is free again
	detach(t, next, "cccc")
}

func TestHostPortConflicts(t *testing.T) {
	h, _, m := twoHosts(t)
	newPod(t, m, "aaaa", PortMapping{HostPort: 8080, ContainerPort: 80}, PortMapping{HostIP: "192.0.2.1", HostPort: 9090, ContainerPort: 80})
	h.Serve("listener", "tcp", ap("192.0.2.1:7070"))
	h.Serve("listener", "udp", ap("[2001:db8::1]:6060"))
	for name, tc := range map[string]struct {
		port PortMapping
		want string // in the error; "" for none
	}{
		"same":              {PortMapping{HostPort: 8080, ContainerPort: 1}, "pod ns/name-aaaa has tcp"},
		"any and one":       {PortMapping{HostIP: "192.0.2.9", HostPort: 8080, ContainerPort: 1}, "pod ns/name-aaaa has tcp 0.0.0.0:8080"},
		"one and any":       {PortMapping{HostPort: 9090, ContainerPort: 1}, "pod ns/name-aaaa has tcp 192.0.2.1:9090"},
		"other address":     {PortMapping{HostIP: "192.0.2.9", HostPort: 9090, ContainerPort: 1}, ""},
		"other protocol":    {PortMapping{HostPort: 8080, ContainerPort: 1, Protocol: "UDP"}, ""},
		"process listens":   {PortMapping{HostPort: 7070, ContainerPort: 1}, "of this host listens there"},
		"process on IPv6":   {PortMapping{HostPort: 6060, ContainerPort: 1, Protocol: "udp"}, "publish host port udp [::]:6060"},
		"no such protocol":  {PortMapping{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}, `protocol "icmp"`},
		"no container port": {PortMapping{HostPort: 1}, "no container port"},
		"hostIP is no IP":   {PortMapping{HostIP: "x", HostPort: 1, ContainerPort: 1}, `hostIP "x"`},
	} {
		p := hosttest.New(t)
		must(m.Pin("bbbb", p.Tid))
		_, err := m.Attach(t.Context(), Pod{ID: "bbbb", Name: "n", Namespace: "ns", UID: "u", Ports: []PortMapping{tc.port}})
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
		detach(t, m, "bbbb")
		m.Drain()
	}
	detach(t, m, "aaaa")
	wantNothing(t, h, m)
}

// rawUDP sends one UDP datagram with a made-up source from eth0.
func rawUDP(p *hosttest.Host, mac net.HardwareAddr, src, dst netip.Addr, gwMAC net.HardwareAddr) error {
	return p.SendFrame("eth0", hosttest.UDP(mac, gwMAC, src, dst, 1, 8000))
}

func TestSpoofedSourceIsDropped(t *testing.T) {
	h, other, m := twoHosts(t)
	a, ra := newPod(t, m, "aaaa")
	_, rb := newPod(t, m, "bbbb")
	gw := must(h.Net.LinkByName("pausa0")).Attrs().HardwareAddr
	own := must(net.ParseMAC(ra.MAC))
	got := make(chan string, 10)
	other.Must(func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 8000})
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			for buf := make([]byte, 100); ; {
				_, peer, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				got <- peer.Addr().String()
			}
		}()
		return nil
	})
	receive := func(want bool, what string) {
		t.Helper()
		select {
		case <-got:
			if !want {
				t.Errorf("%s went through", what)
			}
		case <-time.After(300 * time.Millisecond):
			if want {
				t.Errorf("%s was lost", what)
			}
		}
	}
	target := netip.MustParseAddr("192.0.2.2")
	before := must(m.Spoofed())
	must0(t, rawUDP(a, own, ra.IPs[0], target, gw))
	receive(true, "the pod's own address")
	if n := must(m.Spoofed()); n != before {
		t.Errorf("%d packets of the pod's own address were dropped", n-before)
	}
	must0(t, rawUDP(a, own, rb.IPs[0], target, gw))
	receive(false, "another pod's address")
	must0(t, rawUDP(a, own, netip.MustParseAddr("8.8.8.8"), target, gw))
	receive(false, "a foreign address")
	must0(t, rawUDP(a, must(net.ParseMAC(rb.MAC)), ra.IPs[0], target, gw))
	receive(false, "another pod's hardware address")
	if n := must(m.Spoofed()); n != before+3 {
		t.Errorf("counted %d dropped packets, want 3", n-before)
	}
	// The same by IPv6, from the pod's own stack: an address that it gave itself.
	link := must(a.Net.LinkByName("eth0"))
	addr := must(netlink.ParseAddr("fd09::dead/128"))
	addr.Flags = unix.IFA_F_NODAD
	must0(t, a.Net.AddrAdd(link, addr))
	h.Serve("host", "tcp", ap("[fd09::1]:80"))
	wantCall(t, a, "tcp", ap("[fd09::1]:80"), "host "+ra.IPs[1].String())
	err := a.Do(func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("fd09::dead")}, Timeout: 300 * time.Millisecond}
		c, err := d.Dial("tcp", "[fd09::1]:80")
		if err == nil {
			c.Close()
		}
		return err
	})
	if err == nil {
		t.Error("a self-made IPv6 address reached the host")
	}
}

func must0(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever somebody deletes or flushes, Sync brings back from the records.
func TestSyncHeals(t *testing.T) {
	h, other, m := twoHosts(t)
	p, r := newPod(t, m, "aaaa", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	p.Serve("pod", "tcp", ap("[::]:80"))
	works := func(what string) {
		t.Helper()
		for _, to := range []string{"192.0.2.1:8080", "[2001:db8::1]:8080"} {
			if got, err := other.Call("tcp", ap(to)); err != nil || !strings.HasPrefix(got, "pod ") {
				t.Errorf("%s: %s: %q, %v", what, to, got, err)
			}
		}
		if err := m.Check(t.Context(), "aaaa"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	works("at first")
	before := nftList(t, h)
	rules := map[string]bool{"flush ruleset": true, "flush bridge": true} // told by the kernel
	if what, err := damage(m); what != "" || err != nil {
		t.Errorf("damage at first: %q, %v", what, err)
	}
	for what, args := range map[string][]string{
		"flush ruleset":  {"nft", "flush", "ruleset"},
		"flush bridge":   {"nft", "delete", "table", "bridge", "pausa"},
		"delete bridge":  {"ip", "link", "del", "pausa0"},
		"delete address": {"ip", "addr", "del", "10.9.0.1/24", "dev", "pausa0"},
		"bridge down":    {"ip", "link", "set", "pausa0", "down"},
		"redirects":      {"sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/send_redirects"},
		"no forwarding":  {"sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding"},
	} {
		if out, err := h.Run(args[0], args[1:]...); err != nil {
			t.Fatalf("%s: %v: %s", what, err, out)
		}
		if found, err := damage(m); (found == "") != rules[what] || err != nil {
			t.Errorf("%s: damage %q, %v", what, found, err)
		}
		if err := m.Sync(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if found, err := damage(m); found != "" || err != nil {
			t.Errorf("%s: damage after Sync: %q, %v", what, found, err)
		}
		works("after " + what)
		if after := nftList(t, h); after != before {
			t.Errorf("%s: rules differ:\n%s\n---\n%s", what, before, after)
		}
	}
	// An ADD after a flush must not need a Sync.
	if out, err := h.Run("nft", "flush", "ruleset"); err != nil {
		t.Fatal(err, out)
	}
	newPod(t, m, "bbbb", PortMapping{HostPort: 8081, ContainerPort: 80, Protocol: "tcp"})
	works("after a flush and an ADD")
	if out, err := h.Run("nft", "flush", "ruleset"); err != nil {
		t.Fatal(err, out)
	}
	detach(t, m, "aaaa")
	detach(t, m, "bbbb")
	must0(t, m.Sync(t.Context()))
	wantNothing(t, h, m)
	_ = r
}

// nftList is the rule set without counters' values.
func nftList(t testing.TB, h *hosttest.Host) string {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("this host has no nft to list the rules with")
	}
	out, err := h.Run("nft", "--stateless", "list", "ruleset")
	if err != nil {
		t.Fatalf("list rules: %v: %s", err, out)
	}
	return out
}

// TestRefusalAfterMuchTraffic: redirects would use up the host's rate of ICMP
// errors to a pod, and refused datagrams be lost without a word.
func TestRefusalAfterMuchTraffic(t *testing.T) {
	h, _, m := twoHosts(t)
	a, _ := newPod(t, m, "aaaa")
	b, rb := newPod(t, m, "bbbb")
	b.Serve("b", "udp", ap("[::]:7000"))
	for range 20 {
		if _, err := a.Call("udp", netip.AddrPortFrom(rb.IPs[0], 7000)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if _, err := a.Call("udp", ap("10.9.0.1:9")); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%v, want refused", err)
		}
	}
	if got := h.Sysctl("net/ipv4/conf/uplink/send_redirects"); got != "1" {
		t.Errorf("the uplink's own setting became %s", got)
	}
	for _, name := range []string{"net/ipv4/conf/all/send_redirects", "net/ipv4/conf/pausa0/send_redirects"} {
		if got := h.Sysctl(name); got != "0" {
			t.Errorf("%s is %s", name, got)
		}
	}
	detach(t, m, "aaaa")
	detach(t, m, "bbbb")
}

func TestMTUFollowsTheUplink(t *testing.T) {
	h, _, _ := twoHosts(t)
	link := must(h.Net.LinkByName("uplink"))
	must0(t, h.Net.LinkSetMTU(link, 1420))
	m := newManager(t, h, func(o *Options) {
		o.Bridge = "pausa1"
		o.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.10.0.0/24")}
	})
	p, _ := newPod(t, m, "aaaa")
	if got := must(p.Net.LinkByName("eth0")).Attrs().MTU; got != 1420 {
		t.Errorf("pod has mtu %d", got)
	}
	detach(t, m, "aaaa")
}

func TestSixteenAtOnce(t *testing.T) {
	h := hosttest.New(t)
	m := newManager(t, h)
	done := make(chan error)
	seen := make(chan netip.Addr, 1000)
	for i := range 16 {
		p := hosttest.New(t)
		go func() {
			done <- func() error {
				for n := range 5 {
					id := fmt.Sprintf("%02d%02d", i, n)
					if _, err := m.Pin(id, p.Tid); err != nil {
						return err
					}
					r, err := m.Attach(t.Context(), Pod{ID: id, Name: id, Namespace: "ns", UID: "u", Ports: []PortMapping{{HostPort: uint16(9000 + i), ContainerPort: 80}}})
					if err != nil {
						return err
					}
					if n == 0 {
						seen <- r.IPs[0]
					}
					if err := m.Detach(t.Context(), id); err != nil {
						return err
					}
					m.Drain() // the interface's name is free again
				}
				return nil
			}()
		}()
	}
	for range 16 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	close(seen)
	wantNothing(t, h, m)
}
