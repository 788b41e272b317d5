//go:build integration

package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/pausa-run/pausa/integration/host"
)

// leadTo declares a Service, of both families and without a selector, whose
// endpoints are the pods of other hosts, and returns its cluster IPs.
func (n *node) leadTo(name string, ends map[string][]netip.Addr) []string {
	n.t.Helper()
	text := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ports: [{name: t, port: 80, targetPort: 8080, nodePort: 30090}, {name: u, port: 80, targetPort: 8080, nodePort: 30090, protocol: UDP}]
`, name)
	for v, family := range []string{"IPv4", "IPv6"} {
		text += fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s-%s, labels: {kubernetes.io/service-name: %[1]s}}
addressType: %[3]s
ports: [{name: t, port: 8080}, {name: u, port: 8080, protocol: UDP}]
endpoints:
`, name, strings.ToLower(family), family)
		for node, addrs := range ends {
			text += fmt.Sprintf("- {addresses: [%q], nodeName: %s}\n", addrs[v], node)
		}
	}
	n.apply(text)
	return n.service(name).Spec.ClusterIPs
}

// reachAll asks a Service until each of its endpoints has answered; they see seen,
// or the client's own address if that is not valid.
func (n *node) reachAll(what string, from place, to netip.AddrPort, seen netip.Addr, names ...string) {
	n.t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		missing := map[string]bool{}
		for _, name := range names {
			missing[name] = true
		}
		for range 60 { // enough for chance to leave none of two out
			got, err := from.ask(network, to.String())
			want := seen
			if !want.IsValid() {
				want = got.mine.Unmap()
			}
			if err != nil || got.seen.Unmap() != want {
				n.t.Errorf("%s: %s to %s: %s saw %s, I am %s, %v; want the client seen as %s", what, network, to, got.name, got.seen, got.mine, err, want)
				return
			}
			if delete(missing, got.name); len(missing) == 0 {
				break
			}
		}
		if len(missing) > 0 {
			n.t.Errorf("%s: %s to %s never leads to %v", what, network, to, missing)
		}
	}
}

// reboot is what a restart of the machine does to a host: no process of pausa, no
// record on the tmpfs, no link, rule or namespace is left, and the daemon starts.
func (n *node) reboot() {
	n.t.Helper()
	if err := errors.Join(n.KillDaemon(syscall.SIGKILL), n.KillKeeper(syscall.SIGKILL)); err != nil {
		n.t.Fatal(err)
	}
	n.eventually("no process is left", func() error {
		all, err := n.Processes()
		for _, p := range all {
			if p.Pid != 1 && p.State != "Z" {
				err = errors.Join(err, fmt.Errorf("%d %s", p.Pid, p.Cmdline), syscall.Kill(p.OuterPid, syscall.SIGKILL))
			}
		}
		return err
	})
	script := `
awk '$2 ~ "^` + host.RunDir + `/" {print $2}' /proc/self/mounts | sort -r | xargs -r -n1 umount -l
find ` + host.RunDir + ` -mindepth 1 -delete
nft flush ruleset
for l in $(ip -o link show type veth | awk -F'[ @:]+' '$2 ~ /^pv/ {print $2}') pausa0; do ip link del $l; done
ip route flush proto 113; ip -6 route flush proto 113
find /sys/fs/cgroup -depth -mindepth 3 -type d -path "*` + n.CgroupParent + `/*" -exec rmdir {} +
`
	if out, err := n.Output("sh", "-euc", script); err != nil {
		n.t.Fatalf("%v: %s", err, out)
	}
	if err := n.Serve(); err != nil {
		n.t.Fatal(err)
	}
}

// Services whose endpoints are on two other hosts: pods and the host itself reach them
// with their own address, a client outside with this host's; also after hosts were
// restarted, and of a host that has gone its endpoint is named.
func TestServicesAcrossHosts(t *testing.T) {
	nodes := routedHosts(t, "one", "two", "three")
	var places []place
	ends := map[string][]netip.Addr{}
	for i, n := range nodes {
		n.apply(podOn(n.Name, fmt.Sprintf("{pausa.run/ips: %q}", fmt.Sprintf("10.%d.0.77,fd%[1]d::77", 50+i))))
		n.waitReady("", 1)
		places = append(places, n.placeOf(*n.pod(n.Name)))
		places[i].serve(t, n.Name, 8080)
		ends[n.Name] = n.addrsOf(n.Name)
	}
	one, two, three := nodes[0], nodes[1], nodes[2]
	ips := one.leadTo("far", map[string][]netip.Addr{"two": ends["two"], "three": ends["three"]})
	all := func(what string) {
		t.Helper()
		for v, ip := range ips {
			own := netip.MustParseAddr([]string{"10.253.1.1", "fd53:1::1"}[v])
			to := netip.AddrPortFrom(netip.MustParseAddr(ip), 80)
			one.reachAll(what+", from a pod", places[0], to, netip.Addr{}, "two", "three")
			one.reachAll(what+", from the host", one.place(), to, netip.Addr{}, "two", "three")
			one.reachAll(what+", from another host by the node port", two.place(), netip.AddrPortFrom(own, 30090), own, "two", "three")
		}
	}
	all("at first")
	two.reboot()
	two.waitReady("", 1)
	places[1] = two.placeOf(*two.pod("two"))
	places[1].serve(t, "two", 8080)
	all("after the host of an endpoint was restarted")
	one.reboot()
	one.waitReady("", 1)
	places[0] = one.placeOf(*one.pod("one"))
	places[0].serve(t, "one", 8080)
	all("after the client's host was restarted")

	// The host of an endpoint goes away.
	if _, err := three.Output("sh", "-euc", "sysctl -qw net.ipv6.conf.segment1.keep_addr_on_down=1; ip link set segment1 down"); err != nil {
		t.Fatal(err)
	}
	for v, ip := range ips {
		gone := netip.AddrPortFrom(ends["three"][v], 8080)
		got := one.trace("one", netip.AddrPortFrom(netip.MustParseAddr(ip), 80).String())
		if w := got.first("warn") + got.first("stop"); !strings.Contains(w, gone.String()+", on another host, does not answer") || strings.Contains(w, ends["two"][v].String()) {
			t.Errorf("the trace does not name the endpoint that is gone, %s: %+v", gone, got)
		}
	}
	ips = one.leadTo("far", map[string][]netip.Addr{"two": ends["two"]})
	one.reachAll("without the endpoint that is gone", places[0], netip.AddrPortFrom(netip.MustParseAddr(ips[0]), 80), netip.Addr{}, "two")
	if _, err := three.Output("ip", "link", "set", "segment1", "up"); err != nil {
		t.Fatal(err)
	}
	three.eventually("its ways to the others are back", func() error {
		for _, to := range append(ends["one"], ends["two"]...) {
			if _, err := places[2].ask("tcp", netip.AddrPortFrom(to, 8080).String()); err != nil {
				return err
			}
		}
		return nil
	})
	one.leadTo("far", map[string][]netip.Addr{"two": ends["two"], "three": ends["three"]})
	all("after the host came back")
	for _, n := range nodes {
		n.ok("delete", "--all", "-A")
	}
}
