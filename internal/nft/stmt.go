package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Stmt is one match or one action of a rule.
type Stmt struct {
	text  string
	exprs []expr.Any
	// sets and chains are the names that the statement needs.
	sets, chains []string
}

// Rule is statements in order: the first match that fails ends the rule.
type Rule struct {
	stmts []Stmt
}

// NewRule puts a rule together.
func NewRule(stmts ...Stmt) Rule { return Rule{stmts} }

// String is the rule in nft's syntax.
func (r Rule) String() string {
	texts := make([]string, len(r.stmts))
	for i, s := range r.stmts {
		texts[i] = s.text
	}
	return strings.Join(texts, " ")
}

func (r Rule) exprs() []expr.Any {
	var out []expr.Any
	for _, s := range r.stmts {
		out = append(out, s.exprs...)
	}
	return out
}

func compare(op expr.CmpOp, value []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: firstReg, Data: value}
}

// NFProto matches the family: "meta nfproto ipv4".
func NFProto(f Family) Stmt {
	return Stmt{text: "meta nfproto " + f.String(), exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: firstReg},
		compare(expr.CmpOpEq, []byte{byte(f)}),
	}}
}

// IfType matches packets from Ethernet-like interfaces: "meta iiftype ether".
func IfType() Stmt {
	return Stmt{text: "meta iiftype ether", exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: firstReg},
		compare(expr.CmpOpEq, binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_ETHER)),
	}}
}

// Is matches a field that has the value.
func Is(f Field, v Value) Stmt { return is(f, v, expr.CmpOpEq, "") }

// IsNot matches a field that has another value.
func IsNot(f Field, v Value) Stmt { return is(f, v, expr.CmpOpNeq, "!= ") }

func is(f Field, v Value, op expr.CmpOp, sign string) Stmt {
	text := f.text + " " + sign + formatField(f.typ, v)
	v = v[:f.typ.datatype().Bytes]
	return Stmt{text: text, exprs: append(f.load(firstReg), compare(op, v))}
}

// In matches an address field within a range: "ip daddr 10.0.0.0/8".
func In(f Field, p netip.Prefix) Stmt { return in(f, p, expr.CmpOpEq, "") }

// NotIn matches an address field outside a range: "ip daddr != 10.0.0.0/8".
func NotIn(f Field, p netip.Prefix) Stmt { return in(f, p, expr.CmpOpNeq, "!= ") }

func in(f Field, p netip.Prefix, op expr.CmpOp, sign string) Stmt {
	p = p.Masked()
	if p.IsSingleIP() {
		return is(f, Value(nil).Addr(p.Addr()), op, sign)
	}
	size := len(p.Addr().AsSlice())
	mask := []byte(net.CIDRMask(p.Bits(), size*8))
	return Stmt{text: f.text + " " + sign + p.String(), exprs: append(f.load(firstReg),
		&expr.Bitwise{SourceRegister: firstReg, DestRegister: firstReg, Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
		compare(op, p.Addr().AsSlice()),
	)}
}

// InSet matches when the fields are a key of the set: "ip saddr . ip daddr @x".
func InSet(s Set, fields ...Field) Stmt { return inSet(s, fields, false) }

// NotInSet matches when they are not: "iifname . ip saddr != @x".
func NotInSet(s Set, fields ...Field) Stmt { return inSet(s, fields, true) }

func inSet(s Set, fields []Field, invert bool) Stmt {
	text, exprs := loadAll(fields)
	sign := " @"
	if invert {
		sign = " != @"
	}
	return Stmt{text: text + sign + s.Name, sets: []string{s.Name}, exprs: append(exprs,
		&expr.Lookup{SourceRegister: firstReg, SetName: s.Name, Invert: invert})}
}

// Update puts a field into a set with a timeout, or begins its time anew:
// "update @x { ip saddr }".
func Update(s Set, f Field) Stmt {
	return Stmt{text: "update @" + s.Name + " { " + f.text + " }", sets: []string{s.Name}, exprs: append(f.load(firstReg),
		&expr.Dynset{SrcRegKey: firstReg, SetName: s.Name, Operation: unix.NFT_DYNSET_OP_UPDATE})}
}

// VMap takes the verdict that the map holds for the fields: "ip daddr vmap @x".
func VMap(s Set, fields ...Field) Stmt {
	text, exprs := loadAll(fields)
	return Stmt{text: text + " vmap @" + s.Name, sets: []string{s.Name}, exprs: append(exprs,
		&expr.Lookup{SourceRegister: firstReg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: s.Name})}
}

// DNATMap sends the packet to the address and port that the map holds for the
// fields: "dnat ip to ip daddr . th dport map @x". The map's data is an address
// of the family and a port. A key that is missing ends the rule.
func DNATMap(f Family, s Set, fields ...Field) Stmt {
	text, exprs := loadAll(fields)
	return Stmt{
		text: "dnat " + f.header() + " to " + text + " map @" + s.Name,
		sets: []string{s.Name},
		exprs: append(exprs,
			&expr.Lookup{SourceRegister: firstReg, DestRegister: firstReg, IsDestRegSet: true, SetName: s.Name},
			dnat(f)),
	}
}

func dnat(f Family) expr.Any {
	return &expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f),
		RegAddrMin: firstReg, RegProtoMin: firstReg + f.AddrType().words(),
	}
}

