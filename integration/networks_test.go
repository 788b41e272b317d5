//go:build integration

package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pausa-run/pausa/integration/host"
)

// podOn is a pod with annotations ("{...}") that sleeps.
func podOn(name, annotations string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}, annotations: %s}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "localhost/busybox:latest", command: [sleep, "1000"]}]
`, name, annotations)
}

// addrsOf are the addresses of a pod of the default namespace.
func (n *node) addrsOf(name string) []netip.Addr {
	n.t.Helper()
	var out []netip.Addr
	for _, ip := range n.pod(name).Status.PodIPs {
		out = append(out, netip.MustParseAddr(ip.IP))
	}
	return out
}

// reaches asks a server of a pod over both families and protocols, and wants it to see the client's own address.
func (n *node) reaches(what string, from place, name string, to []netip.Addr) {
	n.t.Helper()
	for _, addr := range to {
		for _, network := range []string{"tcp", "udp"} {
			got, err := from.ask(network, netip.AddrPortFrom(addr, 8080).String())
			if err != nil || got.name != name || got.seen.Unmap() != got.mine.Unmap() {
				n.t.Errorf("%s: %s to %s at %s: %+v, %v", what, network, name, addr, got, err)
			}
		}
	}
}

// routedHosts are hosts with a daemon each, on one network, that know the ways to each
// other's pods: those of host I have addresses of 10.(50+I).0.0/16 and fd(50+I)::/64.
func routedHosts(t *testing.T, names ...string) (nodes []*node) {
	t.Helper()
	var hosts []*host.Host
	for _, name := range names {
		n := newHost(t, name)
		nodes, hosts = append(nodes, n), append(hosts, n.Host)
	}
	if err := host.Segment(1, hosts...); err != nil {
		t.Fatal(err)
	}
	for i, n := range nodes {
		var routes []string
		for j := range nodes {
			if j != i {
				routes = append(routes, fmt.Sprintf("10.%d.0.0/16 via 10.253.1.%d", 50+j, j+1), fmt.Sprintf("fd%d::/64 via fd53:1::%d", 50+j, j+1))
			}
		}
		n.Env = append(n.Env, fmt.Sprintf("PAUSA_NETWORK_POD_CIDRS=10.%d.0.0/16,fd%[1]d::/64", 50+i), "PAUSA_NETWORK_ROUTES="+strings.Join(routes, ","))
		if err := n.Serve(); err != nil {
			t.Fatal(err)
		}
		n.importBusybox()
		n.baseline()
	}
	return nodes
}

// Three hosts with a daemon each reach each other's pods by routes, without NAT;
// a route that somebody deletes comes back.
func TestRoutesAcrossHosts(t *testing.T) {
	nodes := routedHosts(t, "one", "two", "three")
	for _, n := range nodes {
		n.apply(podOn(n.Name, "{}"))
	}
	var places []place
	var addrs [][]netip.Addr
	for _, n := range nodes {
		n.waitReady("", 1)
		places, addrs = append(places, n.placeOf(*n.pod(n.Name))), append(addrs, n.addrsOf(n.Name))
		places[len(places)-1].serve(t, n.Name, 8080)
	}
	all := func(what string) {
		t.Helper()
		for i, from := range places {
			for j, to := range nodes {
				if i != j {
					to.reaches(what+", from "+nodes[i].Name, from, to.Name, addrs[j])
				}
			}
		}
	}
	all("at first")
	for _, args := range [][]string{{"ip", "route", "del", "10.51.0.0/16"}, {"ip", "-6", "route", "del", "fd51::/64"}} {
		if _, err := nodes[0].Output(args...); err != nil {
			t.Fatal(err)
		}
	}
	nodes[0].eventually("the routes are back", func() error {
		out, err := nodes[0].Output("sh", "-c", "ip route; ip -6 route")
		if err == nil && (!strings.Contains(out, "10.51.0.0/16 via 10.253.1.2") || !strings.Contains(out, "fd51::/64 via fd53:1::2")) {
			err = errors.New(out)
		}
		return err
	})
	all("after routes were deleted")
}

// A pod chooses its network, its addresses and its limits by annotations; what
// somebody does to bridges and links is healed; what cannot be is told.
func TestNetworkAnnotationsAndHealing(t *testing.T) {
	n := newHost(t, "nets")
	n.Env = append(n.Env, "PAUSA_NETWORK_FURTHER=blue 10.90.0.0/24 fd90::/64", "PAUSA_NETWORK_ROUTES=10.77.0.0/24 via 203.0.113.1")
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	if out := n.ok("info"); !strings.Contains(out, "203.0.113.1 is on none of this host's networks") {
		t.Errorf("no word of the route that cannot be made:\n%s", out)
	}
	n.apply(podOn("plain", "{}") + "---" +
		podOn("fixed", `{pausa.run/ips: "10.88.0.200,fd88::200", pausa.run/mac: "02:00:00:00:02:00", kubernetes.io/egress-bandwidth: 10M}`) + "---" +
		podOn("blue", `{pausa.run/network: blue}`))
	n.waitReady("", 3)
	if got := fmt.Sprint(n.addrsOf("fixed"), n.addrsOf("blue")); got != "[10.88.0.200 fd88::200] [10.90.0.2 fd90::2]" {
		t.Errorf("addresses %s", got)
	}
	n.apply(podOn("late", `{pausa.run/ips: "10.88.0.200"}`))
	n.eventually("the conflict names the owner", func() error {
		out := n.ok("describe", "pod", "late")
		if !strings.Contains(out, "pod default/fixed") {
			return errors.New(out)
		}
		return nil
	})
	n.ok("delete", "pod", "late")
	places := map[string]place{}
	for _, name := range []string{"plain", "fixed", "blue"} {
		places[name] = n.placeOf(*n.pod(name))
		places[name].serve(t, name, 8080)
	}
	works := func(what string) error {
		for _, addr := range n.addrsOf("fixed") {
			if got, err := places["plain"].ask("tcp", netip.AddrPortFrom(addr, 8080).String()); err != nil || got.name != "fixed" {
				return fmt.Errorf("%s: %+v, %w", what, got, err)
			}
			if _, err := places["blue"].ask("tcp", netip.AddrPortFrom(addr, 8080).String()); err == nil {
				return fmt.Errorf("%s: the network blue reaches the other", what)
			}
		}
		got, err := n.place().ask("tcp", netip.AddrPortFrom(n.addrsOf("blue")[0], 8080).String())
		if err == nil && got.name != "blue" {
			err = fmt.Errorf("got %+v", got)
		}
		return err
	}
	if err := works("at first"); err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{
		"ip link del pausa0", "ip link set pausa0-blue down", "ip addr del fd88::1/64 dev pausa0",
		"ip -o link show master pausa0 | grep -o 'pv[0-9a-f]*' | xargs -n 1 -I{} ip link set {} nomaster",
		"ip -o link show master pausa0-blue | grep -o 'pv[0-9a-f]*' | xargs -n 1 ip link del",
		"echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
		"nft flush ruleset",
	} {
		if out, err := n.Output("sh", "-c", script); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		time.Sleep(100 * time.Millisecond) // what still works for a moment shall not count
		n.eventually("healed after "+script, func() error { return works(script) })
	}
	n.ok("delete", "--all", "-A")
}
