package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// libEncode is an operation as the library writes it.
func libEncode(c *nftables.Conn, o op) error {
	switch o.kind {
	case opAddTable:
		c.AddTable(table())
	case opAddChain:
		c.AddChain(libChain(o.chain))
	case opFlushChain:
		c.FlushChain(libChain(o.chain))
	case opDeleteChain:
		c.DelChain(libChain(o.chain))
	case opAddRule:
		c.AddRule(&nftables.Rule{Table: table(), Chain: libChain(o.chain), Exprs: o.rule.exprs()})
	case opAddSet:
		return c.AddSet(o.set.lib(), nil)
	case opFlushSet:
		c.FlushSet(o.set.lib())
	case opDeleteSet:
		c.DelSet(o.set.lib())
	case opAddElements:
		return c.SetAddElements(o.set.lib(), libElements(o.set, o.elems, true))
	case opDeleteElements:
		return c.SetDeleteElements(o.set.lib(), libElements(o.set, o.elems, false))
	}
	return nil
}

func libElements(s Set, elems []Element, data bool) []nftables.SetElement {
	out := make([]nftables.SetElement, len(elems))
	for i, e := range elems {
		out[i].Key = trim(s.Key, e.Key)
		switch {
		case !data:
		case e.Verdict.Kind != NoVerdict:
			out[i].VerdictData = e.Verdict.lib()
		default:
			out[i].Val = trim(s.Data, e.Data)
		}
	}
	return out
}

func libChain(c Chain) *nftables.Chain {
	out := &nftables.Chain{Name: c.Name, Table: table()}
	if c.Hook == NoHook {
		return out
	}
	hooks := map[Hook]*nftables.ChainHook{
		Prerouting: nftables.ChainHookPrerouting, Input: nftables.ChainHookInput, Forward: nftables.ChainHookForward,
		Output: nftables.ChainHookOutput, Postrouting: nftables.ChainHookPostrouting,
	}
	out.Hooknum = hooks[c.Hook]
	out.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	out.Type = nftables.ChainType(c.Type)
	return out
}

// plain is the attributes of a message with those below them, without what has
// no meaning: marks of nesting, and the numbers that sets are given.
func plain(t *testing.T, kind uint16, data []byte, depth int) string {
	t.Helper()
	attrs, err := netlink.UnmarshalAttributes(data)
	if err != nil || depth > 8 || len(attrs) == 0 || attrs[0].Type&^unix.NLA_F_NESTED > 64 {
		return fmt.Sprintf("%x", data)
	}
	if depth == 0 { // their order means nothing
		slices.SortFunc(attrs, func(a, b netlink.Attribute) int {
			return int(a.Type&^unix.NLA_F_NESTED) - int(b.Type&^unix.NLA_F_NESTED)
		})
	}
	var out bytes.Buffer
	for _, a := range attrs {
		nested := a.Type&unix.NLA_F_NESTED != 0
		a.Type &^= unix.NLA_F_NESTED
		isSet, isElems := kind == unix.NFT_MSG_NEWSET, kind == unix.NFT_MSG_NEWSETELEM || kind == unix.NFT_MSG_DELSETELEM
		switch {
		case depth == 0 && (isSet && a.Type == unix.NFTA_SET_ID || isElems && a.Type == unix.NFTA_SET_ELEM_LIST_SET_ID):
		case isElems && depth == 1: // the library counts them
			fmt.Fprintf(&out, "[%s]", plain(t, kind, a.Data, depth+1))
		case nested || isSet && depth > 0:
			fmt.Fprintf(&out, "%d[%s]", a.Type, plain(t, kind, a.Data, depth+1))
		default:
			fmt.Fprintf(&out, "%d=%x ", a.Type, a.Data)
		}
	}
	return out.String()
}