// DNAT sends the packet to one address and port: "dnat ip to 10.0.0.1:80".
func DNAT(to netip.AddrPort) Stmt {
	f := FamilyOf(to.Addr())
	return Stmt{text: "dnat " + f.header() + " to " + to.String(), exprs: []expr.Any{
		&expr.Immediate{Register: firstReg, Data: to.Addr().Unmap().AsSlice()},
		&expr.Immediate{Register: firstReg + f.AddrType().words(), Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		dnat(f),
	}}
}

// Masquerade gives the packet the source address of the interface that it
// leaves by: "masquerade fully-random".
func Masquerade() Stmt {
	return Stmt{text: "masquerade fully-random", exprs: []expr.Any{&expr.Masq{FullyRandom: true}}}
}

// Status bits of a connection, for CtStatus.
const (
	CtSNAT uint32 = 1 << 4
	CtDNAT uint32 = 1 << 5
)

// CtStatus matches a connection with any of the status bits: "ct status dnat".
func CtStatus(bits uint32) Stmt {
	return ctBits(expr.CtKeySTATUS, "ct status ", bits, []bitName{{CtSNAT, "snat"}, {CtDNAT, "dnat"}})
}

// States of a connection, for CtState.
const (
	CtInvalid     = expr.CtStateBitINVALID
	CtEstablished = expr.CtStateBitESTABLISHED
	CtRelated     = expr.CtStateBitRELATED
	CtNew         = expr.CtStateBitNEW
)

// CtState matches a connection in any of the states: "ct state established,related".
func CtState(bits uint32) Stmt {
	return ctBits(expr.CtKeySTATE, "ct state ", bits, []bitName{
		{CtInvalid, "invalid"}, {CtEstablished, "established"}, {CtRelated, "related"}, {CtNew, "new"},
	})
}

type bitName struct {
	bit  uint32
	name string
}

func ctBits(key expr.CtKey, text string, bits uint32, names []bitName) Stmt {
	var set []string
	for _, n := range names {
		if bits&n.bit != 0 {
			set = append(set, n.name)
		}
	}
	return Stmt{text: text + strings.Join(set, ","), exprs: append(
		[]expr.Any{&expr.Ct{Key: key, Register: firstReg}}, anyBit(bits)...)}
}

func anyBit(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Bitwise{
			SourceRegister: firstReg, DestRegister: firstReg, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4),
		},
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}
}

// MarkHas matches a packet whose mark has the bit: "meta mark & 0x1 == 0x1".
func MarkHas(bit uint32) Stmt {
	b := binary.NativeEndian.AppendUint32(nil, bit)
	return Stmt{text: fmt.Sprintf("meta mark & 0x%08x == 0x%08x", bit, bit), exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstReg},
		&expr.Bitwise{SourceRegister: firstReg, DestRegister: firstReg, Len: 4, Mask: b, Xor: make([]byte, 4)},
		compare(expr.CmpOpEq, b),
	}}
}

// SetMarkBit sets one bit of the packet's mark: "meta mark set mark | 0x1".
func SetMarkBit(bit uint32) Stmt {
	return Stmt{text: fmt.Sprintf("meta mark set meta mark | 0x%08x", bit), exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstReg},
		&expr.Bitwise{
			SourceRegister: firstReg, DestRegister: firstReg, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, ^bit), Xor: binary.NativeEndian.AppendUint32(nil, bit),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: firstReg},
	}}
}

// DaddrLocal matches packets to an address of the host itself, whichever
// interface has it: "fib daddr type local".
func DaddrLocal() Stmt {
	return Stmt{text: "fib daddr type local", exprs: []expr.Any{
		&expr.Fib{Register: firstReg, FlagDADDR: true, ResultADDRTYPE: true},
		compare(expr.CmpOpEq, binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)),
	}}
}

// RejectTCP answers with a TCP reset: "reject with tcp reset". The rule matches
// L4Proto tcp before.
func RejectTCP() Stmt {
	return Stmt{text: "reject with tcp reset", exprs: []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}}
}

// Reject answers with "port unreachable" of the packet's family: "reject".
func Reject() Stmt {
	return Stmt{text: "reject", exprs: []expr.Any{
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH},
	}}
}

// Counter counts packets and bytes: "counter".
func Counter() Stmt { return Stmt{text: "counter", exprs: []expr.Any{&expr.Counter{}}} }

// Accept ends the evaluation of the base chain: the packet goes on.
func Accept() Stmt { return verdict(Verdict{Kind: VerdictAccept}) }

// Drop drops the packet.
func Drop() Stmt { return verdict(Verdict{Kind: VerdictDrop}) }

// Return goes back to the chain that jumped here.
func Return() Stmt { return verdict(Verdict{Kind: VerdictReturn}) }

// Jump evaluates the chain and comes back.
func Jump(chain string) Stmt { return verdict(Verdict{VerdictJump, chain}) }

// Goto evaluates the chain and does not come back to this one.
func Goto(chain string) Stmt { return verdict(Verdict{VerdictGoto, chain}) }

func verdict(v Verdict) Stmt {
	s := Stmt{text: v.String(), exprs: []expr.Any{v.lib()}}
	if v.Chain != "" {
		s.chains = []string{v.Chain}
	}
	return s
}

func (v Verdict) lib() *expr.Verdict {
	kinds := map[VerdictKind]expr.VerdictKind{
		VerdictAccept: expr.VerdictAccept, VerdictDrop: expr.VerdictDrop, VerdictReturn: expr.VerdictReturn,
		VerdictJump: expr.VerdictJump, VerdictGoto: expr.VerdictGoto,
	}
	return &expr.Verdict{Kind: kinds[v.Kind], Chain: v.Chain}
}
