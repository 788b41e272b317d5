package service

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// randomServices is a few Services out of a small world, so that they collide.
func randomServices(r *rand.Rand) []Service {
	var out []Service
	for i := range 5 {
		if r.IntN(4) == 0 {
			continue
		}
		s := Service{Namespace: "n", Name: fmt.Sprint("s", i)}
		s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + i)})}
		if r.IntN(2) == 0 {
			s.ClusterIPs = append(s.ClusterIPs, addrs(fmt.Sprintf("fd96::%d", 1+i))...)
		}
		if r.IntN(3) == 0 {
			s.ExternalIPs = addrs(fmt.Sprintf("192.0.2.%d", 1+r.IntN(2)))
		}
		if r.IntN(3) == 0 {
			s.BalancerIPs = addrs(fmt.Sprintf("198.51.100.%d", 1+r.IntN(2)))
			s.AllowFrom = [][]netip.Prefix{nil, {netip.MustParsePrefix("203.0.113.0/24")}, {netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("fd00::/8")}}[r.IntN(3)]
		}
		if r.IntN(3) == 0 {
			s.Remote = addrs(fmt.Sprintf("10.1.0.%d", 1+r.IntN(6)))
		}
		if r.IntN(4) == 0 {
			s.Affinity = time.Duration(1+r.IntN(2)) * time.Minute
		}
		for port := range r.IntN(3) {
			p := Port{Protocol: []string{"TCP", "UDP", "SCTP", "bad"}[r.IntN(40)/13], Port: uint16(80 + port)}
			if r.IntN(2) == 0 {
				p.NodePort = uint16(30000 + r.IntN(4))
			}
			for range r.IntN(6) {
				p.Endpoints = append(p.Endpoints, endpoints(fmt.Sprintf("10.1.0.%d:80", 1+r.IntN(6)))...)
				p.Endpoints = append(p.Endpoints, endpoints(fmt.Sprintf("[fd01::%d]:80", 1+r.IntN(6)))...)
			}
			if r.IntN(3) == 0 {
				p.External = slices.Clone(p.Endpoints[:len(p.Endpoints)/2])
				p.Draining = endpoints("10.1.0.7:80")
			}
			s.Ports = append(s.Ports, p)
		}
		out = append(out, s)
	}
	return out
}

