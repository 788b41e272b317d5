package service

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// manyServices is n Services with four endpoints each.
func manyServices(n int) []Service {
	out := make([]Service, n)
	for i := range out {
		out[i] = Service{
			Namespace: "load", Name: fmt.Sprint("s", i),
			ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(1 + i>>8), byte(i)})},
			Ports:      []Port{{Protocol: "TCP", Port: 80}},
		}
		for e := range 4 {
			a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 6), byte(i<<2 + e)})
			out[i].Ports[0].Endpoints = append(out[i].Ports[0].Endpoints, netip.AddrPortFrom(a, 8080))
		}
	}
	return out
}

func TestTenThousandServices(t *testing.T) {
	w := newWorld(t)
	w.servePods()
	tab := openTable(t, Options{RouteDev: "br0"})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ch := tab.Watch(ctx)
	const n = 10000
	all := append(manyServices(n), podService(w, 0))
	mustSync(t, tab, all...)
	counts := func(want map[string]int) {
		t.Helper()
		got, err := tab.Counts()
		if err != nil {
			t.Fatal(err)
		}
		for name, n := range want {
			if got[name] != n {
				t.Errorf("%s has %d elements, want %d", name, got[name], n)
			}
		}
	}
	counts(map[string]int{
		"svc-frontends4": n + 4, "svc-endpoints4": 4*n + 4, "svc-cluster-ips4": n + 1,
		"svc-nodeports6": 2, "svc-node-endpoints6": 2, "svc-hairpin6": 1,
	})
	if got, err := w.pods[1].ask("tcp", "10.96.0.1:80"); err != nil || !strings.HasPrefix(got, "pod0 ") {
		t.Errorf("among 10,000 services: %q, %v", got, err)
	}
	mustSync(t, tab, all[1:]...)
	counts(map[string]int{"svc-frontends4": n - 1 + 4, "svc-endpoints4": 4*(n-1) + 4, "svc-cluster-ips4": n})
	if err := tab.Resync(ctx); err != nil {
		t.Fatal(err)
	}
	counts(map[string]int{"svc-frontends4": n - 1 + 4, "svc-endpoints4": 4*(n-1) + 4, "svc-cluster-ips4": n})
	silent(t, ch, "a load of our own")
}

// TestEndpointsChangeUnderLoad swaps the endpoints, and their number, while
// others connect all the time: none of them may fail.
func TestEndpointsChangeUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.servePods()
	tab := openTable(t, Options{RouteDev: "br0"})
	mustSync(t, tab, podService(w, 0, 1, 2, 3))
	var stop atomic.Bool
	var asked, failed atomic.Int64
	var clients sync.WaitGroup
	for i, to := range []string{"10.96.0.1:80", "[fd96::1]:80", "192.168.0.1:30080", "192.0.2.7:80"} {
		clients.Go(func() {
			w.pods[i].in(func() {
				for !stop.Load() {
					c, err := net.DialTimeout("tcp", to, 3*time.Second)
					asked.Add(1)
					if err != nil {
						failed.Add(1)
						t.Errorf("%s: %v", to, err)
						return
					}
					_ = c.Close()
				}
			})
		})
	}
	swaps := 0
	for ; (swaps < 60 || asked.Load() < 400) && failed.Load() == 0; swaps++ {
		which := [][]int{{0}, {1, 2}, {0, 1, 2, 3}, {3, 1, 0}, {2}}[swaps%5]
		mustSync(t, tab, podService(w, which...))
		if swaps%50 == 49 {
			if err := tab.Resync(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop.Store(true)
	clients.Wait()
	t.Logf("%d connects, %d failed, %d swaps", asked.Load(), failed.Load(), swaps)
}

func TestFairness(t *testing.T) {
	w := newWorld(t)
	w.servePods()
	tab := openTable(t, Options{RouteDev: "br0"})
	mustSync(t, tab, podService(w, 0, 1, 2))
	seen := map[string]int{}
	const n = 900
	for range n {
		got, err := w.host.ask("tcp", "10.96.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		pod, _, _ := strings.Cut(got, " ")
		seen[pod]++
	}
	// Six standard deviations: chance fails this once in 10^8 runs.
	for _, pod := range []string{"pod0", "pod1", "pod2"} {
		if seen[pod] < 300-85 || seen[pod] > 300+85 {
			t.Errorf("%s got %d of %d", pod, seen[pod], n)
		}
	}
	if len(seen) != 3 {
		t.Errorf("answers from %v", seen)
	}
}

func BenchmarkLoad10000x4(b *testing.B) {
	newWorld(b)
	all := manyServices(10000)
	for b.Loop() {
		tab := openTable(b, Options{NoLoopback: true})
		if err := tab.Sync(context.Background(), all); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := tab.Remove(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// benchmarkChange alternates between two states beside 10,000 Services.
func benchmarkChange(b *testing.B, change func(all []Service, i int) []Service) {
	newWorld(b)
	tab := openTable(b, Options{NoLoopback: true})
	all := manyServices(10000)
	if err := tab.Sync(context.Background(), all); err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		i++
		if err := tab.Sync(context.Background(), change(all, i)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNoChangeAt10000(b *testing.B) {
	benchmarkChange(b, func(all []Service, _ int) []Service { return all })
}

func BenchmarkAddOrRemoveOneAt10000(b *testing.B) {
	benchmarkChange(b, func(all []Service, i int) []Service { return all[i%2:] })
}

func BenchmarkChangeOneEndpointAt10000(b *testing.B) {
	benchmarkChange(b, func(all []Service, i int) []Service {
		all[77].Ports[0].Endpoints[2] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}), 8080)
		return all
	})
}

// BenchmarkUpdateOneEndpointAt10000 is what the daemon does: it names what changed.
func BenchmarkUpdateOneEndpointAt10000(b *testing.B) {
	newWorld(b)
	tab := openTable(b, Options{NoLoopback: true})
	all := manyServices(10000)
	mustSync(b, tab, all...)
	one := all[77]
	for i := 0; b.Loop(); i++ {
		one.Ports[0].Endpoints[2] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), 8080)
		if err := tab.Update(context.Background(), []Service{one}, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkChangeUDPEndpoint includes the route, the loopback listeners and the
// look at the connections.
func BenchmarkChangeUDPEndpoint(b *testing.B) {
	w := newWorld(b)
	tab := openTable(b, Options{RouteDev: "br0"})
	i := 0
	for b.Loop() {
		i++
		if err := tab.Sync(context.Background(), []Service{podService(w, i%2)}); err != nil {
			b.Fatal(err)
		}
	}
}
