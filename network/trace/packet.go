package trace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// tracePrefix begins the name of a table that is there while a packet is traced,
// and holds one rule: the packets of our own connection are to be told of.
const tracePrefix = "pausa-trace-"

// ownedTable is NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h: the kernel
// removes the table with the socket that made it, however that ends.
const ownedTable = 2

// beforeAll is a priority ahead of connection tracking and everybody's rules.
const beforeAll = nftables.ChainPriority(-500)

// packet connects once more, and lists the rules that the packet meets.
func (w *walk) packet(ctx context.Context) {
	events, err := w.traced(ctx)
	if err != nil {
		w.add("packet", Warn, fmt.Sprintf("a packet cannot be traced: %v", err), "")
		return
	}
	if len(events) == 0 {
		w.add("packet", Warn, "no packet came to this host's rules: it was lost in the pod's network, or never sent", "")
		return
	}
	texts := ruleTexts{}
	first := events[0].id
	for _, e := range events {
		if e.id != first || e.kind != tracePolicy && e.handle == 0 { // the end of a chain says nothing
			continue
		}
		verdict, cure := OK, ""
		what := e.text(texts)
		if e.verdict == nfDrop || e.kind == tracePolicy && e.policy == nfDrop {
			verdict, what = Stop, what+": here it is dropped"
			if e.kind == traceRule {
				cure = fmt.Sprintf("nft delete rule %s handle %d", e.chainName(), e.handle)
			} else {
				cure = w.acceptIn(e.chainName())
			}
			if e.table == nft.TableName {
				cure = "these are pausa's own rules: an address of a Service's range without a Service, or a source that is not the pod's"
			}
		}
		w.add("packet", verdict, what, cure)
	}
}

// traced connects while the kernel tells of the packets.
func (w *walk) traced(ctx context.Context) ([]traceEvent, error) {
	name := tracePrefix + strconv.Itoa(os.Getpid())
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error { return ownTable(c, name) }))
	if err != nil {
		return nil, fmt.Errorf("add table %s: %w", name, err)
	}
	defer func() { _ = conn.CloseLasting() }()
	const group = 1 << (unix.NFNLGRP_NFTRACE - 1)
	sock, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: group})
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel: %w", err)
	}
	defer sock.Close()
	if err := w.mark(conn, name); err != nil {
		return nil, fmt.Errorf("add to table %s: %w", name, err)
	}
	limit := w.Timeout
	w.Timeout = min(limit, time.Second)
	_, _, _ = w.dial(ctx) // it was tried before: this one is for its packets
	w.Timeout = limit
	return readTrace(sock)
}

// ownTable makes the table over the socket of what is to follow, which nobody
// else may change.
func ownTable(c *netlink.Conn, name string) error {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.String(unix.NFTA_TABLE_NAME, name)
	e.Uint32(unix.NFTA_TABLE_FLAGS, ownedTable)
	attrs, err := e.Encode()
	if err != nil {
		return err
	}
	batch := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	_, err = c.SendMessages([]netlink.Message{
		batch(unix.NFNL_MSG_BATCH_BEGIN),
		{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE, Flags: netlink.Request | netlink.Acknowledge | netlink.Create},
			Data:   append([]byte{unix.NFPROTO_INET, 0, 0, 0}, attrs...),
		},
		batch(unix.NFNL_MSG_BATCH_END),
	})
	if err == nil {
		_, err = c.Receive()
	}
	return err
}

// mark adds the chains and their rule.
func (w *walk) mark(conn *nftables.Conn, name string) error {
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		chain := conn.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRef(beforeAll),
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: w.ours()})
	}
	return conn.Flush()
}

// ours matches the packets that the probe sends:
// ip saddr 10.88.0.5 ip daddr 10.96.0.7 meta l4proto tcp th dport 80 meta nftrace set 1
func (w *walk) ours() []expr.Any {
	proto, src, dst, size := byte(unix.IPPROTO_TCP), uint32(12), uint32(16), uint32(4)
	nfproto := byte(unix.NFPROTO_IPV4)
	if w.Protocol == "UDP" {
		proto = unix.IPPROTO_UDP
	}
	if w.To.Addr().Is6() {
		nfproto, src, dst, size = unix.NFPROTO_IPV6, 8, 24, 16
	}
	same := func(load expr.Any, want []byte) []expr.Any {
		return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want}}
	}
	network := func(offset uint32) expr.Any {
		return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
	}
	exprs := slices.Concat(
		same(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, []byte{nfproto}),
		same(network(dst), w.To.Addr().AsSlice()),
		same(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, []byte{proto}),
		same(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, []byte{byte(w.To.Port() >> 8), byte(w.To.Port())}))
	if w.src.IsValid() {
		exprs = append(exprs, same(network(src), w.src.AsSlice())...)
	}
	return append(exprs,
		&expr.Immediate{Register: 1, Data: []byte{1}},
		&expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: 1})
}