// normal is a dump without what may differ: which endpoint has which slot.
func normal(dump string) string {
	var lines []string
	for _, l := range strings.Split(dump, "\n") {
		if key, to, ok := strings.Cut(l, " : "); ok && strings.Contains(key, " . 0x") {
			slots := key[:strings.LastIndex(key, " . 0x")]
			lines = append(lines, slots+" : "+to, "slot "+key)
			continue
		}
		lines = append(lines, l)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestDifferencesAddUp says that after any sequence of changes the table is
// the same as if it had been written at once.
func TestDifferencesAddUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	tab, fake, _ := newFakeTable(t, Options{})
	conflicts := 0
	var before []Service
	for step := range 1500 {
		desired := randomServices(r)
		var incremental error
		if step%2 == 0 {
			incremental = tab.Sync(context.Background(), desired)
		} else {
			incremental = tab.Update(context.Background(), desired, goneOf(before, desired))
		}
		before = desired
		if incremental != nil {
			conflicts++
			continue // who has a frontend depends on who came first
		}
		fresh, freshFake, _ := newFakeTable(t, Options{})
		if err := fresh.Sync(context.Background(), desired); err != nil {
			t.Fatalf("step %d: fresh: %v", step, err)
		}
		tidied(t, tab)
		if got, want := normal(fake.Dump()), normal(freshFake.Dump()); got != want {
			t.Fatalf("step %d: after differences:\n%s\nat once:\n%s", step, got, want)
		}
	}
	if conflicts == 0 || conflicts > 1400 {
		t.Errorf("%d of 1500 steps had conflicts: the test tests little", conflicts)
	}
	if err := tab.Sync(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	_, empty, _ := newFakeTable(t, Options{})
	tidied(t, tab)
	if got, want := normal(fake.Dump()), normal(empty.Dump()); got != want {
		t.Errorf("without services:\n%s\nwant\n%s", got, want)
	}
}

// tidied deletes what is not used any more without waiting for it.
func tidied(t *testing.T, tab *Table) {
	t.Helper()
	for range 2 {
		tab.rest.since = time.Time{}
		if err := tab.tidy(time.Now()); err != nil {
			t.Fatal(err)
		}
	}
}

// A packet may have read an element, and not yet looked into the chain.
func TestChainsOutliveTheirElements(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	has := func() bool {
		chains, err := fake.Chains()
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(chains, "svc-lb4-2")
	}
	two, one := web("10.1.0.1:80", "10.1.0.2:80"), web("10.1.0.1:80")
	mustSync(t, tab, two)
	mustSync(t, tab, one)
	if !has() {
		t.Error("the chain is gone with the elements that led to it")
	}
	now := time.Now()
	for i, after := range []time.Duration{restFor / 2, 3 * restFor} {
		want := i == 0
		tab.rest.since = now.Add(-after)
		if err := tab.tidy(now); err != nil {
			t.Fatal(err)
		}
		if has() != want {
			t.Errorf("after %s the chain is there: %v, want %v", after, has(), want)
		}
	}
	mustSync(t, tab, two)
	mustSync(t, tab, one)
	mustSync(t, tab, two)
	tidied(t, tab)
	if !has() {
		t.Error("a chain that is used again was deleted")
	}
	tab.known = false // as after an error: all is written anew
	mustSync(t, tab, one)
	if !has() {
		t.Error("a chain of an earlier run is gone with the elements that led to it")
	}
	tidied(t, tab)
	if has() {
		t.Error("a chain of an earlier run stays")
	}
}

// A packet that has its endpoint looks up last whether it is masqueraded.
func TestMasqueradingOutlivesTheEndpoint(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	s := setsOf(nft.IPv4)
	check := func(when string, want bool) {
		t.Helper()
		gone := nft.Value(nil).Addr(netip.MustParseAddr("10.1.0.2"))
		for name, of := range map[string]struct {
			set nft.Set
			key nft.Value
		}{"hairpin": {s.hairpin, slices.Concat(gone, gone)}, "remotes": {s.remotes, gone}} {
			elems, err := fake.Elements(of.set)
			if err != nil {
				t.Fatal(err)
			}
			if has := slices.ContainsFunc(elems, func(e nft.Element) bool { return slices.Equal(e.Key, of.key) }); has != want {
				t.Errorf("%s: the element of %s is there: %v, want %v", when, name, has, want)
			}
		}
	}
	two, one := web("10.1.0.1:80", "10.1.0.2:80"), web("10.1.0.1:80")
	two.Remote = addrs("10.1.0.2")
	mustSync(t, tab, two)
	mustSync(t, tab, one)
	check("with the change", true)
	mustSync(t, tab, two)
	tidied(t, tab)
	check("used again", true)
	mustSync(t, tab, one)
	tidied(t, tab)
	check("later", false)
}

// goneOf names the Services that are in before and not in now.
func goneOf(before, now []Service) []ID {
	var out []ID
	for _, s := range before {
		if !slices.ContainsFunc(now, func(n Service) bool { return n.Name == s.Name }) {
			out = append(out, ID{s.Namespace, s.Name})
		}
	}
	return out
}

func TestUpdateRetriesWhatFailed(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	mustSync(t, tab, web())
	rival := web()
	rival.Name = "rival"
	ctx := context.Background()
	if err := tab.Update(ctx, []Service{rival}, nil); err == nil || !strings.Contains(err.Error(), "belongs to service default/web") {
		t.Errorf("the rival: %v", err)
	}
	if err := tab.Update(ctx, nil, nil); err == nil {
		t.Error("what failed is forgotten")
	}
	if err := tab.Update(ctx, nil, []ID{{"default", "web"}}); err != nil {
		t.Errorf("without its owner: %v", err)
	}
	other, fresh, _ := newFakeTable(t, Options{})
	mustSync(t, other, rival)
	tidied(t, tab)
	if got, want := normal(fake.Dump()), normal(fresh.Dump()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestNothingToDoCommitsNothing(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	mustSync(t, tab, web())
	before := fake.Commits()
	mustSync(t, tab, web())
	if got := fake.Commits(); got != before {
		t.Errorf("%d commits for no change", got-before)
	}
}

// TestCostOfAChange counts elements: one endpoint, however many Services.
func TestCostOfAChange(t *testing.T) {
	s := newState()
	var all []Service
	for i := range 100 {
		sv := web("10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80")
		sv.Name, sv.ExternalIPs, sv.Ports = fmt.Sprint("web", i), nil, sv.Ports[:1]
		sv.Ports[0].NodePort = 0
		sv.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 1, byte(i)})}
		all = append(all, sv)
	}
	if _, err := s.plan(all); err != nil {
		t.Fatal(err)
	}
	all[50].Ports[0].Endpoints = endpoints("10.1.0.1:80", "10.1.0.9:80", "10.1.0.3:80")
	c, err := s.plan(all)
	if err != nil {
		t.Fatal(err)
	}
	count := func(m map[string][]nft.Element) (n int) {
		for _, list := range m {
			n += len(list)
		}
		return n
	}
	// One slot, and the new endpoint's hairpin pair.
	if count(c.del) != 1 || count(c.add) != 2 || len(c.newChains)+len(c.oldChains) != 0 {
		t.Errorf("%d deleted, %d added, chains %v %v", count(c.del), count(c.add), c.newChains, c.oldChains)
	}
}

func TestAssign(t *testing.T) {
	list := func(s string) (out []netip.AddrPort) {
		for _, c := range s {
			out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(c)}), 80))
		}
		return out
	}
	for _, c := range []struct{ old, want, slots string }{
		{"", "abc", "abc"},
		{"abc", "abc", "abc"},
		{"abc", "ac", "ac"},
		{"abcd", "bcd", "dbc"},
		{"abcd", "acdx", "axcd"},
		{"abc", "cdef", "decf"},
		{"abc", "", ""},
		{"ba", "abc", "bac"},
	} {
		if got := assign(list(c.old), list(c.want)); !slices.Equal(got, list(c.slots)) {
			t.Errorf("%s to %s: %v, want %s", c.old, c.want, got, c.slots)
		}
	}
}

