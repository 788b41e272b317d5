package trace

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// How a chain of somebody else's ends for a packet.
const (
	passes = iota
	drops
	unsure // it depends on what only the kernel knows
)

type fate struct {
	verdict int
	why     string
	rule    *nftables.Rule // that decided
}

// evaluator runs a packet through the chains of one table.
type evaluator struct {
	conn   *nftables.Conn
	table  *nftables.Table
	packet packet
	regs   [256]byte // with room behind the last
	maybe  string    // why it cannot be sure of what it says
}

// maxDepth is the kernel's limit of jumps.
const maxDepth = 16

// follow walks the packet through a base chain and what it leads to.
func follow(conn *nftables.Conn, c *nftables.Chain, p packet) fate {
	e := &evaluator{conn: conn, table: c.Table, packet: p}
	kind, rule, err := e.chain(c, 0)
	switch {
	case err != nil:
		return fate{unsure, err.Error(), nil}
	case kind == expr.VerdictDrop:
		f := fate{drops, "its rule says so", rule}
		if rule != nil {
			f.why = fmt.Sprintf("rule handle %d of chain %s", rule.Handle, rule.Chain.Name)
		}
		return e.sure(f)
	case kind == expr.VerdictAccept:
		return fate{verdict: passes}
	case c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop:
		return e.sure(fate{drops, "policy drop, and no rule accepts it", nil})
	case e.maybe != "":
		return fate{unsure, e.maybe, nil}
	}
	return fate{verdict: passes}
}

// sure makes a drop an uncertain one when a rule before could not be worked out.
func (e *evaluator) sure(f fate) fate {
	if e.maybe != "" {
		f.verdict, f.why = unsure, f.why+"; before that, "+e.maybe
	}
	return f
}

// chain is VerdictContinue when no rule decides.
func (e *evaluator) chain(c *nftables.Chain, depth int) (expr.VerdictKind, *nftables.Rule, error) {
	if depth > maxDepth {
		return expr.VerdictContinue, nil, fmt.Errorf("chain %s leads round in circles", c.Name)
	}
	rules, err := e.conn.GetRules(c.Table, c)
	if err != nil {
		return expr.VerdictContinue, nil, fmt.Errorf("read chain %s: %w", c.Name, err)
	}
	for _, r := range rules {
		r.Chain = c // with its table, which the library leaves out
		v, err := e.rule(r)
		if err != nil {
			if rejects(r) || leads(r, expr.VerdictAccept) {
				e.maybe = fmt.Sprintf("rule handle %d of chain %s has %v", r.Handle, c.Name, err)
			}
			continue
		}
		if v == nil {
			continue
		}
		switch v.Kind {
		case expr.VerdictJump, expr.VerdictGoto:
			kind, by, err := e.chain(&nftables.Chain{Name: v.Chain, Table: c.Table}, depth+1)
			if err != nil || kind == expr.VerdictAccept || kind == expr.VerdictDrop {
				return kind, by, err
			}
			if v.Kind == expr.VerdictGoto {
				return expr.VerdictContinue, nil, nil
			}
		case expr.VerdictReturn:
			return expr.VerdictContinue, nil, nil
		case expr.VerdictAccept, expr.VerdictDrop:
			return v.Kind, r, nil
		}
	}
	return expr.VerdictContinue, nil, nil
}

// rejects tells whether a rule may end a packet.
func rejects(r *nftables.Rule) bool {
	return leads(r, expr.VerdictDrop) || slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		_, reject := e.(*expr.Reject)
		target, ok := e.(*expr.Target)
		return reject || ok && target.Name == "REJECT"
	})
}

func leads(r *nftables.Rule, kind expr.VerdictKind) bool {
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		v, ok := e.(*expr.Verdict)
		return ok && (v.Kind == kind || v.Kind == expr.VerdictJump || v.Kind == expr.VerdictGoto)
	})
}

// rule is what a rule says of the packet; nil when it does not match or says nothing.
func (e *evaluator) rule(r *nftables.Rule) (*expr.Verdict, error) {
	for _, x := range r.Exprs {
		match, v, err := e.expr(x)
		if err != nil || v != nil {
			return v, err
		}
		if !match {
			return nil, nil
		}
	}
	return nil, nil
}

func (e *evaluator) expr(x expr.Any) (match bool, v *expr.Verdict, err error) {
	switch x := x.(type) {
	case *expr.Counter, *expr.Log:
		return true, nil, nil
	case *expr.Verdict:
		return true, x, nil
	case *expr.Reject:
		return true, &expr.Verdict{Kind: expr.VerdictDrop}, nil
	case *expr.Target:
		if x.Name == "REJECT" {
			return true, &expr.Verdict{Kind: expr.VerdictDrop}, nil
		}
		return true, nil, nil // it changes the packet, and decides nothing
	case *expr.Meta:
		return e.meta(x)
	case *expr.Payload:
		return e.payload(x)
	case *expr.Ct:
		if x.Key != expr.CtKeySTATE || x.SourceRegister {
			return false, nil, errUnknown
		}
		e.put(x.Register, binary.NativeEndian.AppendUint32(nil, expr.CtStateBitNEW))
		return true, nil, nil
	case *expr.Bitwise:
		src, out := e.get(x.SourceRegister, int(x.Len)), make([]byte, x.Len)
		for i := range out {
			out[i] = src[i]&x.Mask[i] ^ x.Xor[i]
		}
		e.put(x.DestRegister, out)
		return true, nil, nil
	case *expr.Cmp:
		return compare(x.Op, bytes.Compare(e.get(x.Register, len(x.Data)), x.Data)), nil, nil
	case *expr.Range:
		now := e.get(x.Register, len(x.FromData))
		in := bytes.Compare(now, x.FromData) >= 0 && bytes.Compare(now, x.ToData) <= 0
		return in == (x.Op == expr.CmpOpEq), nil, nil
	case *expr.Lookup:
		return e.lookup(x)
	}
	return false, nil, errUnknown
}

