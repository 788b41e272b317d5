package dns

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// text is all that a zone says, sorted.
func (z *zone) text() string {
	var lines []string
	for name, n := range z.names {
		srv := slices.Clone(n.srv)
		lines = append(lines, fmt.Sprint(name, " ", n.addrs, srv, n.cname, n.text, n.apex, n.users, n.held))
	}
	for a, list := range z.ptrs {
		lines = append(lines, fmt.Sprint(a, " ", list))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// randomService is one of few names, so that it replaces others, and of few
// addresses, so that several share them.
func randomService(r *rand.Rand) Service {
	s := Service{Namespace: fmt.Sprint("ns", r.IntN(3)), Name: fmt.Sprint("s", r.IntN(6))}
	addr := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 88, 0, byte(r.IntN(5))}) }
	ports := []Port{{"http", "TCP", 80}, {"", "UDP", 53}, {"x", "UDP", 9}}[:r.IntN(4)]
	switch r.IntN(3) {
	case 0:
		s.ExternalName = "Example.org"
	case 1:
		s.ClusterIPs, s.Ports = []netip.Addr{addr()}, ports
	default:
		for range r.IntN(4) {
			s.Endpoints = append(s.Endpoints, Endpoint{[]string{"", "a", "b"}[r.IntN(3)], addr(), ports})
		}
	}
	return s
}

// TestChangesAreAsABuild: after any changes the zone is as one that is built of
// what there is.
func TestChangesAreAsABuild(t *testing.T) {
	const domain = "cluster.local."
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		services, pods := map[ID]Service{}, map[ID]Pod{}
		z := build(domain, 1, &Records{})
		for step := range 200 {
			var c Change
			for range r.IntN(3) {
				s := randomService(r)
				if id := (ID{s.Namespace, s.Name}); r.IntN(3) == 0 {
					c.GoneServices = append(c.GoneServices, id)
					delete(services, id)
				} else if !slices.Contains(c.GoneServices, id) {
					c.Set.Services = append(c.Set.Services, s)
					services[id] = s
				}
			}
			p := Pod{fmt.Sprint("ns", r.IntN(3)), fmt.Sprint("p", r.IntN(4)), []netip.Addr{netip.AddrFrom4([4]byte{10, 88, 0, byte(r.IntN(3))})}}
			if id := (ID{p.Namespace, p.Name}); r.IntN(2) == 0 {
				c.GonePods = append(c.GonePods, id)
				delete(pods, id)
			} else {
				c.Set.Pods = append(c.Set.Pods, p)
				pods[id] = p
			}
			// What is gone is gone before the rest is set, also of a Service twice in one change.
			for _, id := range c.GoneServices {
				for _, s := range c.Set.Services {
					if (ID{s.Namespace, s.Name}) == id {
						services[id] = s
					}
				}
			}
			z.change(uint32(step), &c)
			fresh := build(domain, 1, &Records{Services: slices.Collect(maps.Values(services)), Pods: slices.Collect(maps.Values(pods))})
			if got, want := z.text(), fresh.text(); got != want {
				t.Fatalf("seed %d, step %d, change %+v:\n%s\n\nbuilt anew:\n%s", seed, step, c, got, want)
			}
		}
		z.change(0, &Change{GoneServices: slices.Collect(maps.Keys(services)), GonePods: slices.Collect(maps.Keys(pods))})
		if got, want := z.text(), build(domain, 1, &Records{}).text(); got != want {
			t.Fatalf("seed %d: something is left:\n%s", seed, got)
		}
	}
}
