package nft

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/netnstest"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

func openKernel(t *testing.T) *Conn {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The table is the only one of this namespace.
		_ = exec.Command("nft", "delete", "table", "inet", TableName).Run()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func list(t *testing.T, what ...string) string {
	t.Helper()
	out, err := exec.Command("nft", append([]string{"list"}, what...)...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("needs the nft program to read rules back")
	}
	if err != nil {
		t.Fatalf("nft list: %v: %s", err, out)
	}
	return string(out)
}

var (
	testPairs  = Set{Name: "pairs", Key: []Type{TypeIfName, TypeIPv4}}
	testAddrs6 = Set{Name: "addrs6", Key: []Type{TypeIPv6}}
	testVmap   = Set{Name: "vmap", Key: []Type{TypeIPv4, TypeProto, TypePort}, Verdicts: true}
	testMap4   = Set{Name: "map4", Key: []Type{TypeIPv4, TypeProto, TypePort, TypeMark}, Data: []Type{TypeIPv4, TypePort}}
	testMap6   = Set{Name: "map6", Key: []Type{TypeIPv6, TypeProto, TypePort, TypeMark}, Data: []Type{TypeIPv6, TypePort}}
	testMacs   = Set{Name: "macs", Key: []Type{TypeIfName, TypeEther}}
)

// everyRule has each statement once at least; chain "tail" must exist.
func everyRule() []Rule {
	tcp := Value(nil).Proto(unix.IPPROTO_TCP)
	return []Rule{
		NewRule(NFProto(IPv4), InSet(testPairs, IifName(), Saddr(IPv4)), Counter(), Accept()),
		NewRule(NFProto(IPv4), NotInSet(testPairs, IifName(), Saddr(IPv4)), Return()),
		NewRule(NFProto(IPv6), NotInSet(testAddrs6, Daddr(IPv6)), Drop()),
		NewRule(NFProto(IPv4), VMap(testVmap, Daddr(IPv4), L4Proto(), Dport())),
		NewRule(NFProto(IPv4), NotIn(Daddr(IPv4), netip.MustParsePrefix("127.0.0.0/8")), DaddrLocal(), Jump("tail")),
		NewRule(NFProto(IPv4), In(Saddr(IPv4), netip.MustParsePrefix("10.96.0.0/12")), Goto("tail")),
		NewRule(NFProto(IPv6), In(Daddr(IPv6), netip.MustParsePrefix("fd00:1::/64")), Accept()),
		NewRule(NFProto(IPv6), NotIn(Daddr(IPv6), netip.MustParsePrefix("::1/128")), Accept()),
		NewRule(NFProto(IPv4), Is(Daddr(IPv4), Value(nil).Addr(netip.MustParseAddr("10.0.0.1"))), Accept()),
		NewRule(DNATMapRule(IPv4)...),
		NewRule(DNATMapRule(IPv6)...),
		NewRule(NFProto(IPv4), Is(L4Proto(), tcp), DNAT(netip.MustParseAddrPort("10.1.0.1:80"))),
		NewRule(NFProto(IPv6), Is(L4Proto(), tcp), DNAT(netip.MustParseAddrPort("[fd01::1]:80"))),
		NewRule(Is(IifName(), Value(nil).IfName("br0")), IsNot(OifName(), Value(nil).IfName("br0")), Accept()),
		NewRule(MarkHas(0x40000), Accept()),
		NewRule(SetMarkBit(0x40000)),
		NewRule(CtState(CtEstablished|CtRelated), Accept()),
	}
}

// forwardRules have the statements for what is forwarded.
func forwardRules() []Rule {
	return []Rule{
		NewRule(Is(IifName(), Value(nil).IfName("br0")), ClampMSS()),
		NewRule(Is(IifName(), Value(nil).IfName("br0")), Counter(), RejectProhibited()),
	}
}

// DNATMapRule is the statements of a load-balancing rule.
func DNATMapRule(f Family) []Stmt {
	s := testMap4
	if f == IPv6 {
		s = testMap6
	}
	return []Stmt{NFProto(f), DNATMap(f, s, Daddr(f), L4Proto(), Dport(), Random(3))}
}

func everything() *Tx {
	tx := NewTx()
	for _, s := range []Set{testPairs, testAddrs6, testVmap, testMap4, testMap6, testMacs} {
		tx.AddSet(s)
	}
	tx.SetRules(Chain{Name: "tail"},
		NewRule(Is(L4Proto(), Value(nil).Proto(unix.IPPROTO_TCP)), RejectTCP()),
		NewRule(Reject()))
	tx.SetRules(Chain{Name: "pre", Hook: Prerouting, Type: TypeNAT, Priority: PriorityDNAT}, everyRule()...)
	tx.SetRules(Chain{Name: "raw", Hook: Prerouting, Type: TypeFilter, Priority: PriorityRaw},
		NewRule(IfType(), NotInSet(testMacs, IifName(), EtherSaddr()), Drop()))
	tx.SetRules(Chain{Name: "forward", Hook: Forward, Type: TypeFilter, Priority: PriorityMangle}, forwardRules()...)
	tx.SetRules(Chain{Name: "post", Hook: Postrouting, Type: TypeNAT, Priority: PrioritySNAT},
		NewRule(CtStatus(CtDNAT), Masquerade()))
	return tx
}

// listed is what nft prints of a rule: it leaves out what it can infer.
func listed(rule string) string {
	rule = strings.ReplaceAll(rule, "meta nfproto ipv4 ", "")
	rule = strings.ReplaceAll(rule, "meta nfproto ipv6 ", "")
	rule = strings.ReplaceAll(rule, "meta iiftype ether ", "")
	rule = strings.ReplaceAll(rule, "counter packets 0 bytes 0", "counter")
	return strings.TrimSpace(rule)
}

func TestRulesAreListedAsWritten(t *testing.T) {
	c := openKernel(t)
	if err := c.Commit(everything()); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, line := range strings.Split(list(t, "ruleset"), "\n") {
		have[listed(line)] = true
	}
	for _, r := range slices.Concat(everyRule(), forwardRules()) {
		if !have[listed(r.String())] {
			t.Errorf("nft does not list %q", listed(r.String()))
		}
	}
	if t.Failed() {
		t.Log(list(t, "ruleset"))
	}
}

func TestCommitIsIdempotent(t *testing.T) {
	c := openKernel(t)
	if err := c.Commit(everything()); err != nil {
		t.Fatal(err)
	}
	before := list(t, "ruleset")
	if err := c.Commit(everything()); err != nil {
		t.Fatal(err)
	}
	if after := list(t, "ruleset"); after != before {
		t.Errorf("the second commit changed the rules:\n%s\nfrom\n%s", after, before)
	}
}

func TestManyElements(t *testing.T) {
	c := openKernel(t)
	tx := NewTx()
	tx.AddSet(testMap4)
	const n = 12345
	var elems []Element
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		elems = append(elems, Element{
			Key:  Value(nil).Addr(a).Proto(6).Port(80).Mark(uint32(i)),
			Data: Value(nil).Addr(a).Port(uint16(i)),
		})
	}
	tx.AddElements(testMap4, elems...)
	if err := c.Commit(tx); err != nil {
		t.Fatal(err)
	}
	got, err := c.Elements(testMap4)
	if err != nil || len(got) != n {
		t.Fatalf("read back %d elements, %v; want %d", len(got), err, n)
	}
	want := map[string]string{}
	for _, e := range elems {
		want[string(e.Key)] = string(e.Data)
	}
	for _, e := range got {
		if want[string(e.Key)] != string(e.Data) {
			t.Fatalf("element %s is %s", Format(testMap4.Key, e.Key), Format(testMap4.Data, e.Data))
		}
	}
	tx = NewTx()
	tx.DeleteElements(testMap4, elems[1:]...)
	if err := c.Commit(tx); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Elements(testMap4); err != nil || len(got) != 1 {
		t.Fatalf("%d elements are left, %v; want 1", len(got), err)
	}
}

