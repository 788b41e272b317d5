package reconcile

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod/manifest"
)

// dual gives a world ranges of both families.
func dual(o *Options) {
	o.Alloc = service.NewAllocator([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/24"), netip.MustParsePrefix("fd96::/112")}, 30000, 32767)
}

func (w *world) spec(name string) *corev1.ServiceSpec {
	w.t.Helper()
	list, err := w.e.Get(manifest.KindService, "default", name, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return &list[0].Value().(*corev1.Service).Spec
}

// leadsTo waits until the table has these endpoints of the first port.
func (w *world) leadsTo(name string, want ...string) {
	w.t.Helper()
	var got []string
	w.until(fmt.Sprintf("%s leads to %v", name, want), func() bool {
		got = nil
		for _, p := range w.written(name).Ports[:1] {
			for _, e := range p.Endpoints {
				got = append(got, e.String())
			}
		}
		return slices.Equal(got, want)
	})
}

const external = `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {externalTrafficPolicy: Local, type: NodePort, ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints:
- {addresses: [192.0.2.50]}
- {addresses: [192.0.2.51], conditions: {ready: false}}
- {addresses: [192.0.2.52], nodeName: node}
ports: [{name: sql, port: 15432}]
`

func TestDeclaredEndpointSlices(t *testing.T) {
	w := newWorld(t)
	w.apply(external)
	w.leadsTo("db", "192.0.2.50:15432", "192.0.2.52:15432")
	got := w.written("db")
	if p := got.Ports[0]; len(p.External) != 1 || p.External[0].String() != "192.0.2.52:15432" {
		t.Errorf("for clients outside: %v, want the endpoint on this host", p.External)
	}
	if len(got.Remote) != 2 || got.Remote[0].String() != "192.0.2.50" {
		t.Errorf("on other hosts: %v", got.Remote)
	}
	w.apply(strings.ReplaceAll(strings.Split(external, "---")[1], "ready: false", "ready: true"))
	w.leadsTo("db", "192.0.2.50:15432", "192.0.2.51:15432", "192.0.2.52:15432")
	w.stop()
	w.start()
	w.leadsTo("db", "192.0.2.50:15432", "192.0.2.51:15432", "192.0.2.52:15432")
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: manifest.KindEndpointSlice, Namespace: "default", Name: "db-1"}); err != nil {
		t.Fatal(err)
	}
	w.leadsTo("db")
}

func TestDeclaredEndpoints(t *testing.T) {
	w := newWorld(t)
	w.apply(`
apiVersion: v1
kind: Service
metadata: {name: old}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: old}
subsets: [{addresses: [{ip: 192.0.2.50}], notReadyAddresses: [{ip: 192.0.2.51}], ports: [{port: 8080}]}]
`)
	w.leadsTo("old", "192.0.2.50:8080")
	for text, want := range map[string]string{
		"{apiVersion: v1, kind: Service, metadata: {name: old}, spec: {selector: {a: b}, ports: [{port: 80}]}}":                                                                "delete endpoints/old first",
		"{apiVersion: v1, kind: Service, metadata: {name: new}, spec: {selector: {a: b}, ports: [{port: 80}]}}\n---\n{apiVersion: v1, kind: Endpoints, metadata: {name: new}}": "remove the selector",
	} {
		if _, err := w.e.Apply(context.Background(), w.decode(text), false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	list, err := w.e.Get(manifest.KindEndpoints, "default", "", nil)
	if err != nil || len(list) != 1 {
		t.Errorf("endpoints %v, %v: want those declared alone", list, err)
	}
}

const pair2 = `
apiVersion: v1
kind: Service
metadata: {name: web, labels: {tier: front}}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: web, x: "1"}}
spec: {containers: [{name: c, image: b, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: web, x: "2"}}
spec: {containers: [{name: c, image: b, ports: [{name: http, containerPort: 8081}]}]}
`

// TestEndpointsFollowLabelsAndSelectors without looking at everything.
func TestEndpointsFollowLabelsAndSelectors(t *testing.T) {
	w := newWorld(t)
	w.apply(pair2)
	w.until("both pods are behind it", func() bool { return w.table.endpoints("web") == 2 })
	ports := map[uint16]bool{}
	for _, e := range w.written("web").Ports[0].Endpoints {
		ports[e.Port()] = true
	}
	if !ports[8080] || !ports[8081] {
		t.Errorf("ports %v: the named port differs per pod", ports)
	}
	list, err := w.e.Get(manifest.KindEndpointSlice, "default", "", nil)
	if err != nil || len(list) != 2 {
		t.Fatalf("slices %v, %v: want one for each port", list, err)
	}
	s := list[0].Value().(*discoveryv1.EndpointSlice)
	if s.Labels[discoveryv1.LabelServiceName] != "web" || s.Labels["tier"] != "front" || !strings.HasPrefix(s.Name, "web-") ||
		s.Endpoints[0].TargetRef == nil || !*s.Endpoints[0].Conditions.Ready || *s.Ports[0].Port < 8080 {
		t.Errorf("slice: %+v", s)
	}
	w.apply(strings.Replace(pair2, `{app: web, x: "2"}`, `{app: other}`, 1))
	w.until("one has other labels", func() bool { return w.table.endpoints("web") == 1 })
	w.apply(strings.Replace(strings.Replace(pair2, `{app: web, x: "2"}`, `{app: other}`, 1), "selector: {app: web}", "selector: {app: other}", 1))
	w.until("the selector is another one", func() bool {
		return w.table.endpoints("web") == 1 && w.written("web").Ports[0].Endpoints[0].Port() == 8081
	})
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: manifest.KindPod, Namespace: "default", Name: "b", Wait: true}); err != nil {
		t.Fatal(err)
	}
	w.until("its pod is gone", func() bool { return w.table.endpoints("web") == 0 })
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: manifest.KindService, Namespace: "default", Name: "web", Wait: true}); err != nil {
		t.Fatal(err)
	}
	w.until("the Service is gone", func() bool { return w.table.endpoints("web") == -1 })
}

