package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// messages are netlink messages to nftables, one behind the other, as the kernel
// takes them in one go. They are written in place: a load of a hundred thousand
// elements costs two copies of its bytes, not one for each level of attributes.
type messages struct {
	buf   []byte
	first uint32 // sequence number of the first one
	next  uint32 // of the next one
	start int    // of the one that is being written
}

func newMessages(first uint32) *messages { return &messages{first: first, next: first} }

// begin opens a message of a kind of nftables'.
func (m *messages) begin(kind, flags uint16) {
	m.header(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, unix.NFPROTO_INET, 0)
}

// bracket is the begin or the end of a transaction.
func (m *messages) bracket(kind uint16) {
	m.header(kind, 0, unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	m.end()
}

func (m *messages) header(kind, flags uint16, family uint8, resource uint16) {
	m.start = len(m.buf)
	m.buf = binary.NativeEndian.AppendUint32(m.buf, 0) // length, see end
	m.buf = binary.NativeEndian.AppendUint16(m.buf, kind)
	m.buf = binary.NativeEndian.AppendUint16(m.buf, flags|unix.NLM_F_REQUEST)
	m.buf = binary.NativeEndian.AppendUint32(m.buf, m.next)
	m.buf = binary.NativeEndian.AppendUint32(m.buf, 0)
	m.buf = append(m.buf, family, unix.NFNETLINK_V0)
	m.buf = binary.BigEndian.AppendUint16(m.buf, resource)
	m.next++
}

func (m *messages) end() {
	binary.NativeEndian.PutUint32(m.buf[m.start:], uint32(len(m.buf)-m.start))
}

// acknowledge has the kernel tell when the message that was written last is done.
func (m *messages) acknowledge() {
	at := m.start + 6
	binary.NativeEndian.PutUint16(m.buf[at:], binary.NativeEndian.Uint16(m.buf[at:])|unix.NLM_F_ACK)
}

// nest opens an attribute that holds others; close it with unnest.
func (m *messages) nest(kind uint16) (at int) {
	m.buf = binary.NativeEndian.AppendUint16(m.buf, 0)
	m.buf = binary.NativeEndian.AppendUint16(m.buf, kind|unix.NLA_F_NESTED)
	return len(m.buf) - unix.SizeofNlAttr
}

func (m *messages) unnest(at int) {
	binary.NativeEndian.PutUint16(m.buf[at:], uint16(len(m.buf)-at))
}

func (m *messages) attr(kind uint16, value []byte) {
	m.buf = binary.NativeEndian.AppendUint16(m.buf, uint16(unix.SizeofNlAttr+len(value)))
	m.buf = binary.NativeEndian.AppendUint16(m.buf, kind)
	m.buf = append(m.buf, value...)
	m.align()
}

func (m *messages) text(kind uint16, value string) {
	m.buf = binary.NativeEndian.AppendUint16(m.buf, uint16(unix.SizeofNlAttr+len(value)+1))
	m.buf = binary.NativeEndian.AppendUint16(m.buf, kind)
	m.buf = append(append(m.buf, value...), 0)
	m.align()
}

func (m *messages) number(kind uint16, value uint32) {
	m.attr(kind, binary.BigEndian.AppendUint32(nil, value))
}

func (m *messages) align() {
	for len(m.buf)%4 != 0 {
		m.buf = append(m.buf, 0)
	}
}
