package nft

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// rejected is transactions that kernel and fake refuse alike, after everything.
func rejected() map[string]struct {
	change func(*Tx)
	want   error
} {
	elem := Element{Key: Value(nil).Addr(netip.MustParseAddr("10.0.0.1")).Proto(6).Port(80), Verdict: Verdict{Kind: VerdictDrop}}
	lost := Element{Key: elem.Key, Verdict: Verdict{VerdictGoto, "missing"}}
	other := Element{Key: elem.Key, Verdict: Verdict{Kind: VerdictAccept}}
	used := Element{Key: elem.Key, Verdict: Verdict{VerdictGoto, "tail"}}
	return map[string]struct {
		change func(*Tx)
		want   error
	}{
		"rule in a missing chain":   {func(tx *Tx) { tx.AddRule("missing", NewRule(Drop())) }, unix.ENOENT},
		"flush of a missing chain":  {func(tx *Tx) { tx.FlushChain("missing") }, unix.ENOENT},
		"missing chain deleted":     {func(tx *Tx) { tx.DeleteChain("missing") }, unix.ENOENT},
		"missing set deleted":       {func(tx *Tx) { tx.DeleteSet(Set{Name: "missing"}) }, unix.ENOENT},
		"jump to a missing chain":   {func(tx *Tx) { tx.AddRule("pre", NewRule(Jump("missing"))) }, unix.ENOENT},
		"rule with a missing set":   {func(tx *Tx) { tx.AddRule("pre", NewRule(InSet(Set{Name: "missing"}, Mark()), Drop())) }, unix.ENOENT},
		"chain in use deleted":      {func(tx *Tx) { tx.DeleteChain("tail") }, unix.EBUSY},
		"set in use deleted":        {func(tx *Tx) { tx.DeleteSet(testVmap) }, unix.EBUSY},
		"chain at another priority": {func(tx *Tx) { tx.AddChain(Chain{Name: "raw", Hook: Prerouting, Type: TypeFilter, Priority: 5}) }, unix.EOPNOTSUPP},
		"missing element deleted":   {func(tx *Tx) { tx.DeleteElements(testVmap, elem) }, unix.ENOENT},
		"element to a lost chain":   {func(tx *Tx) { tx.AddElements(testVmap, lost) }, unix.ENOENT},
		"element with other data":   {func(tx *Tx) { tx.AddElements(testVmap, elem); tx.AddElements(testVmap, other) }, unix.EEXIST},
		"element of another length": {func(tx *Tx) { tx.AddElements(testAddrs6, Element{Key: Value(nil).Port(1)}) }, unix.EINVAL},
		"chain used by an element": {func(tx *Tx) {
			tx.FlushChain("pre")
			tx.AddElements(testVmap, used)
			tx.DeleteChain("tail")
		}, unix.EBUSY},
	}
}

// committer is Conn and Fake.
type committer interface {
	Commit(*Tx) error
	Elements(Set) ([]Element, error)
	Chains() ([]string, error)
	Sets() ([]string, error)
}