func TestChooseAmongBackends(t *testing.T) {
	e := &Engine{opts: Options{NodeName: "here"}}
	here, there := "here", "there"
	at := func(n byte, node *string, ready, serving, terminating bool) backend {
		return backend{
			addr: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, n})}, node: node, ready: ready, serving: serving, terminating: terminating,
			ports: []corev1.EndpointPort{{Port: 80, Protocol: corev1.ProtocolTCP}},
		}
	}
	for name, c := range map[string]struct {
		backends []backend
		local    bool
		want     string
	}{
		"ready ones alone":               {[]backend{at(1, &here, true, true, false), at(2, &here, false, true, true), at(3, &here, false, false, false)}, false, "[10.0.0.1:80]"},
		"the last ones that still serve": {[]backend{at(2, &here, false, true, true), at(3, &here, false, false, true)}, false, "[10.0.0.2:80]"},
		"unready ones never":             {[]backend{at(3, &here, false, true, false)}, false, "[]"},
		"those of this host":             {[]backend{at(1, &here, true, true, false), at(2, &there, true, true, false), at(3, nil, true, true, false)}, true, "[10.0.0.1:80]"},
		"those of this host that serve":  {[]backend{at(1, &here, false, true, true), at(2, &there, true, true, false)}, true, "[10.0.0.1:80]"},
	} {
		if got := fmt.Sprint(e.pick(corev1.ServicePort{Protocol: corev1.ProtocolTCP}, c.backends, c.local)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestFamilies(t *testing.T) {
	w := newWorldWith(t, dual)
	text := func(spec string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: f}\nspec: {ports: [{port: 80}]" + spec + "}\n"
	}
	w.apply(text(""))
	first := w.spec("f").ClusterIP
	if s := w.spec("f"); len(s.ClusterIPs) != 1 || s.IPFamilies[0] != corev1.IPv4Protocol || *s.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
		t.Errorf("by default: %+v", s)
	}
	w.apply(text(", ipFamilyPolicy: PreferDualStack"))
	if s := w.spec("f"); len(s.ClusterIPs) != 2 || s.ClusterIP != first || len(s.IPFamilies) != 2 {
		t.Errorf("a second address: %+v", s)
	}
	if r := w.apply(text(", ipFamilyPolicy: PreferDualStack")); r[0].Outcome != Unchanged {
		t.Errorf("again: %+v", r)
	}
	second := w.spec("f").ClusterIPs[1]
	w.apply(text(", ipFamilyPolicy: SingleStack"))
	if s := w.spec("f"); len(s.ClusterIPs) != 1 || s.ClusterIP != first || len(s.IPFamilies) != 1 {
		t.Errorf("without it: %+v", s)
	}
	other := "apiVersion: v1\nkind: Service\nmetadata: {name: g}\nspec: {ports: [{port: 80}], ipFamilies: [IPv6], clusterIP: \"" + second + "\"}\n"
	w.apply(other)
	if s := w.spec("g"); s.ClusterIP != second || s.IPFamilies[0] != corev1.IPv6Protocol {
		t.Errorf("the address that was given back: %+v", s)
	}
	for spec, want := range map[string]string{
		", ipFamilies: [IPv6]":            "ipFamilies[0] cannot be changed from IPv4 to IPv6",
		", clusterIP: 10.96.0.77":         "clusterIP cannot be changed",
		", clusterIP: \"" + second + "\"": "clusterIP cannot be changed",
	} {
		if _, err := w.e.Apply(context.Background(), w.decode(text(spec)), false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", spec, err, want)
		}
	}
	taken := strings.Replace(other, "{name: g}", "{name: h}", 1)
	if _, err := w.e.Apply(context.Background(), w.decode(taken), false); err == nil || !strings.Contains(err.Error(), "belongs to service default/g") {
		t.Errorf("an address that another has: %v", err)
	}
}

func TestOutsideAddressesAreTakenOnce(t *testing.T) {
	w := newWorld(t)
	w.apply(`
apiVersion: v1
kind: Service
metadata: {name: one}
spec: {type: LoadBalancer, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec: {externalIPs: [198.51.100.7], ports: [{port: 443}]}
`)
	if p := w.spec("one").Ports[0]; p.NodePort == 0 {
		t.Error("a load balancer has no node port")
	}
	for text, want := range map[string]string{
		"{type: LoadBalancer, ports: [{port: 80}]}":                              "taken by Service default/one",
		"{externalIPs: [192.0.2.1], ports: [{port: 80}]}":                        "taken by Service default/one", // the host's own
		"{externalIPs: [198.51.100.7], ports: [{port: 443}]}":                    "taken by Service default/two",
		"{type: LoadBalancer, loadBalancerIP: 203.0.113.1, ports: [{port: 81}]}": "203.0.113.1 is not an address of this host",
	} {
		objects := w.decode("apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: " + text + "\n")
		if _, err := w.e.Apply(context.Background(), objects, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	w.apply("apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {type: LoadBalancer, allocateLoadBalancerNodePorts: false, externalIPs: [198.51.100.7], ports: [{port: 444, protocol: UDP}]}\n")
	if p := w.spec("other").Ports[0]; p.NodePort != 0 {
		t.Error("a node port that was not wanted")
	}
}