func compare(op expr.CmpOp, c int) bool {
	switch op {
	case expr.CmpOpEq:
		return c == 0
	case expr.CmpOpNeq:
		return c != 0
	case expr.CmpOpLt:
		return c < 0
	case expr.CmpOpLte:
		return c <= 0
	case expr.CmpOpGt:
		return c > 0
	default:
		return c >= 0
	}
}

// at is the place of a register: four of 16 bytes, or sixteen of 4.
func at(reg uint32) int {
	if reg < unix.NFT_REG32_00 {
		return int(reg%5) * 16
	}
	return 16 + int(reg-unix.NFT_REG32_00)%16*4
}

func (e *evaluator) get(reg uint32, n int) []byte { return e.regs[at(reg) : at(reg)+n] }

func (e *evaluator) put(reg uint32, v []byte) {
	clear(e.regs[at(reg) : at(reg)+(len(v)+3)/4*4])
	copy(e.regs[at(reg):], v)
}

func (e *evaluator) meta(x *expr.Meta) (bool, *expr.Verdict, error) {
	if x.SourceRegister {
		return true, nil, nil // it marks the packet
	}
	v4 := e.packet.dst.Addr().Is4()
	var v []byte
	switch x.Key {
	case expr.MetaKeyIIFNAME:
		v = nft.Value(nil).IfName(e.packet.iif)
	case expr.MetaKeyOIFNAME:
		v = nft.Value(nil).IfName(e.packet.oif)
	case expr.MetaKeyL4PROTO:
		v = []byte{e.packet.proto}
	case expr.MetaKeyNFPROTO:
		v = []byte{unix.NFPROTO_IPV6}
		if v4 {
			v[0] = unix.NFPROTO_IPV4
		}
	case expr.MetaKeyPROTOCOL:
		v = binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6)
		if v4 {
			v = binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP)
		}
	case expr.MetaKeyMARK:
		v = make([]byte, 4)
	default:
		return false, nil, errUnknown
	}
	e.put(x.Register, v)
	return true, nil, nil
}

// payload reads the addresses, the protocol and the ports of the packet.
func (e *evaluator) payload(x *expr.Payload) (bool, *expr.Verdict, error) {
	if x.OperationType == expr.PayloadWrite {
		return true, nil, nil
	}
	var have []byte
	switch x.Base {
	case expr.PayloadBaseTransportHeader:
		have = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, e.packet.src.Port()), e.packet.dst.Port())
		if x.Offset < 2 || x.Offset+x.Len > 4 { // nobody knows the source's port before
			return false, nil, errUnknown
		}
	case expr.PayloadBaseNetworkHeader:
		have = header(e.packet)
		if x.Offset+x.Len > uint32(len(have)) || !known(e.packet, x.Offset) {
			return false, nil, errUnknown
		}
	default:
		return false, nil, errUnknown
	}
	e.put(x.DestRegister, have[x.Offset:x.Offset+x.Len])
	return true, nil, nil
}

// header is an IP header with what is known of it.
func header(p packet) []byte {
	if p.dst.Addr().Is4() {
		h := make([]byte, 20)
		h[9] = p.proto
		copy(h[12:], addrBytes(p.src, 4))
		copy(h[16:], addrBytes(p.dst, 4))
		return h
	}
	h := make([]byte, 40)
	h[6] = p.proto
	copy(h[8:], addrBytes(p.src, 16))
	copy(h[24:], addrBytes(p.dst, 16))
	return h
}

func known(p packet, offset uint32) bool {
	if p.dst.Addr().Is4() {
		return offset == 9 || offset >= 12
	}
	return offset == 6 || offset >= 8
}

func addrBytes(a netip.AddrPort, n int) []byte {
	if !a.Addr().IsValid() {
		return make([]byte, n)
	}
	return a.Addr().AsSlice()
}

// lookup asks a set of the table. One with ranges is left to the kernel.
func (e *evaluator) lookup(x *expr.Lookup) (bool, *expr.Verdict, error) {
	set, err := e.conn.GetSetByName(e.table, x.SetName)
	if err != nil || set.Interval || x.IsDestRegSet {
		return false, nil, errUnknown
	}
	elems, err := e.conn.GetSetElements(set)
	if err != nil {
		return false, nil, errUnknown
	}
	found := slices.ContainsFunc(elems, func(el nftables.SetElement) bool {
		return bytes.Equal(e.get(x.SourceRegister, len(el.Key)), el.Key)
	})
	return found != x.Invert, nil, nil
}