func TestVerdictsReadBack(t *testing.T) {
	c := openKernel(t)
	tx := NewTx()
	tx.AddSet(testVmap)
	tx.AddChain(Chain{Name: "tail"})
	key := Value(nil).Addr(netip.MustParseAddr("10.0.0.1")).Proto(6).Port(80)
	tx.AddElements(testVmap, Element{Key: key, Verdict: Verdict{VerdictGoto, "tail"}})
	if err := c.Commit(tx); err != nil {
		t.Fatal(err)
	}
	got, err := c.Elements(testVmap)
	if err != nil || len(got) != 1 || got[0].Verdict != (Verdict{VerdictGoto, "tail"}) {
		t.Fatalf("read back %+v, %v", got, err)
	}
}

// TestFailedCommitChangesNothing also shows that the connection works after an
// error, where answers of the failed batch are still under way.
func TestFailedCommitChangesNothing(t *testing.T) {
	c := openKernel(t)
	if err := c.Commit(everything()); err != nil {
		t.Fatal(err)
	}
	before := list(t, "ruleset")
	bad := NewTx()
	bad.SetRules(Chain{Name: "new"}, NewRule(Accept()), NewRule(Drop()))
	bad.DeleteElements(testAddrs6, Element{Key: Value(nil).Addr(netip.MustParseAddr("fd00::1"))})
	bad.AddRule("missing", NewRule(Accept()))
	err := c.Commit(bad)
	if !errors.Is(err, unix.ENOENT) {
		t.Fatalf("commit: %v, want ENOENT", err)
	}
	if after := list(t, "ruleset"); after != before {
		t.Errorf("a failed commit changed the rules:\n%s", after)
	}
	if err := c.Commit(everything()); err != nil {
		t.Errorf("commit after an error: %v", err)
	}
	if _, err := c.Elements(Set{Name: "missing", Key: []Type{TypeIPv4}}); err == nil {
		t.Error("a set that does not exist was read")
	}
	if chains, err := c.Chains(); err != nil || len(chains) != 5 {
		t.Errorf("chains %v, %v", chains, err)
	}
}

func TestNamesWithoutTable(t *testing.T) {
	c := openKernel(t)
	chains, err := c.Chains()
	if err != nil || len(chains) != 0 {
		t.Errorf("chains %v, %v", chains, err)
	}
	sets, err := c.Sets()
	if err != nil || len(sets) != 0 {
		t.Errorf("sets %v, %v", sets, err)
	}
}

func TestClosed(t *testing.T) {
	c := openKernel(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(NewTx()); !errors.Is(err, errClosed) {
		t.Errorf("commit after close: %v", err)
	}
}
