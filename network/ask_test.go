package network

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

// podWith makes a pod with annotations.
func podWith(t testing.TB, m *Manager, id string, annotations map[string]string) (*hosttest.Host, Result, error) {
	t.Helper()
	h := hosttest.New(t)
	must(m.Pin(id, h.Tid))
	r, err := m.Attach(context.Background(), Pod{ID: id, Name: "name-" + id, Namespace: "ns", UID: "uid-" + id, Annotations: annotations})
	return h, r, err
}

func TestStaticAddresses(t *testing.T) {
	h, _, m := twoHosts(t)
	ask := func(kv ...string) map[string]string {
		a := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			a[kv[i]] = kv[i+1]
		}
		return a
	}
	p, r, err := podWith(t, m, "aaaa", ask(AnnotationIPs, "fd09::77, 10.9.0.77/24", AnnotationMAC, "02:00:00:00:00:77"))
	if err != nil || fmt.Sprint(r.IPs) != "[10.9.0.77 fd09::77]" || r.MAC != "02:00:00:00:00:77" {
		t.Fatalf("got %+v, %v", r, err)
	}
	p.Serve("static", "tcp", ap("[::]:80"))
	for _, to := range []string{"10.9.0.77:80", "[fd09::77]:80"} {
		if got, err := h.Call("tcp", ap(to)); err != nil || !strings.HasPrefix(got, "static ") {
			t.Errorf("%s: %q, %v", to, got, err)
		}
	}
	must0(t, m.Check(t.Context(), "aaaa"))
	for what, tc := range map[string]struct{ key, value, want string }{
		"taken":     {AnnotationIPs, "10.9.0.77", "pod ns/name-aaaa"},
		"taken 6":   {AnnotationIPs, "fd09::77", "pod ns/name-aaaa"},
		"taken mac": {AnnotationMAC, "02:00:00:00:00:77", "pod ns/name-aaaa"},
		"outside":   {AnnotationIPs, "10.10.0.1", "is in no range of network pausa"},
		"gateway":   {AnnotationIPs, "10.9.0.1", "is the gateway of 10.9.0.0/24"},
		"network":   {AnnotationIPs, "10.9.0.0", "stands for all of"},
		"broadcast": {AnnotationIPs, "10.9.0.255", "stands for all of"},
		"two":       {AnnotationIPs, "10.9.0.80,10.9.0.81", "at most one address per family"},
		"bridge":    {AnnotationMAC, must(h.Net.LinkByName("pausa0")).Attrs().HardwareAddr.String(), "is that of bridge pausa0"},
	} {
		if _, _, err := podWith(t, m, "bbbb", ask(tc.key, tc.value)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", what, err, tc.want)
		}
		detach(t, m, "bbbb")
	}
	// At once after the other's end: its link is still being deleted.
	detach(t, m, "aaaa")
	if _, r, err := podWith(t, m, "bbbb", ask(AnnotationIPs, "10.9.0.77")); err != nil || r.IPs[0].String() != "10.9.0.77" || !r.IPs[1].Is6() {
		t.Errorf("after the other's end: %v, %v", r.IPs, err)
	}
	detach(t, m, "bbbb")
	wantNothing(t, h, m)
}

// TestDNSOfTheNetwork: what a plugin says reaches the pod, if it is fit for a resolv.conf.
func TestDNSOfTheNetwork(t *testing.T) {
	h := hosttest.New(t)
	for dns, want := range map[string]string{
		`{"nameservers":["10.1.2.1"],"domain":"example.org","options":["ndots:2"]}`: "&{[10.1.2.1] [example.org] [ndots:2]}",
		`{"nameservers":["10.1.2.1"],"domain":"a.org","search":["b.org"]}`:          "&{[10.1.2.1] [b.org] []}",
		`{}`:                    "<nil>",
		`{"nameservers":["x"]}`: `dns: "x" is not an address`,
		`{"nameservers":["::1"],"search":["a\nb"]}`: "is not a word",
	} {
		change, _, _ := fakeNetwork(t, "1.0.0", fakeConf{Type: "fake", DNS: []byte(dns)})
		m := newManager(t, h, change)
		r, err := attach(t, m, "aaaa")
		if got := fmt.Sprint(r.DNS, err); !strings.Contains(got, want) {
			t.Errorf("%s: got %s, want %s", dns, got, want)
		}
		detach(t, m, "aaaa")
	}
}

// TestCapabilities: plugins get what they declare.
func TestCapabilities(t *testing.T) {
	h := hosttest.New(t)
	all := map[string]bool{}
	for _, c := range []string{
		"portMappings", "bandwidth", "ipRanges", "dns", "ips", "mac", "aliases", "infinibandGUID", "cgroupPath",
		"io.kubernetes.cri.pod-annotations", "io.kubernetes.cri.pod-labels",
	} {
		all[c] = true
	}
	change, _, log := fakeNetwork(t, "1.0.0", fakeConf{Type: "fake", Capabilities: all}, fakeConf{Type: "fake2", Capabilities: map[string]bool{"mac": true}})
	m := newManager(t, h, change, func(o *Options) { o.PodCIDRs = must(prefixes("10.1.0.0/24", "fd01::/64", "10.2.0.0/24")) })
	p := hosttest.New(t)
	must(m.Pin("aaaa", p.Tid))
	_, err := m.Attach(t.Context(), Pod{
		ID: "aaaa", Name: "n", Namespace: "ns", UID: "u", Labels: map[string]string{"app": "x"}, CgroupPath: "/mine",
		DNS: &DNS{Servers: []string{"10.0.0.1"}}, Ports: []PortMapping{{HostPort: 80, ContainerPort: 81, Protocol: "UDP", HostIP: "192.0.2.1"}},
		Annotations: map[string]string{
			AnnotationIPs: "10.1.2.3/24", AnnotationMAC: "02-00-00-00-00-07", AnnotationAliases: "a, b", AnnotationGUID: "02:00:00:00:00:00:00:01",
			"kubernetes.io/ingress-bandwidth": "100M",
		},
	})
	must0(t, err)
	detach(t, m, "aaaa")
	calls := log()
	for _, command := range []string{"ADD", "DEL"} {
		line := ""
		for l := range strings.Lines(calls) {
			if strings.HasPrefix(l, "fake2 "+command) && !strings.Contains(l, `runtime={"mac":"02:00:00:00:00:07"} `) {
				t.Errorf("the second plugin got %s", l)
			}
			if strings.HasPrefix(l, "fake "+command) {
				line = l
			}
		}
		for _, want := range []string{
			`"portMappings":[{"containerPort":81,"hostIP":"192.0.2.1","hostPort":80,"protocol":"udp"}]`,
			`"bandwidth":{"ingressBurst":5000000,"ingressRate":100000000}`,
			`"ipRanges":[[{"subnet":"10.1.0.0/24"},{"subnet":"10.2.0.0/24"}],[{"subnet":"fd01::/64"}]]`,
			`"dns":{"servers":["10.0.0.1"]}`, `"ips":["10.1.2.3/24"]`, `"mac":"02:00:00:00:00:07"`, `"aliases":["a","b"]`,
			`"infinibandGUID":"02:00:00:00:00:00:00:01"`, `"cgroupPath":"/mine"`, `"io.kubernetes.cri.pod-labels":{"app":"x"}`,
			`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/ingress-bandwidth":"100M"`,
		} {
			if !strings.Contains(line, want) {
				t.Errorf("%s: no %s in %s", command, want, line)
			}
		}
	}
}