// Kinds of an event: linux/netfilter/nf_tables.h.
const (
	tracePolicy = unix.NFT_TRACETYPE_POLICY
	traceRule   = unix.NFT_TRACETYPE_RULE

	nfDrop, nfAccept = 0, 1 // linux/netfilter.h
)

// traceEvent is one rule, or the end of one chain, that a packet met.
type traceEvent struct {
	id           uint32
	kind         uint32
	family       uint8
	table, chain string
	handle       uint64
	verdict      int32
	jump         string
	policy       int64 // -1: none
}

// readTrace reads what has come, and waits for no more.
func readTrace(sock *netlink.Conn) ([]traceEvent, error) {
	var out []traceEvent
	for {
		_ = sock.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		messages, err := sock.Receive()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out, nil
		}
		if err != nil {
			return out, fmt.Errorf("listen to the kernel: %w", err)
		}
		for _, m := range messages {
			if e, ok := parseTrace(m.Data); ok && !strings.HasPrefix(e.table, tracePrefix) {
				out = append(out, e)
			}
		}
	}
}

func parseTrace(data []byte) (e traceEvent, ok bool) {
	if len(data) < 4 {
		return e, false
	}
	e.family, e.policy, e.verdict = data[0], -1, int32(unix.NFT_CONTINUE)
	d, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return e, false
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_TRACE_ID:
			e.id = d.Uint32()
		case unix.NFTA_TRACE_TYPE:
			e.kind = d.Uint32()
		case unix.NFTA_TRACE_TABLE:
			e.table = d.String()
		case unix.NFTA_TRACE_CHAIN:
			e.chain = d.String()
		case unix.NFTA_TRACE_RULE_HANDLE:
			e.handle = d.Uint64()
		case unix.NFTA_TRACE_POLICY:
			e.policy = int64(d.Uint32())
		case unix.NFTA_TRACE_VERDICT:
			d.Nested(func(n *netlink.AttributeDecoder) error {
				n.ByteOrder = binary.BigEndian
				for n.Next() {
					switch n.Type() {
					case unix.NFTA_VERDICT_CODE:
						e.verdict = int32(n.Uint32())
					case unix.NFTA_VERDICT_CHAIN:
						e.jump = n.String()
					}
				}
				return n.Err()
			})
		}
	}
	return e, d.Err() == nil
}

func (e *traceEvent) chainName() string {
	families := map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_BRIDGE: "bridge"}
	return families[e.family] + " " + e.table + " " + e.chain
}

func (e *traceEvent) text(rules ruleTexts) string {
	text := "chain " + e.chainName()
	if e.kind == tracePolicy {
		if e.policy == nfDrop {
			return text + ", policy drop"
		}
		return text + ", policy accept"
	}
	text += ", rule " + rules.of(e.chainName(), e.handle)
	switch e.verdict {
	case unix.NFT_JUMP, unix.NFT_GOTO:
		text += " → " + e.jump
	case nfAccept:
		text += " → accept"
	case nfDrop:
		text += " → drop"
	}
	return text
}

// ruleTexts are rules by chain, as nft prints them. Without an nft they have
// their handles alone.
type ruleTexts map[string]map[uint64]string

func (t ruleTexts) of(chain string, handle uint64) string {
	if t[chain] == nil {
		t[chain] = map[uint64]string{}
		out, err := exec.Command("nft", append([]string{"-a", "list", "chain"}, strings.Fields(chain)...)...).Output()
		for line := range strings.Lines(string(out)) {
			text, number, ok := strings.Cut(strings.TrimSpace(line), " # handle ")
			if n, convErr := strconv.ParseUint(strings.TrimSpace(number), 10, 64); ok && err == nil && convErr == nil {
				t[chain][n] = text
			}
		}
	}
	if text := t[chain][handle]; text != "" {
		return fmt.Sprintf("`%s` (handle %d)", text, handle)
	}
	return fmt.Sprintf("handle %d", handle)
}
