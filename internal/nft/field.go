package nft

import (
	"net"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// firstReg is the first 32-bit register; rules load their values from there on.
const firstReg = unix.NFT_REG32_00

// Field is a value that a rule reads from the packet, from its connection or
// makes up; several of them are the key of a lookup.
type Field struct {
	text string
	typ  Type
	load func(reg uint32) []expr.Any
}

func payload(text string, typ Type, base expr.PayloadBase, offset, length uint32) Field {
	return Field{text, typ, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}}
	}}
}

func meta(text string, typ Type, key expr.MetaKey) Field {
	return Field{text, typ, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Meta{Key: key, Register: reg}}
	}}
}

// Saddr is the source address: "ip saddr" or "ip6 saddr".
func Saddr(f Family) Field {
	if f == IPv4 {
		return payload("ip saddr", TypeIPv4, expr.PayloadBaseNetworkHeader, 12, 4)
	}
	return payload("ip6 saddr", TypeIPv6, expr.PayloadBaseNetworkHeader, 8, 16)
}

// Daddr is the destination address: "ip daddr" or "ip6 daddr".
func Daddr(f Family) Field {
	if f == IPv4 {
		return payload("ip daddr", TypeIPv4, expr.PayloadBaseNetworkHeader, 16, 4)
	}
	return payload("ip6 daddr", TypeIPv6, expr.PayloadBaseNetworkHeader, 24, 16)
}

// EtherSaddr is the source hardware address: "ether saddr". Rules with it begin
// with IfType.
func EtherSaddr() Field {
	return payload("ether saddr", TypeEther, expr.PayloadBaseLLHeader, 6, 6)
}

// L4Proto is the transport protocol: "meta l4proto".
func L4Proto() Field { return meta("meta l4proto", TypeProto, expr.MetaKeyL4PROTO) }

// Sport is the source port of TCP, UDP or SCTP: "th sport". It means nothing
// unless L4Proto is matched too.
func Sport() Field { return payload("th sport", TypePort, expr.PayloadBaseTransportHeader, 0, 2) }

// Dport is the destination port of TCP, UDP or SCTP: "th dport". It means
// nothing unless L4Proto is matched too.
func Dport() Field { return payload("th dport", TypePort, expr.PayloadBaseTransportHeader, 2, 2) }

// IifName is the name of the interface that the packet came in by: "iifname".
func IifName() Field { return meta("iifname", TypeIfName, expr.MetaKeyIIFNAME) }

// OifName is the name of the interface that the packet leaves by: "oifname".
func OifName() Field { return meta("oifname", TypeIfName, expr.MetaKeyOIFNAME) }

// Mark is the packet's mark: "meta mark".
func Mark() Field { return meta("meta mark", TypeMark, expr.MetaKeyMARK) }

// Random is a random number from 0 to mod-1: "numgen random mod 3".
func Random(mod uint32) Field {
	return Field{"numgen random mod " + strconv.FormatUint(uint64(mod), 10), TypeMark, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Numgen{Register: reg, Modulus: mod, Type: unix.NFT_NG_RANDOM}}
	}}
}

// loadAll loads the fields one after the other, from the first register on.
func loadAll(fields []Field) (text string, exprs []expr.Any) {
	texts := make([]string, len(fields))
	next := uint32(firstReg)
	for i, f := range fields {
		texts[i] = f.text
		exprs = append(exprs, f.load(next)...)
		next += f.typ.words()
	}
	return strings.Join(texts, " . "), exprs
}

func protoName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "ipv6-icmp"
	}
	return strconv.Itoa(int(p))
}

func hardwareAddr(b []byte) string { return net.HardwareAddr(b).String() }