// TestFakeIsLikeTheKernel runs the same transactions against both.
func TestFakeIsLikeTheKernel(t *testing.T) {
	for name, c := range map[string]committer{"fake": NewFake(), "kernel": openKernel(t)} {
		if err := c.Commit(everything()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for what, r := range rejected() {
			tx := NewTx()
			tx.SetRules(Chain{Name: "half-done"})
			r.change(tx)
			if err := c.Commit(tx); !errors.Is(err, r.want) {
				t.Errorf("%s, %s: %v, want %v", name, what, err, r.want)
			}
		}
		chains, err := c.Chains()
		if err != nil || len(chains) != 5 {
			t.Errorf("%s: chains %v, %v", name, chains, err)
		}
		sets, err := c.Sets()
		if err != nil || len(sets) != 6 {
			t.Errorf("%s: sets %v, %v", name, sets, err)
		}
		if err := c.Commit(replaceAll()); err != nil {
			t.Errorf("%s: replace all: %v", name, err)
		}
		elems, err := c.Elements(testVmap)
		if err != nil || len(elems) != 1 || elems[0].Verdict != (Verdict{VerdictGoto, "new"}) {
			t.Errorf("%s: elements %+v, %v", name, elems, err)
		}
		if chains, _ := c.Chains(); len(chains) != 1 {
			t.Errorf("%s: chains %v", name, chains)
		}
	}
}

// replaceAll takes everything away and puts something new in one transaction.
func replaceAll() *Tx {
	tx := NewTx()
	for _, c := range []string{"pre", "raw", "forward", "post", "tail"} {
		tx.FlushChain(c)
	}
	for _, c := range []string{"pre", "raw", "forward", "post", "tail"} {
		tx.DeleteChain(c)
	}
	tx.DeleteSet(testVmap)
	tx.AddSet(testVmap)
	tx.SetRules(Chain{Name: "new"}, NewRule(Reject()))
	key := Value(nil).Addr(netip.MustParseAddr("10.0.0.1")).Proto(6).Port(80)
	old := Element{Key: key, Verdict: Verdict{Kind: VerdictDrop}}
	tx.AddElements(testVmap, old)
	tx.DeleteElements(testVmap, old)
	tx.AddElements(testVmap, Element{Key: key, Verdict: Verdict{VerdictGoto, "new"}})
	return tx
}

func TestWalk(t *testing.T) {
	f := NewFake()
	tx := NewTx()
	tx.AddSet(testVmap)
	tx.AddSet(testPairs)
	sub := NewRule(Is(L4Proto(), Value(nil).Proto(17)), Return())
	tx.SetRules(Chain{Name: "jumped"}, sub, NewRule(MarkHas(4), Drop()))
	tx.SetRules(Chain{Name: "gone-to"}, NewRule(SetMarkBit(2)))
	tx.SetRules(Chain{Name: "base", Hook: Forward, Type: TypeFilter},
		NewRule(NFProto(IPv4), VMap(testVmap, Daddr(IPv4), L4Proto(), Dport())),
		NewRule(NFProto(IPv4), NotInSet(testPairs, IifName(), Saddr(IPv4)), Jump("jumped")),
		NewRule(CtState(CtEstablished), Accept()),
		NewRule(NFProto(IPv6), In(Saddr(IPv6), netip.MustParsePrefix("fd00::/16")), RejectTCP()),
		NewRule(Is(OifName(), Value(nil).IfName("eth0")), Counter(), Reject()),
		NewRule(SetMarkBit(1)),
	)
	tx.SetRules(Chain{Name: "first", Hook: Forward, Type: TypeFilter, Priority: -5}, NewRule(SetMarkBit(8)))
	tx.AddElements(testVmap, Element{
		Key:     Value(nil).Addr(netip.MustParseAddr("10.0.0.2")).Proto(6).Port(80),
		Verdict: Verdict{VerdictGoto, "gone-to"},
	})
	tx.AddElements(testPairs, Element{Key: Value(nil).IfName("veth1").Addr(netip.MustParseAddr("10.0.0.1"))})
	if err := f.Commit(tx); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		packet Packet
		want   string
		mark   uint32
		trail  string
	}{
		{"goto ends the base chain", Packet{Proto: 6, Dst: netip.MustParseAddrPort("10.0.0.2:80")}, "accept", 8 | 2, "first base gone-to"},
		{"known pair", Packet{Proto: 6, Iif: "veth1"}, "accept", 8 | 1, "first base"},
		{"jump comes back", Packet{Proto: 6}, "accept", 8 | 1, "first base jumped"},
		{"return comes back", Packet{Proto: 17, Mark: 4}, "accept", 8 | 4 | 1, "first base jumped"},
		{"drop in a jump", Packet{Proto: 6, Mark: 4}, "drop", 8 | 4, "first base jumped"},
		{"accept ends", Packet{Proto: 6, CtState: CtEstablished}, "accept", 8, "first base jumped"},
		{"reject", Packet{Proto: 6, Oif: "eth0"}, "reject", 8, "first base jumped"},
		{"v6 reset", Packet{Proto: 6, Src: netip.MustParseAddrPort("[fd00::1]:1"), Dst: netip.MustParseAddrPort("[fd00::2]:1")}, "reset", 8, "first base"},
		{"v6", Packet{Proto: 6, Src: netip.MustParseAddrPort("[fe00::1]:1"), Dst: netip.MustParseAddrPort("[fd00::2]:1")}, "accept", 8 | 1, "first base"},
	} {
		p := c.packet
		if !p.Src.IsValid() {
			p.Src = netip.MustParseAddrPort("10.0.0.1:999")
		}
		if !p.Dst.IsValid() {
			p.Dst = netip.MustParseAddrPort("10.0.0.2:81")
		}
		got, err := f.Walk(Forward, p)
		if err != nil || got.String() != c.want || got.Mark != c.mark || strings.Join(got.Trail, " ") != c.trail {
			t.Errorf("%s: %s, mark %d, trail %v, %v", c.name, got, got.Mark, got.Trail, err)
		}
	}
	f.Flush()
	if got, err := f.Walk(Forward, Packet{}); err != nil || got.Verdict != "accept" {
		t.Errorf("without a table: %v, %v", got, err)
	}
	if f.Dump() != "" {
		t.Errorf("dump without a table: %s", f.Dump())
	}
}

func TestDumpReads(t *testing.T) {
	f := NewFake()
	tx := everything()
	tx.AddElements(testMacs, Element{Key: Value(nil).IfName("veth1").Ether([]byte{2, 0, 0, 0, 0, 1})})
	tx.AddElements(testMap4, Element{
		Key:  Value(nil).Addr(netip.MustParseAddr("10.0.0.1")).Proto(6).Port(80).Mark(2),
		Data: Value(nil).Addr(netip.MustParseAddr("10.0.0.9")).Port(8080),
	})
	if err := f.Commit(tx); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"veth1" . 02:00:00:00:00:01`,
		"10.0.0.1 . tcp . 80 . 0x00000002 : 10.0.0.9 . 8080",
		"map map4 { type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service; }",
		"map vmap { type ipv4_addr . inet_proto . inet_service : verdict; }",
		"  ct status dnat masquerade fully-random",
	} {
		if !strings.Contains(f.Dump(), want) {
			t.Errorf("no %q in\n%s", want, f.Dump())
		}
	}
}
