package network

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

// TestLinksHeal: a link that was taken from the bridge, brought down or deleted.
func TestLinksHeal(t *testing.T) {
	h, other, m := twoHosts(t)
	p, r := newPod(t, m, "aaaa", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	newPod(t, m, "bbbb")
	p.Serve("pod", "tcp", ap("[::]:80"))
	link := must(p.Net.LinkByName("eth0"))
	veth := must(h.Net.LinkByIndex(link.Attrs().ParentIndex)).Attrs().Name
	for what, args := range map[string][]string{
		"is not on bridge": {"ip", "link", "set", veth, "nomaster"},
		"is down":          {"ip", "link", "set", veth, "down"},
		"is gone":          {"ip", "link", "del", veth},
	} {
		must(h.Run(args[0], args[1:]...))
		wait := time.Now().Add(10 * time.Second)
		found := ""
		for found == "" && time.Now().Before(wait) { // the kernel's word is on its way
			found = must(damage(m))
		}
		if !strings.Contains(found, what) || !strings.Contains(found, "pod ns/name-aaaa") {
			t.Errorf("%v: damage %q", args, found)
		}
		must0(t, m.Sync(t.Context()))
		for _, to := range []string{"192.0.2.1:8080", "[2001:db8::1]:8080"} {
			got, err := other.Call("tcp", ap(to))
			for err != nil && time.Now().Before(wait) { // the first packets of a link may be lost
				got, err = other.Call("tcp", ap(to))
			}
			if err != nil || !strings.HasPrefix(got, "pod ") {
				t.Errorf("after %v: %s: %q, %v", args, to, got, err)
			}
		}
		if err := m.Check(t.Context(), "aaaa"); err != nil {
			t.Errorf("after %v: %v", args, err)
		}
	}
	detach(t, m, "aaaa")
	detach(t, m, "bbbb")
	m.Drain()
	must0(t, m.Sync(t.Context()))
	if found := must(damage(m)); found != "" {
		t.Errorf("pods that ended are missed: %q", found)
	}
	wantNothing(t, h, m)
	_ = r
}

// damage is all damage as "reason: words".
func damage(m *Manager) (string, error) {
	found, err := m.Damage(context.Background())
	var words []string
	for _, d := range found {
		words = append(words, d.Reason+": "+d.What)
	}
	return strings.Join(words, "; "), err
}

// TestRoutesToOtherHosts: two hosts with pods, each knows the way to the other's.
func TestRoutesToOtherHosts(t *testing.T) {
	hosts, pods, results, managers := [2]*hosttest.Host{hosttest.New(t), hosttest.New(t)}, [2]*hosttest.Host{}, [2]Result{}, [2]*Manager{}
	hosttest.Link(t, hosts[0], "uplink", []string{"192.0.2.1/24", "2001:db8::1/64"}, hosts[1], "uplink", []string{"192.0.2.2/24", "2001:db8::2/64"})
	for i, h := range hosts {
		mine, other := fmt.Sprint(20+i), fmt.Sprint(21-i)
		managers[i] = newManager(t, h, func(o *Options) {
			o.PodCIDRs = must(prefixes("10."+mine+".0.0/24", "fd"+mine+"::/64"))
			o.Routes = []Route{
				{netip.MustParsePrefix("10." + other + ".0.0/24"), netip.MustParseAddr(fmt.Sprint("192.0.2.", 2-i))},
				{netip.MustParsePrefix("fd" + other + "::/64"), netip.MustParseAddr(fmt.Sprint("2001:db8::", 2-i))},
			}
		})
		must0(t, managers[i].Sync(t.Context()))
		pods[i], results[i] = newPod(t, managers[i], "aaaa")
		pods[i].Serve("pod"+mine, "tcp", ap("[::]:80"))
		pods[i].Serve("pod"+mine, "udp", ap("[::]:80"))
	}
	works := func(what string) {
		t.Helper()
		for i := range pods {
			for f, ip := range results[1-i].IPs {
				for _, proto := range []string{"tcp", "udp"} {
					got, err := pods[i].Call(proto, netip.AddrPortFrom(ip, 80))
					if want := fmt.Sprint("pod", 21-i, " ", results[i].IPs[f]); got != want || err != nil {
						t.Errorf("%s: %s to %s: %q, %v; want %q", what, proto, ip, got, err, want)
					}
				}
			}
		}
	}
	works("at first")
	for _, args := range [][]string{{"route", "del", "10.21.0.0/24"}, {"-6", "route", "del", "fd21::/64"}} {
		must(hosts[0].Run("ip", args...))
		if what, err := damage(managers[0]); !strings.Contains(what, "via") || !strings.Contains(what, "is missing") || err != nil {
			t.Errorf("damage: %q, %v", what, err)
		}
		must0(t, managers[0].Sync(t.Context()))
		works("healed")
	}
	if what, err := damage(managers[0]); what != "" || err != nil {
		t.Errorf("damage after Sync: %q, %v", what, err)
	}
	// Somebody else's route is not touched; it is told.
	must(hosts[0].Run("ip", "route", "del", "10.21.0.0/24"))
	must(hosts[0].Run("ip", "route", "add", "blackhole", "10.21.0.0/24"))
	if err := managers[0].Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "the host has another route there") || len(managers[0].Problems()) != 1 {
		t.Errorf("another's route: %v, %v", err, managers[0].Problems())
	}
	must(hosts[0].Run("ip", "route", "del", "blackhole", "10.21.0.0/24"))
	must0(t, managers[0].Sync(t.Context()))
	works("without the other's")
	// A route that is no longer configured goes.
	opts := managers[0].opts
	opts.Routes = opts.Routes[1:]
	m2 := openManager(t, hosts[0], opts)
	must0(t, m2.Sync(t.Context()))
	if out := must(hosts[0].Run("ip", "route")); strings.Contains(out, "10.21.0.0/24") {
		t.Errorf("route is left:\n%s", out)
	}
	for i := range managers {
		detach(t, managers[i], "aaaa")
	}
	opts.Routes = []Route{{netip.MustParsePrefix("10.30.0.0/24"), netip.MustParseAddr("203.0.113.9")}}
	m3 := openManager(t, hosts[0], opts)
	if err := m3.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "203.0.113.9 is on none of this host's networks") {
		t.Errorf("an address out of reach: %v", err)
	}
}