func TestConflicts(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	a, b := web("10.1.0.1:80"), web("10.1.0.2:80")
	b.Name, b.ClusterIPs, b.ExternalIPs = "b", addrs("10.96.0.2"), nil
	err := tab.Sync(context.Background(), []Service{a, b})
	for _, want := range []string{"service default/b", "node port 30080/TCP", "belongs to service default/web"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	dnat := func(dst string) string {
		return walk(t, fake, nft.Prerouting, packet(tcp, "10.1.0.99:4000", dst)).DNAT.String()
	}
	if got := dnat("10.96.0.2:80"); got != "10.1.0.2:80" {
		t.Errorf("the rest of a service in conflict leads to %s", got)
	}
	if got := dnat("192.168.0.1:30080"); got != "10.1.0.1:80" {
		t.Errorf("the node port leads to %s, not to its first owner", got)
	}
	// The owner goes: the other one gets it, though it has not changed.
	mustSync(t, tab, b)
	if got := dnat("192.168.0.1:30080"); got != "10.1.0.2:80" {
		t.Errorf("the freed node port leads to %s", got)
	}
}

func TestBadServices(t *testing.T) {
	for _, c := range []struct {
		change func(*Service)
		want   string
	}{
		{func(s *Service) { s.Ports[0].Protocol = "tcp" }, `protocol "tcp" is unknown: use TCP, UDP or SCTP`},
		{func(s *Service) { s.Ports[0].Port = 0 }, "a port from 1 to 65535 is needed"},
		{func(s *Service) { s.Ports[0].Endpoints[0] = netip.AddrPort{} }, "no valid address and port"},
		{func(s *Service) { s.ExternalIPs = addrs("127.0.0.1") }, "127.0.0.1 cannot be that of a service"},
		{func(s *Service) { s.ExternalIPs = s.ClusterIPs }, "10.96.0.1:80/TCP is named twice"},
		{func(s *Service) { s.Ports[0].NodePort = 80 }, "node port 80 is outside 30000-32767"},
	} {
		tab, fake, _ := newFakeTable(t, Options{NodePortMin: 30000, NodePortMax: 32767})
		bad, good := web(), web()
		c.change(&bad)
		good.Name, good.ClusterIPs, good.ExternalIPs = "good", addrs("10.96.0.9"), nil
		good.Ports = []Port{{Protocol: "TCP", Port: 80, Endpoints: endpoints("10.1.0.9:80")}}
		err := tab.Sync(context.Background(), []Service{bad, good})
		if err == nil || !strings.Contains(err.Error(), "service default/web") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
		if got := walk(t, fake, nft.Prerouting, packet(tcp, "10.1.0.99:1", "10.96.0.9:80")).DNAT.String(); got != "10.1.0.9:80" {
			t.Errorf("%s: the good service leads to %s", c.want, got)
		}
		if err := tab.Sync(context.Background(), []Service{web(), good}); err != nil {
			t.Errorf("%s: after the cure: %v", c.want, err)
		}
	}
	tab, _, _ := newFakeTable(t, Options{})
	if err := tab.Sync(context.Background(), []Service{web(), web()}); err == nil || !strings.Contains(err.Error(), "given twice") {
		t.Errorf("twice the same: %v", err)
	}
}

// TestEqualSeesEveryField changes each field in turn: one that Equal does not
// compare would never reach the kernel.
func TestEqualSeesEveryField(t *testing.T) {
	check := func(path string, v reflect.Value, equal func() bool) {
		for i := range v.NumField() {
			f, name := v.Field(i), path+v.Type().Field(i).Name
			old := reflect.ValueOf(f.Interface())
			switch f.Kind() {
			case reflect.String:
				f.SetString("other")
			case reflect.Uint16:
				f.SetUint(9)
			case reflect.Int64:
				f.SetInt(9)
			case reflect.Int:
				f.SetInt(9)
			case reflect.Slice:
				if f.Len() > 0 {
					f.Set(f.Slice(0, f.Len()-1))
				} else {
					f.Set(reflect.MakeSlice(f.Type(), 1, 1))
				}
			default:
				t.Fatalf("%s: teach this test its kind %s", name, f.Kind())
			}
			if equal() {
				t.Errorf("%s is not compared", name)
			}
			f.Set(old)
		}
	}
	s := web()
	check("Service.", reflect.ValueOf(&s).Elem(), func() bool { return s.Equal(web()) })
	check("Port.", reflect.ValueOf(&s.Ports[0]).Elem(), func() bool { return s.Ports[0].Equal(web().Ports[0]) })
	if !s.Equal(web()) {
		t.Error("equal services differ")
	}
	c := s.clone()
	c.Ports[0].Endpoints[0], c.ClusterIPs[0], c.ExternalIPs[0] = netip.AddrPort{}, netip.Addr{}, netip.Addr{}
	if !s.Equal(web()) {
		t.Error("a clone shares memory")
	}
}

func TestFlushIsHealed(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	mustSync(t, tab, web())
	want := fake.Dump()
	fake.Flush()
	if err := tab.Resync(context.Background()); err != nil {
		t.Fatal(err)
	}
	if normal(fake.Dump()) != normal(want) {
		t.Errorf("after a flush:\n%s", fake.Dump())
	}
	// Without Resync, the next change finds out.
	fake.Flush()
	mustSync(t, tab, web("10.1.0.77:80"))
	if got := walk(t, fake, nft.Prerouting, packet(tcp, "10.1.0.99:1", "10.96.0.1:80")).DNAT.String(); got != "10.1.0.77:80" {
		t.Errorf("after a flush and a change: %s", got)
	}
}

// TestOldShape begins with sets of the same names and another type.
func TestOldShape(t *testing.T) {
	fake := nft.NewFake()
	tx := nft.NewTx()
	set := nft.Set{Name: setsOf(nft.IPv4).frontends.Name, Key: []nft.Type{nft.TypePort}}
	other := nft.Set{Name: "other", Key: []nft.Type{nft.TypePort}}
	tx.AddSet(set)
	tx.AddSet(other)
	tx.SetRules(nft.Chain{Name: chainDispatch}, nft.NewRule(nft.InSet(set, nft.Dport()), nft.Drop()))
	if err := fake.Commit(tx); err != nil {
		t.Fatal(err)
	}
	k := &kernelState{flows: map[nft.Family][]flow{}, routes: map[netip.Prefix]string{}}
	tab := newTable(Options{Log: quiet(), NoLoopback: true}, fake, k, k)
	if err := tab.makeChains(context.Background()); err != nil {
		t.Fatal(err)
	}
	if sets, _ := fake.Sets(); !slices.Contains(sets, "other") {
		t.Error("somebody else's set is gone")
	}
	mustSync(t, tab, web())
	if err := tab.Remove(context.Background()); err != nil {
		t.Fatal(err)
	}
	if sets, _ := fake.Sets(); !slices.Equal(sets, []string{"other"}) {
		t.Errorf("sets after Remove: %v", sets)
	}
	if chains, _ := fake.Chains(); len(chains) != 0 {
		t.Errorf("chains after Remove: %v", chains)
	}
}

func TestStaleFlows(t *testing.T) {
	tab, _, k := newFakeTable(t, Options{})
	k.local = addrs("192.168.0.1", "127.0.0.1")
	old := web("10.1.0.1:80", "10.1.0.2:80")
	mustSync(t, tab, old)
	f := func(proto uint8, to, by string) flow {
		return flow{proto, netip.MustParseAddrPort(to), netip.MustParseAddrPort(by)}
	}
	stay := []flow{
		f(udp, "10.96.0.1:53", "10.1.0.1:80"),
		f(tcp, "10.96.0.1:53", "10.1.0.2:80"),
		f(udp, "10.96.0.99:53", "10.1.0.2:80"),
		f(udp, "192.168.0.1:30053", "10.1.0.1:80"),
		f(udp, "8.8.8.8:30053", "8.8.8.8:30053"),
		f(udp, "127.0.0.1:30053", "127.0.0.1:30053"),
	}
	gone := []flow{
		f(udp, "10.96.0.1:53", "10.1.0.2:80"),
		f(udp, "192.0.2.7:53", "10.1.0.2:80"),
		f(udp, "192.168.0.1:30053", "10.1.0.2:80"),
		f(udp, "192.168.0.1:30053", "192.168.0.1:30053"),
	}
	for _, c := range []struct {
		name    string
		desired []Service
		want    []flow
	}{
		{"an endpoint goes", []Service{web("10.1.0.1:80")}, stay},
		{"no endpoint is left", []Service{web([]string{}...)}, slices.Concat(stay[1:3], stay[4:])},
		{"the service goes", nil, slices.Concat(stay[1:3], stay[4:])},
		{"nothing goes", []Service{web("10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80")}, slices.Concat(stay, gone)},
	} {
		mustSync(t, tab, old)
		k.flows[nft.IPv4] = slices.Concat(stay, gone)
		mustSync(t, tab, c.desired...)
		if !slices.Equal(k.flows[nft.IPv4], c.want) {
			t.Errorf("%s: left %v, want %v", c.name, k.flows[nft.IPv4], c.want)
		}
	}
}

func TestStaleFlowsAreTriedAgain(t *testing.T) {
	tab, _, k := newFakeTable(t, Options{})
	mustSync(t, tab, web("10.1.0.1:80", "10.1.0.2:80"))
	k.flows[nft.IPv4] = []flow{{udp, netip.MustParseAddrPort("10.96.0.1:53"), netip.MustParseAddrPort("10.1.0.2:80")}}
	k.fail = unix.ENOBUFS
	desired := []Service{web("10.1.0.1:80")}
	if err := tab.Sync(context.Background(), desired); !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("error %v", err)
	}
	k.fail = nil
	mustSync(t, tab, desired...)
	if left := k.flows[nft.IPv4]; len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestRoutesFollow(t *testing.T) {
	tab, _, k := newFakeTable(t, Options{RouteDev: "br0"})
	mustSync(t, tab)
	if len(k.routes) != len(testCIDRs) || k.routes[testCIDRs[0]] != "br0" {
		t.Errorf("routes %v", k.routes)
	}
	if err := tab.Remove(context.Background()); err != nil || len(k.routes) != 0 {
		t.Errorf("after Remove: %v, %v", k.routes, err)
	}
}

func TestCancelled(t *testing.T) {
	tab, fake, _ := newFakeTable(t, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	before := fake.Commits()
	for name, err := range map[string]error{
		"Sync": tab.Sync(ctx, []Service{web()}), "Resync": tab.Resync(ctx), "Remove": tab.Remove(ctx),
	} {
		if !errors.Is(err, context.Canceled) || fake.Commits() != before {
			t.Errorf("%s: %v", name, err)
		}
	}
}
