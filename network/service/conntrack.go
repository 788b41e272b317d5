package service

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// Numbers of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet, ctDelete = 1, 2

	ctaTupleOrig, ctaTupleReply = 1, 2
	ctaID, ctaZone, ctaFilter   = 12, 18, 25

	ctaTupleIP, ctaTupleProto                     = 1, 2
	ctaIPv4Src, ctaIPv4Dst                        = 1, 2
	ctaIPv6Src, ctaIPv6Dst                        = 3, 4
	ctaProtoNum, ctaProtoSrcPort, ctaProtoDstPort = 1, 2, 3

	ctaFilterOrigFlags = 1
	filterProtoNum     = 1 << 3
)

// conntrack is the kernel's table of connections. The kernel itself filters by
// protocol, so that tens of thousands of TCP connections cost nothing.
type conntrack struct {
	conn *netlink.Conn
}

func openConntrack() (*conntrack, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	return &conntrack{conn}, nil
}

// request is a message about the family's connections.
func request(kind uint16, flags netlink.HeaderFlags, f nft.Family, attrs []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | kind),
			Flags: netlink.Request | flags,
		},
		// struct nfgenmsg: family, version, resource.
		Data: append([]byte{byte(f), unix.NFNETLINK_V0, 0, 0}, attrs...),
	}
}

// forget deletes the connections of one family and protocol that match.
func (c *conntrack) forget(f nft.Family, proto uint8, match func(flow) bool) error {
	found, err := c.list(f, proto)
	if err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	for _, m := range found {
		fl, id, err := parseFlow(m.Data)
		if err != nil {
			return fmt.Errorf("read connection: %w", err)
		}
		if fl.proto != proto || !match(fl) {
			continue
		}
		_, err = c.conn.Execute(request(ctDelete, netlink.Acknowledge, f, id))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget connection to %s: %w", fl.to, err)
		}
	}
	return nil
}

func (c *conntrack) list(f nft.Family, proto uint8) ([]netlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	e.Nested(ctaTupleOrig, func(e *netlink.AttributeEncoder) error {
		e.Nested(ctaTupleProto, func(e *netlink.AttributeEncoder) error {
			e.Uint8(ctaProtoNum, proto)
			return nil
		})
		return nil
	})
	e.Nested(ctaFilter, func(e *netlink.AttributeEncoder) error {
		e.Uint32(ctaFilterOrigFlags, filterProtoNum)
		return nil
	})
	attrs, err := e.Encode()
	if err != nil {
		return nil, err
	}
	return c.conn.Execute(request(ctGet, netlink.Dump, f, attrs))
}

// parseFlow reads a connection and the attributes by which it is deleted.
func parseFlow(data []byte) (fl flow, id []byte, err error) {
	if len(data) < 4 {
		return fl, nil, errors.New("message is too short")
	}
	attrs, err := netlink.UnmarshalAttributes(data[4:])
	if err != nil {
		return fl, nil, err
	}
	var keep []netlink.Attribute
	for _, a := range attrs {
		switch a.Type &^ unix.NLA_F_NESTED {
		case ctaTupleOrig:
			fl.proto, _, fl.to, err = parseTuple(a.Data)
			keep = append(keep, a)
		case ctaTupleReply:
			_, fl.by, _, err = parseTuple(a.Data)
		case ctaID, ctaZone:
			keep = append(keep, a)
		}
		if err != nil {
			return fl, nil, err
		}
	}
	id, err = netlink.MarshalAttributes(keep)
	return fl, id, err
}

func parseTuple(data []byte) (proto uint8, src, dst netip.AddrPort, err error) {
	parts, err := netlink.UnmarshalAttributes(data)
	if err != nil {
		return 0, src, dst, err
	}
	var from, to netip.Addr
	var sport, dport uint16
	for _, part := range parts {
		fields, err := netlink.UnmarshalAttributes(part.Data)
		if err != nil {
			return 0, src, dst, err
		}
		kind := part.Type &^ unix.NLA_F_NESTED
		for _, a := range fields {
			switch {
			case kind == ctaTupleIP && (a.Type == ctaIPv4Src || a.Type == ctaIPv6Src):
				from, _ = netip.AddrFromSlice(a.Data)
			case kind == ctaTupleIP && (a.Type == ctaIPv4Dst || a.Type == ctaIPv6Dst):
				to, _ = netip.AddrFromSlice(a.Data)
			case kind == ctaTupleProto && a.Type == ctaProtoNum && len(a.Data) == 1:
				proto = a.Data[0]
			case kind == ctaTupleProto && a.Type == ctaProtoSrcPort && len(a.Data) == 2:
				sport = binary.BigEndian.Uint16(a.Data)
			case kind == ctaTupleProto && a.Type == ctaProtoDstPort && len(a.Data) == 2:
				dport = binary.BigEndian.Uint16(a.Data)
			}
		}
	}
	return proto, netip.AddrPortFrom(from, sport), netip.AddrPortFrom(to, dport), nil
}
