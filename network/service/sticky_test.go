package service

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pausa-run/pausa/internal/nft"
)

// stickyService leads to pods on port 8080, each client to one of them.
func stickyService(w *world, pods ...int) Service {
	s := podService(w, pods...)
	s.Affinity = time.Hour
	return s
}

// which asks until it is sure that the client gets one pod, and names it.
func which(t *testing.T, from *place, network, to string) string {
	t.Helper()
	first, answer := "", ""
	for range 12 {
		got, err := from.ask(network, to)
		if err != nil {
			t.Fatalf("%s %s: %v", network, to, err)
		}
		pod, _, _ := strings.Cut(got, " ")
		if first == "" {
			first, answer = pod, got
		}
		if pod != first {
			t.Fatalf("%s %s from %s: got %q, then %q", network, to, from.addr[4], answer, got)
		}
	}
	return first
}

func TestAffinity(t *testing.T) {
	w := newWorld(t)
	w.servePods()
	tab := openTable(t, Options{RouteDev: "br0"})
	mustSync(t, tab, stickyService(w, 0, 1, 2))
	type way struct{ network, to string }
	ways := []way{{"tcp", "10.96.0.1:80"}, {"tcp", "[fd96::1]:80"}, {"udp", "10.96.0.1:53"}, {"udp", "[fd96::1]:53"}}
	clients := append([]*place{w.other, w.host}, w.pods...)
	had := map[string]string{}
	look := func(gone string) {
		t.Helper()
		for _, c := range clients {
			for _, y := range ways {
				id := c.addr[4] + " " + y.network + " " + y.to
				got := which(t, c, y.network, y.to)
				if old := had[id]; old != "" && old != gone && got != old {
					t.Errorf("%s moved from %s to %s", id, old, got)
				}
				had[id] = got
			}
		}
	}
	look("")
	// All frontends of a port share the client's choice.
	if a, b := had["192.168.0.2 tcp 10.96.0.1:80"], which(t, w.other, "tcp", "192.168.0.1:30080"); a != b {
		t.Errorf("cluster IP leads to %s, node port to %s", a, b)
	}
	seen := map[string]bool{}
	for _, pod := range had {
		seen[pod] = true
	}
	if len(seen) < 2 { // 24 choices of 3: never one alone
		t.Errorf("all clients got %v", seen)
	}
	mustSync(t, tab, stickyService(w, 0, 2)) // pod1's clients go elsewhere, the others stay
	look("pod1")
	if err := tab.Resync(context.Background()); err != nil {
		t.Fatal(err)
	}
	look("")
	needNft(t)
	if list := run(t, "nft list ruleset"); !strings.Contains(list, "update @svc-client4-") {
		t.Errorf("the list lacks affinity:\n%s", list)
	}
	mustSync(t, tab, podService(w, 0))
	tidied(t, tab)
	if list := run(t, "nft list ruleset"); strings.Contains(list, "svc-sticky") || strings.Contains(list, "svc-client") {
		t.Errorf("left without affinity:\n%s", list)
	}
}

// TestWalkAffinity sends packets through the rules: whatever the random number, a
// client keeps its endpoint, and the chances of a new one are equal.
func TestWalkAffinity(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	s := web("10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080")
	s.Affinity = time.Minute
	mustSync(t, tab, s)
	got := map[string]int{}
	for i := range 6 {
		p := packet(tcp, fmt.Sprintf("10.1.0.%d:1", 100+i), "10.96.0.1:80")
		p.Random = func(mod uint32) uint32 { // the dice 0..5, as the rules throw them: 1 of 3, then 1 of 2
			if mod == 3 {
				return uint32(i) % 3
			}
			return uint32(i) / 3
		}
		first, err := fake.Walk(nft.Prerouting, p)
		if err != nil {
			t.Fatal(err)
		}
		got[first.DNAT.String()]++
		p.Random = func(uint32) uint32 { return 0 }
		if again, err := fake.Walk(nft.Prerouting, p); err != nil || again.DNAT != first.DNAT {
			t.Errorf("client %d: first %s, then %s, %v", i, first.DNAT, again.DNAT, err)
		}
	}
	for e, n := range got {
		if n != 2 || len(got) != 3 {
			t.Errorf("%s got %d of 6 clients: %v", e, n, got)
		}
	}
}

func TestAffinityAcrossRestart(t *testing.T) {
	w := newWorld(t)
	w.servePods()
	tab := openTable(t, Options{RouteDev: "br0"})
	s := stickyService(w, 0, 1, 2)
	mustSync(t, tab, s)
	had := map[int]string{}
	for i, p := range w.pods {
		had[i] = which(t, p, "tcp", "10.96.0.1:80")
	}
	if err := tab.Close(); err != nil {
		t.Fatal(err)
	}
	next := openTable(t, Options{RouteDev: "br0"})
	mustSync(t, next, s)
	for i, p := range w.pods {
		if got := which(t, p, "tcp", "10.96.0.1:80"); got != had[i] {
			t.Errorf("pod%d moved from %s to %s", i, had[i], got)
		}
	}
}

// TestAffinityEnds after the client has been silent for the timeout.
func TestAffinityEnds(t *testing.T) {
	w := newWorld(t)
	w.servePods()
	needNft(t)
	tab := openTable(t, Options{RouteDev: "br0"})
	s := stickyService(w, 0, 1)
	s.Affinity = time.Second
	mustSync(t, tab, s)
	if _, err := w.other.ask("tcp", "10.96.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if list := run(t, "nft list table inet pausa"); !strings.Contains(list, "192.168.0.2 timeout 1s") && !strings.Contains(list, "192.168.0.2 expires") {
		t.Errorf("the client is not noted:\n%s", list)
	}
	for deadline := time.Now().Add(20 * time.Second); strings.Contains(run(t, "nft list table inet pausa"), "192.168.0.2 "); {
		if time.Now().After(deadline) {
			t.Fatal("the client is still noted")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestEndingPodKeepsConnections: an endpoint that is taken away, since its pod
// is ending, gets nothing new and finishes what it serves.
func TestEndingPodKeepsConnections(t *testing.T) {
	w := newWorld(t)
	tab := openTable(t, Options{RouteDev: "br0"})
	for i, affinity := range []time.Duration{0, time.Hour} {
		port := 9000 + i
		lines := w.pods[0].echo(port)
		s := web(fmt.Sprintf("10.1.0.11:%d", port))
		s.Affinity = affinity
		mustSync(t, tab, s)
		c := w.pods[1].dial("10.96.0.1:80")
		lines(c, "before")
		s.Ports[0].Endpoints, s.Ports[1].Endpoints = nil, nil
		mustSync(t, tab, s)
		lines(c, "after")
		if _, err := w.pods[1].ask("tcp", "10.96.0.1:80"); err == nil {
			t.Error("a new connection was served")
		}
	}
}
