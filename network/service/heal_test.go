package service

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/pausa-run/pausa/internal/nft"
)

// foreign is a table of somebody else, and a chain of another part in ours.
const foreign = `
table ip theirs {
	map m { type ipv4_addr : verdict; elements = { 10.0.0.1 : accept }; }
	chain c { type filter hook forward priority 7; policy accept; ip saddr vmap @m; }
}
table inet pausa {
	set neighbour { type ipv4_addr; elements = { 10.1.0.11 }; }
	chain neighbour { ip saddr @neighbour accept; }
}`

func nftRun(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

func needNft(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs the nft program to read and change rules as others do")
	}
}

// split divides what `nft list` prints into our chains and sets and the rest.
func split(ruleset string) (ours, others []string) {
	mine := false
	for _, l := range strings.Split(ruleset, "\n") {
		if f := strings.Fields(l); len(f) == 3 && f[2] == "{" && f[0] != "table" {
			mine = strings.HasPrefix(f[1], prefix)
		}
		switch {
		case mine:
			ours = append(ours, l)
		case l != "":
			others = append(others, l)
		}
		if l == "\t}" {
			mine = false
		}
	}
	return ours, others
}

func others(ruleset string) string {
	_, lines := split(ruleset)
	return strings.Join(lines, "\n")
}

// ours is sorted: nft prints elements in no order.
func ours(ruleset string) string {
	lines, _ := split(ruleset)
	var words []string
	for _, l := range lines {
		for _, w := range strings.FieldsFunc(l, func(r rune) bool { return strings.ContainsRune(",=\t{}", r) }) {
			words = append(words, strings.TrimSpace(w))
		}
	}
	slices.Sort(words)
	return strings.TrimSpace(strings.Join(words, "\n"))
}

func TestOthersAreNotTouched(t *testing.T) {
	newWorld(t)
	needNft(t)
	nftRun(t, foreign)
	before := others(run(t, "nft list ruleset"))
	tab := openTable(t, Options{RouteDev: "br0"})
	check := func(when string) {
		t.Helper()
		if after := others(run(t, "nft list ruleset")); after != before {
			t.Errorf("%s: rules of others changed:\n%s\nfrom\n%s", when, after, before)
		}
	}
	check("Open")
	mustSync(t, tab, web())
	check("Sync")
	mustSync(t, tab, web("10.1.0.44:80"))
	if err := tab.Resync(context.Background()); err != nil {
		t.Fatal(err)
	}
	check("Resync")
	if err := tab.Remove(context.Background()); err != nil {
		t.Fatal(err)
	}
	check("Remove")
	if left := run(t, "nft list ruleset; ip route; ip -6 route"); strings.Contains(left, prefix) || strings.Contains(left, "10.96.") || strings.Contains(left, "fd96") {
		t.Errorf("left after Remove:\n%s", left)
	}
	if err := tab.Remove(context.Background()); err != nil {
		t.Errorf("a second Remove: %v", err)
	}
}

// told waits for a report of Watch.
func told(t *testing.T, ch <-chan string, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s was not told", what)
	}
}

func silent(t *testing.T, ch <-chan string, what string) {
	t.Helper()
	// A later change that is told shows that an earlier one was not.
	select {
	case <-ch:
		t.Errorf("%s was told", what)
	default:
	}
}

func TestHealing(t *testing.T) {
	newWorld(t)
	needNft(t)
	tab := openTable(t, Options{RouteDev: "br0"})
	ctx, cancel := context.WithCancel(context.Background())
	ch := tab.Watch(ctx)
	mustSync(t, tab, web())
	want := run(t, "nft list table inet pausa")
	for _, c := range []struct{ name, quiet, loud string }{
		{"flush", foreign, "flush ruleset"},
		{"one element", "add table ip more", "delete element inet pausa svc-frontends4 { 10.96.0.1 . tcp . 80 }"},
		{"one endpoint", "add element inet pausa neighbour { 10.9.9.9 }", "delete element inet pausa svc-node-endpoints6 { tcp . 30080 . 0 }"},
		{"a rule too many", "delete table ip more", "insert rule inet pausa svc-prerouting accept"},
		{"the table", "list ruleset", "delete table inet pausa"},
		{"a chain's rules", "list ruleset", "flush chain inet pausa svc-postrouting"},
	} {
		if c.name == "one endpoint" || c.name == "one element" {
			nftRun(t, foreign) // by another program
			told(t, ch, "what is no Service's")
		}
		// Our own commits and those of others elsewhere.
		mustSync(t, tab, web("10.1.0.44:80"))
		mustSync(t, tab, web())
		nftRun(t, c.quiet)
		if strings.Contains(c.quiet, "inet pausa") {
			told(t, ch, "what is no Service's")
		} else {
			silent(t, ch, "before "+c.name)
		}
		nftRun(t, c.loud)
		told(t, ch, c.name)
		if err := tab.Resync(ctx); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		tidied(t, tab)
		got := run(t, "nft list table inet pausa")
		if ours(got) != ours(want) {
			t.Errorf("%s: healed to\n%s\nfrom\n%s", c.name, got, want)
		}
		silent(t, ch, "after "+c.name)
	}
	cancel()
	for range ch {
	}
}

