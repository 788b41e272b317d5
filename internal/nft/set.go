package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Family is the address family that a rule or a set is about.
type Family uint8

// The two families, by their netfilter numbers.
const (
	IPv4 Family = unix.NFPROTO_IPV4
	IPv6 Family = unix.NFPROTO_IPV6
)

// FamilyOf says which family a (an IPv4-mapped address is IPv4) belongs to.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

func (f Family) String() string {
	if f == IPv4 {
		return "ipv4"
	}
	return "ipv6"
}

// header is the name of the family's header in nft's syntax.
func (f Family) header() string {
	if f == IPv4 {
		return "ip"
	}
	return "ip6"
}

// AddrType is the type of the family's addresses in a set.
func (f Family) AddrType() Type {
	if f == IPv4 {
		return TypeIPv4
	}
	return TypeIPv6
}

// Type is the type of one field of a set's key or of a map's data.
type Type uint8

// The types in use.
const (
	TypeIPv4 Type = iota + 1
	TypeIPv6
	TypeProto
	TypePort
	TypeMark
	TypeIfName
	TypeEther
)

func (t Type) datatype() nftables.SetDatatype {
	switch t {
	case TypeIPv4:
		return nftables.TypeIPAddr
	case TypeIPv6:
		return nftables.TypeIP6Addr
	case TypeProto:
		return nftables.TypeInetProto
	case TypePort:
		return nftables.TypeInetService
	case TypeMark:
		return nftables.TypeMark
	case TypeIfName:
		return nftables.TypeIFName
	case TypeEther:
		return nftables.TypeEtherAddr
	}
	return nftables.TypeInvalid
}

// words is how many 32-bit registers a value of the type takes.
func (t Type) words() uint32 { return (t.datatype().Bytes + 3) / 4 }

// Set is a set, a map (Data given) or a verdict map (Verdicts) of the table.
type Set struct {
	Name     string
	Key      []Type
	Data     []Type
	Verdicts bool
	// Timeout, if not 0, is how long an element stays that Update has put in; such
	// a set is filled by rules.
	Timeout time.Duration
}

// dynamicSize bounds a set that rules fill.
const dynamicSize = 65535

// IsMap tells whether elements carry data or a verdict.
func (s Set) IsMap() bool { return s.Verdicts || len(s.Data) > 0 }

func concat(types []Type) nftables.SetDatatype {
	if len(types) == 1 {
		return types[0].datatype()
	}
	all := make([]nftables.SetDatatype, len(types))
	for i, t := range types {
		all[i] = t.datatype()
	}
	return nftables.MustConcatSetType(all...)
}

func (s Set) lib() *nftables.Set {
	out := &nftables.Set{
		Table:         table(),
		Name:          s.Name,
		IsMap:         s.IsMap(),
		Concatenation: len(s.Key) > 1,
		KeyType:       concat(s.Key),
	}
	if s.Timeout > 0 {
		out.Dynamic, out.HasTimeout, out.Timeout, out.Size = true, true, s.Timeout, dynamicSize
	}
	if s.Verdicts {
		out.DataType = nftables.TypeVerdict
	} else if len(s.Data) > 0 {
		out.DataType = concat(s.Data)
	}
	return out
}

// String is the set's head in nft's syntax: "map x { type a . b : c; }".
func (s Set) String() string {
	kind, data := "set", ""
	switch {
	case s.Verdicts:
		kind, data = "map", " : verdict"
	case len(s.Data) > 0:
		kind, data = "map", " : "+concat(s.Data).Name
	}
	more := ""
	if s.Timeout > 0 {
		more = fmt.Sprintf(" size %d; flags dynamic,timeout; timeout %s;", dynamicSize, s.Timeout)
	}
	return kind + " " + s.Name + " { type " + concat(s.Key).Name + data + ";" + more + " }"
}

// Element is one element. Key and Data are made by Value: fields padded to
// four bytes each. Verdict is for verdict maps only.
type Element struct {
	Key     Value
	Data    Value
	Verdict Verdict
}

// Value is the bytes of a concatenation; the methods append one field each.
type Value []byte

// Addr appends an address of four or sixteen bytes.
func (v Value) Addr(a netip.Addr) Value {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return append(v, b[:]...)
	}
	b := a.As16()
	return append(v, b[:]...)
}

// Proto appends an IP protocol number.
func (v Value) Proto(p uint8) Value { return append(v, p, 0, 0, 0) }

// Port appends a port.
func (v Value) Port(p uint16) Value { return append(v, byte(p>>8), byte(p), 0, 0) }

// Mark appends a 32-bit number in the machine's byte order, as marks and
// generated numbers are.
func (v Value) Mark(n uint32) Value { return binary.NativeEndian.AppendUint32(v, n) }

// IfName appends the name of an interface (at most 15 bytes).
func (v Value) IfName(name string) Value {
	var b [unix.IFNAMSIZ]byte
	copy(b[:unix.IFNAMSIZ-1], name)
	return append(v, b[:]...)
}

// Ether appends a hardware address of six bytes.
func (v Value) Ether(mac []byte) Value {
	var b [8]byte
	copy(b[:6], mac)
	return append(v, b[:]...)
}

// Verdict is where a packet goes. The zero value is none.
type Verdict struct {
	Kind  VerdictKind
	Chain string // for Jump and Goto
}

// VerdictKind is the kind of a verdict.
type VerdictKind uint8

// The verdicts.
const (
	NoVerdict VerdictKind = iota
	VerdictAccept
	VerdictDrop
	VerdictReturn
	VerdictJump
	VerdictGoto
)

func (v Verdict) String() string {
	switch v.Kind {
	case VerdictAccept:
		return "accept"
	case VerdictDrop:
		return "drop"
	case VerdictReturn:
		return "return"
	case VerdictJump:
		return "jump " + v.Chain
	case VerdictGoto:
		return "goto " + v.Chain
	}
	return ""
}

// Format prints a value of the given types as nft does: "10.0.0.1 . tcp . 80".
func Format(types []Type, v Value) string {
	var parts []string
	for _, t := range types {
		n := int(t.words() * 4)
		if len(v) < n {
			return "(short value)"
		}
		parts = append(parts, formatField(t, v[:n]))
		v = v[n:]
	}
	return strings.Join(parts, " . ")
}

func formatField(t Type, b []byte) string {
	switch t {
	case TypeIPv4, TypeIPv6:
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	case TypeProto:
		return protoName(b[0])
	case TypePort:
		return strconv.Itoa(int(binary.BigEndian.Uint16(b)))
	case TypeMark:
		n := strconv.FormatUint(uint64(binary.NativeEndian.Uint32(b)), 16)
		return "0x" + strings.Repeat("0", 8-len(n)) + n
	case TypeIfName:
		return strconv.Quote(unix.ByteSliceToString(b))
	case TypeEther:
		return hardwareAddr(b[:6])
	}
	return "?"
}