// TestEncodesAsTheLibrary compares each operation with the library's message.
func TestEncodesAsTheLibrary(t *testing.T) {
	tx := everything()
	tx.AddSet(Set{Name: "sticky", Key: []Type{TypeIPv4}, Timeout: 90e9})
	tx.AddSet(Set{Name: "sticky2", Key: []Type{TypeIPv4, TypePort}, Timeout: 1e9})
	addr := netip.MustParseAddr("10.0.0.1")
	key := Value(nil).Addr(addr).Proto(6).Port(80)
	tx.AddElements(testVmap, Element{Key: key, Verdict: Verdict{VerdictGoto, "tail"}}, Element{Key: Value(nil).Addr(addr).Proto(6).Port(81), Verdict: Verdict{Kind: VerdictDrop}})
	tx.AddElements(testMap4, Element{Key: key.Mark(7), Data: Value(nil).Addr(addr).Port(8080)})
	tx.AddElements(testAddrs6, Element{Key: Value(nil).Addr(netip.MustParseAddr("fd00::1"))})
	tx.AddElements(Set{Name: "ports", Key: []Type{TypePort}}, Element{Key: Value(nil).Port(80)})
	tx.DeleteElements(testVmap, Element{Key: key, Verdict: Verdict{VerdictGoto, "tail"}})
	tx.FlushSet(testVmap)
	tx.DeleteSet(testVmap)
	tx.FlushChain("tail")
	tx.DeleteChain("tail")

	var theirs []netlink.Message
	lib, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
		if len(req) > 0 {
			theirs = req
		}
		return nil, syscall.EPERM // ends the wait for answers
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range tx.ops {
		if err := libEncode(lib, o); err != nil {
			t.Fatal(err)
		}
	}
	_ = lib.Flush() // see above
	b, err := encodeTx(tx, 100)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := syscall.ParseNetlinkMessage(b.buf)
	if err != nil || len(ours) != len(theirs) {
		t.Fatalf("%d messages, %v; the library writes %d", len(ours), err, len(theirs))
	}
	for i, m := range ours {
		want := theirs[i]
		kind := m.Header.Type & 0xff
		ack := unix.NLM_F_ACK | unix.NLM_F_ECHO
		if m.Header.Type != uint16(want.Header.Type) || m.Header.Flags&^uint16(ack) != uint16(want.Header.Flags)&^uint16(ack) || !bytes.Equal(m.Data[:4], want.Data[:4]) {
			t.Errorf("message %d: header %+v %x; the library's %+v %x", i, m.Header, m.Data[:4], want.Header, want.Data[:4])
		}
		if a, b := plain(t, kind, m.Data[4:], 0), plain(t, kind, want.Data[4:], 0); a != b {
			t.Errorf("message %d of type %x:\n%s\nthe library's\n%s", i, m.Header.Type, a, b)
		}
		if has, should := m.Header.Flags&unix.NLM_F_ACK != 0, i == len(ours)-2; has != should {
			t.Errorf("message %d is acknowledged: %v", i, has)
		}
	}
}

// TestElementsOfOneSetAreOneOperation: one by one they would be a message each.
func TestElementsOfOneSetAreOneOperation(t *testing.T) {
	tx := NewTx()
	mine := []Element{{Key: Value(nil).Mark(0)}, {Key: Value(nil).Mark(1)}}
	tx.DeleteElements(testMap4, mine[:1]...)
	for i := range uint32(9) {
		tx.DeleteElements(testMap4, Element{Key: Value(nil).Mark(100 + i)})
	}
	tx.AddElements(testMap4, mine...)
	tx.DeleteElements(testMap6, mine...)
	if len(tx.ops) != 4 || len(tx.ops[1].elems) != 10 {
		t.Errorf("%d operations, the first with %d elements; want 4 and 10", len(tx.ops), len(tx.ops[1].elems))
	}
	if !bytes.Equal(mine[1].Key, Value(nil).Mark(1)) {
		t.Error("the caller's elements were written over")
	}
}

func TestSettle(t *testing.T) {
	tx := NewTx()
	tx.AddChain(Chain{Name: "a"})
	tx.DeleteChain("b")
	b, err := encodeTx(tx, ^uint32(0)-1) // the numbers begin anew within it
	if err != nil {
		t.Fatal(err)
	}
	answer := func(nth int, errno unix.Errno) reply {
		return reply{b.first + uint32(nth), unix.NLMSG_ERROR, binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))}
	}
	for name, c := range map[string]struct {
		answers []reply
		err     error
		want    error
		text    string
	}{
		"done":                      {[]reply{answer(3, 0)}, nil, nil, ""},
		"done, others were lost":    {[]reply{answer(3, 0)}, unix.ENOBUFS, nil, ""},
		"a request before":          {[]reply{answer(-1, unix.EPERM), answer(3, 0)}, nil, nil, ""},
		"one is refused":            {[]reply{answer(2, unix.EEXIST), answer(3, 0)}, nil, unix.EEXIST, "add chain a: file exists"},
		"the last is refused":       {[]reply{answer(3, unix.ENOENT)}, nil, unix.ENOENT, "delete chain b: no such file or directory"},
		"the commit fails":          {[]reply{answer(0, unix.EBUSY), answer(3, 0)}, nil, unix.EBUSY, "device or resource busy"},
		"refused, others were lost": {[]reply{answer(1, unix.EPERM)}, unix.ENOBUFS, unix.EPERM, "add table pausa: operation not permitted"},
		"all is lost":               {nil, unix.ENOBUFS, unix.ENOBUFS, "no buffer space available"},
		"silence":                   {nil, nil, errSilent, errSilent.Error()},
	} {
		err := b.settle(c.answers, c.err)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || (err != nil && err.Error() != c.text) {
			t.Errorf("%s: %v, want %v %q", name, err, c.want, c.text)
		}
	}
}

