package nft

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ICMPRedirect matches the messages by which a router names a shorter way:
// "icmp type redirect" or "icmpv6 type nd-redirect".
func ICMPRedirect(f Family) Stmt {
	text, proto, kind := "icmp type redirect", byte(unix.IPPROTO_ICMP), byte(5)
	if f == IPv6 {
		text, proto, kind = "icmpv6 type nd-redirect", unix.IPPROTO_ICMPV6, 137
	}
	return Stmt{text: text, exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstReg},
		compare(expr.CmpOpEq, []byte{proto}),
		&expr.Payload{DestRegister: firstReg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		compare(expr.CmpOpEq, []byte{kind}),
	}}
}