func TestRestartInterruptsNobody(t *testing.T) {
	w := newWorld(t)
	w.servePods()
	tab := openTable(t, Options{RouteDev: "br0"})
	mustSync(t, tab, podService(w, 0))
	if err := tab.Close(); err != nil {
		t.Fatal(err)
	}
	answers := func(when string) {
		t.Helper()
		if got, err := w.pods[1].ask("tcp", "10.96.0.1:80"); err != nil || !strings.HasPrefix(got, "pod0 ") {
			t.Errorf("%s: %q, %v", when, got, err)
		}
	}
	answers("closed")
	next := openTable(t, Options{RouteDev: "br0"})
	answers("opened again")
	// The first Sync replaces all: what an earlier run had beyond it goes.
	s := podService(w, 0, 1)
	s.ExternalIPs = nil
	mustSync(t, next, s)
	answersFrom := func() bool {
		for range 100 {
			if got, err := w.pods[2].ask("tcp", "10.96.0.1:80"); err != nil {
				t.Fatal(err)
			} else if strings.HasPrefix(got, "pod1 ") {
				return true
			}
		}
		return false
	}
	if !answersFrom() {
		t.Error("the new endpoint never answers")
	}
	if got, err := tab.rules.Elements(setsOf(nft.IPv4).frontends); err == nil {
		t.Errorf("a closed table reads %v", got)
	}
	elems, err := next.rules.Elements(setsOf(nft.IPv4).frontends)
	if err != nil || len(elems) != 2 {
		t.Errorf("%d frontends, %v; want 2", len(elems), err)
	}
}

func TestRoute(t *testing.T) {
	newWorld(t)
	tab := openTable(t, Options{RouteDev: "br7"})
	mustSync(t, tab, web()) // no such device yet: no error
	run(t, "ip link add br7 type bridge")
	mustSync(t, tab, web()) // still down
	for _, to := range []string{"10.96.3.3", "fd96::3"} {
		if got := run(t, "ip route get "+to); !strings.Contains(got, "dev br0") && !strings.Contains(got, "dev other") {
			t.Errorf("route to %s without its device: %s", to, got)
		}
	}
	run(t, "ip link set br7 up; ip addr add 10.7.0.1/24 dev br7; ip -6 addr add fd07::1/64 dev br7 nodad")
	defer run(t, "ip link del br7")
	if err := tab.Maintain(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ to, from string }{{"10.96.3.3", "10.7.0.1"}, {"fd96::3", "fd07::1"}} {
		if got := run(t, "ip route get "+want.to); !strings.Contains(got, "dev br7") || !strings.Contains(got, "src "+want.from) {
			t.Errorf("route to %s: %s", want.to, got)
		}
	}
	run(t, "ip route del 10.96.0.0/16")
	if err := tab.Maintain(); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "ip route get 10.96.3.3"); !strings.Contains(got, "dev br7") {
		t.Errorf("after somebody deleted it: %s", got)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	if v6 := run(t, "ip -6 route show fd96::/112"); strings.Count(v6, "fd96::") != 1 {
		t.Errorf("IPv6 routes: %s", v6)
	}
	n := 0
	for _, r := range routes {
		if r.Protocol == routeProtocol {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d routes of ours, want 1", n)
	}
}

func TestUDPClientsLeaveGoneEndpoints(t *testing.T) {
	w := newWorld(t)
	w.servePods()
	tab := openTable(t, Options{RouteDev: "br0"})
	for _, c := range []struct {
		name string
		from *place
		to   string
	}{
		{"cluster IP", w.pods[3], "10.96.0.1:53"},
		{"cluster IP v6", w.pods[3], "[fd96::1]:53"},
		{"node port", w.other, "192.168.0.1:30053"},
		{"node port v6", w.other, "[fd00::1]:30053"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mustSync(t, tab, podService(w, 0))
			u := newUDPClient(t, c.from, c.to)
			u.expect("pod0")
			mustSync(t, tab, podService(w, 0, 1))
			u.expect("pod0") // an endpoint in force keeps its clients
			mustSync(t, tab, podService(w, 1))
			u.expect("pod1")
			mustSync(t, tab, web([]string{}...))
			u.expectRefused()
			mustSync(t, tab, podService(w, 2))
			u.expect("pod2")
			mustSync(t, tab)
			mustSync(t, tab, podService(w, 0))
			u.expect("pod0")
		})
	}
}

// udpClient sends from one port, as a DNS client with a lasting socket.
type udpClient struct {
	t    *testing.T
	send func() (string, error)
}

func newUDPClient(t *testing.T, from *place, to string) *udpClient {
	t.Helper()
	return &udpClient{t, lastingUDP(t, from, to)}
}

func (u *udpClient) expect(pod string) {
	u.t.Helper()
	// An error that an earlier datagram caused comes first.
	var got string
	var err error
	for range 3 {
		if got, err = u.send(); err == nil {
			break
		}
	}
	if err != nil || !strings.HasPrefix(got, pod+" ") {
		u.t.Errorf("answer %q, %v; want %s", got, err, pod)
	}
}

func (u *udpClient) expectRefused() {
	u.t.Helper()
	if got, err := u.send(); err == nil {
		u.t.Errorf("answer %q; want refused", got)
	} else if !strings.Contains(fmt.Sprint(err), "refused") {
		u.t.Errorf("error %v; want refused", err)
	}
}