// tiny gives the connection the smallest receive buffer that there is.
func (c *Conn) tiny(t *testing.T) {
	t.Helper()
	if err := c.sock.SetReadBuffer(1); err != nil {
		t.Fatal(err)
	}
}

// TestManyOperationsWithASmallBuffer would overrun it if each were acknowledged.
func TestManyOperationsWithASmallBuffer(t *testing.T) {
	c := openKernel(t)
	c.tiny(t)
	tx := NewTx()
	const n = 3000
	for i := range n {
		tx.AddChain(Chain{Name: fmt.Sprint("c", i)})
	}
	if err := c.Commit(tx); err != nil {
		t.Fatal(err)
	}
	if err := c.sock.SetReadBuffer(socketBuffer); err != nil {
		t.Fatal(err)
	}
	if chains, err := c.Chains(); err != nil || len(chains) != n {
		t.Errorf("%d chains, %v; want %d", len(chains), err, n)
	}
}

// TestManyErrorsWithASmallBuffer: the kernel repeats each message that it refuses,
// and what does not fit into the buffer is lost, but for the first.
func TestManyErrorsWithASmallBuffer(t *testing.T) {
	c := openKernel(t)
	c.tiny(t)
	bad := NewTx()
	bad.AddChain(Chain{Name: "good"})
	for i := range 3000 {
		bad.DeleteChain(fmt.Sprint("missing", i))
	}
	for range 2 {
		if err := c.Commit(bad); !errors.Is(err, unix.ENOENT) {
			t.Fatalf("commit: %v, want ENOENT", err)
		}
	}
	good := NewTx()
	good.AddChain(Chain{Name: "other"})
	if err := c.Commit(good); err != nil {
		t.Errorf("commit after lost answers: %v", err)
	}
	if chains, err := c.Chains(); err != nil || len(chains) != 1 {
		t.Errorf("chains %v, %v; want the other one alone", chains, err)
	}
}

func TestFind(t *testing.T) {
	c := openKernel(t)
	tx := everything()
	addr := netip.MustParseAddr("10.0.0.1")
	inMap := Element{Key: Value(nil).Addr(addr).Proto(6).Port(80).Mark(2), Data: Value(nil).Addr(addr).Port(8080)}
	inVmap := Element{Key: Value(nil).Addr(addr).Proto(6).Port(80), Verdict: Verdict{VerdictGoto, "tail"}}
	tx.AddElements(testMap4, inMap)
	tx.AddElements(testVmap, inVmap)
	if err := c.Commit(tx); err != nil {
		t.Fatal(err)
	}
	if e, ok, err := c.Find(testMap4, inMap.Key); err != nil || !ok || !bytes.Equal(e.Key, inMap.Key) || !bytes.Equal(e.Data, inMap.Data) {
		t.Errorf("found %+v, %v, %v", e, ok, err)
	}
	if e, ok, err := c.Find(testVmap, inVmap.Key); err != nil || !ok || e.Verdict != inVmap.Verdict {
		t.Errorf("found %+v, %v, %v", e, ok, err)
	}
	if e, ok, err := c.Find(testMap4, Value(nil).Addr(addr).Proto(17).Port(80).Mark(2)); err != nil || ok {
		t.Errorf("found %+v, %v, %v; want nothing", e, ok, err)
	}
	if _, ok, err := c.Find(Set{Name: "missing", Key: []Type{TypeIPv4}}, Value(nil).Addr(addr)); ok || err != nil {
		t.Errorf("a set that does not exist: %v, %v; want nothing", ok, err)
	}
}

func BenchmarkCommit(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	c, err := Open()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	tx := NewTx()
	tx.AddSet(testMap4)
	if err := c.Commit(tx); err != nil {
		b.Fatal(err)
	}
	b.Run("empty", func(b *testing.B) {
		for b.Loop() {
			if err := c.Commit(NewTx()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("element", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
			tx := NewTx()
			tx.AddElements(testMap4, Element{Key: Value(nil).Addr(a).Proto(6).Port(80).Mark(0), Data: Value(nil).Addr(a).Port(8080)})
			if err := c.Commit(tx); err != nil {
				b.Fatal(err)
			}
		}
	})
}
