//go:build integration && kubelet

package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// idle is a pod of a kubelet's that does nothing.
func idle(name string) *corev1.Pod {
	return namedPod(name, shell("main", "while :; do sleep 0.5; done"))
}

// addressesOf tells whether a pod has one address of each range, and no more.
func addressesOf(p *corev1.Pod, ranges ...string) error {
	if len(p.Status.PodIPs) != len(ranges) {
		return fmt.Errorf("it has %v, want addresses of %v", p.Status.PodIPs, ranges)
	}
	for _, r := range ranges {
		if !slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return netip.MustParsePrefix(r).Contains(netip.MustParseAddr(ip.IP)) }) {
			return fmt.Errorf("it has %v, want one of %s", p.Status.PodIPs, r)
		}
	}
	return nil
}

// Pods of a kubelet get addresses of the podCIDR that it names, of both families if
// there are two; another podCIDR is for pods to come, and those that are there stay
// and are reached. The daemon keeps it over a restart.
func TestKubeletPodCIDR(t *testing.T) {
	k := newAgentWith(t, "podcidr", nil, map[string]any{"podCIDR": "10.60.0.0/24,fd60::/64"})
	addrs := map[string][]string{"old": {"10.60.0.0/24", "fd60::/64"}, "young": {"10.61.0.0/24"}, "last": {"10.61.0.0/24"}}
	places := map[string]place{}
	make := func(name string) {
		t.Helper()
		k.declare(idle(name))
		p := k.awaitReady(name)
		if err := addressesOf(p, addrs[name]...); err != nil {
			t.Error(name, err)
		}
		places[name] = k.placeOf(*p)
		places[name].serve(t, name, 8080)
		for _, other := range []string{"old", "young"} { // they see each other's own addresses
			if at, there := places[other]; there && other != name {
				op := k.awaitReady(other)
				got, err := places[name].ask("tcp", netip.AddrPortFrom(netip.MustParseAddr(op.Status.PodIP), 8080).String())
				if err != nil || got.name != other || got.seen.Unmap() != got.mine.Unmap() {
					t.Errorf("%s to %s: %+v, %v", name, other, got, err)
				}
				got, err = at.ask("tcp", netip.AddrPortFrom(netip.MustParseAddr(p.Status.PodIP), 8080).String())
				if err != nil || got.name != name || got.seen.Unmap() != got.mine.Unmap() {
					t.Errorf("%s to %s: %+v, %v", other, name, got, err)
				}
			}
		}
	}
	make("old")
	k.stop(syscall.SIGTERM)
	k.more["podCIDR"] = "10.61.0.0/24"
	k.start()
	make("young")
	if err := addressesOf(k.awaitReady("old"), addrs["old"]...); err != nil {
		t.Error("the pod before:", err)
	}
	if err := errors.Join(k.KillDaemon(syscall.SIGKILL), k.Serve()); err != nil {
		t.Fatal(err)
	}
	make("last")
	k.clear("old", "young", "last")
}

// Pods of a kubelet find the Services that are declared to the daemon by their names,
// and, when that is asked for, have names themselves.
func TestKubeletNames(t *testing.T) {
	k := newAgentWith(t, "names", nil, map[string]any{"clusterDNS": []string{"10.96.0.10"}, "clusterDomain": "cluster.local"}, "PAUSA_NETWORK_DNS_ALL_PODS=true")
	k.apply(web)
	pods := k.waitReady("app=web", 2)
	k.declare(idle("client"))
	client := k.awaitReady("client")
	if out, err := k.run(client, "main", "cat", "/etc/resolv.conf"); err != nil || !strings.Contains(out, "nameserver 10.96.0.10\n") || !strings.Contains(out, "search default.svc.cluster.local svc.cluster.local cluster.local") {
		t.Errorf("resolv.conf: %q, %v", out, err)
	}
	for _, name := range []string{"web", "web.default", "web.default.svc.cluster.local"} {
		k.answers("the name "+name, pods, func() (string, error) {
			return k.run(client, "main", "timeout", "5", "wget", "-q", "-O", "-", "http://"+name+"/cgi-bin/name")
		})
	}
	ip := client.Status.PodIP
	own := strings.ReplaceAll(ip, ".", "-") + ".default.pod.cluster.local"
	for name, want := range map[string]bool{own: true, strings.Replace(own, "default", "other", 1): false, "10-88-99-99.default.pod.cluster.local": false, "none.default.svc.cluster.local": false} {
		out, err := k.run(client, "main", "nslookup", name)
		if found := strings.Contains(out, "Address: "+ip); found != want || (err == nil) != want {
			t.Errorf("%s: %s, %v; want it found: %v", name, out, err, want)
		}
	}
	k.ok("delete", "--all", "-A")
	k.clear("client")
}
