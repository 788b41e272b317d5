package nft

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	tcpFlagsOffset = 13
	tcpSYN, tcpRST = 1 << 1, 1 << 2
	optionMSS      = 2
)

// ClampMSS lowers what the two ends of a TCP connection agree to put into a
// packet to what fits on the way, so that no end needs to be told of packets
// that are too big: "tcp flags syn / syn,rst tcp option maxseg size set rt mtu".
func ClampMSS() Stmt {
	return Stmt{text: "tcp flags syn / syn,rst tcp option maxseg size set rt mtu", exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstReg},
		compare(expr.CmpOpEq, []byte{unix.IPPROTO_TCP}),
		&expr.Payload{DestRegister: firstReg, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: firstReg, DestRegister: firstReg, Len: 1, Mask: []byte{tcpSYN | tcpRST}, Xor: []byte{0}},
		compare(expr.CmpOpEq, []byte{tcpSYN}),
		&expr.Rt{Register: firstReg, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: firstReg, DestRegister: firstReg, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: firstReg, Type: optionMSS, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}}
}

// RejectProhibited answers that this is not allowed, whatever the protocol:
// "reject with icmpx admin-prohibited".
func RejectProhibited() Stmt {
	return Stmt{text: "reject with icmpx admin-prohibited", exprs: []expr.Any{
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED},
	}}
}
