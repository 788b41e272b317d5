package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch tells when another program changes a table of ours, of family inet or
// bridge, once for a whole transaction, and which program that is ("" is
// unknown). Changes that this program makes over another connection are told if
// they delete the table of family inet, or if the name of what they change there
// (that of the chain, for rules; of the set, for elements) matches. This
// connection's own commits and other tables are not told. When notifications
// were lost it tells too. The channel is closed when ctx ends.
func (c *Conn) Watch(ctx context.Context, match func(name string) bool) (<-chan string, error) {
	sock, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{
		NetNS: int(c.netns.Fd()), Groups: 1 << (unix.NFNLGRP_NFTABLES - 1),
	})
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	self, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch nftables: %w", err), sock.Close())
	}
	w := &watcher{sock: sock, own: c.PortID, match: match, out: make(chan string, 1), self: strings.TrimSpace(string(self))}
	if err := errors.Join(sock.SetReadBuffer(socketBuffer), w.ignoreOwn()); err != nil {
		return nil, errors.Join(fmt.Errorf("watch nftables: %w", err), sock.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = sock.Close() })
	go func() {
		defer stop()
		defer close(w.out)
		w.run(ctx)
	}()
	return w.out, nil
}

type watcher struct {
	sock  *netlink.Conn
	own   func() uint32
	match func(string) bool
	out   chan string
	self  string // name of this program
	// filtered is the port whose messages the kernel drops for us.
	filtered uint32
	// The transaction under way has touched one of our tables, and something
	// that matches.
	touched, matched bool
}

func (w *watcher) run(ctx context.Context) {
	for {
		msgs, err := w.sock.Receive()
		if ctx.Err() != nil || errors.Is(err, unix.EBADF) {
			return
		}
		if err != nil {
			// Mostly ENOBUFS: something was lost, it may have been ours.
			_ = w.ignoreOwn()
			w.tell("")
			continue
		}
		for _, m := range msgs {
			w.message(m)
		}
	}
}

func (w *watcher) message(m netlink.Message) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return
	}
	if m.Header.PID == w.own() {
		_ = w.ignoreOwn()
		return
	}
	kind := int(m.Header.Type & 0xff)
	if kind == unix.NFT_MSG_NEWGEN {
		if by := programOf(m.Data); w.matched || w.touched && by != w.self {
			w.tell(by)
		}
		w.touched, w.matched = false, false
		return
	}
	if table, name := objectOf(kind, m.Data); table == TableName {
		w.touched = true
		w.matched = w.matched || m.Data[0] == unix.NFPROTO_INET && (kind == unix.NFT_MSG_DELTABLE || (name != "" && w.match(name)))
	}
}

func (w *watcher) tell(by string) {
	select {
	case w.out <- by:
	default:
	}
}

// programOf reads who has made a new generation of the ruleset.
func programOf(data []byte) string {
	if len(data) < 4 {
		return ""
	}
	attrs, err := netlink.UnmarshalAttributes(data[4:])
	if err != nil {
		return ""
	}
	for _, a := range attrs {
		if a.Type == unix.NFTA_GEN_PROC_NAME {
			return unix.ByteSliceToString(a.Data)
		}
	}
	return ""
}

// objectOf reads the table of family inet or bridge, and the chain or set, that
// a notification is about.
func objectOf(kind int, data []byte) (table, name string) {
	if len(data) < 4 || data[0] != unix.NFPROTO_INET && data[0] != unix.NFPROTO_BRIDGE {
		return "", ""
	}
	attrs, err := netlink.UnmarshalAttributes(data[4:])
	if err != nil {
		return "", ""
	}
	nameAttr := uint16(unix.NFTA_RULE_CHAIN) // as NFTA_SET_NAME, NFTA_SET_ELEM_LIST_SET
	switch kind {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		nameAttr = 0
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		nameAttr = unix.NFTA_CHAIN_NAME
	}
	for _, a := range attrs {
		switch a.Type {
		case unix.NFTA_TABLE_NAME:
			table = unix.ByteSliceToString(a.Data)
		case nameAttr:
			name = unix.ByteSliceToString(a.Data)
		}
	}
	return table, name
}

// ignoreOwn has the kernel drop what our own commits cause before it reaches
// the socket: tens of thousands of messages at a load, which would overrun it.
func (w *watcher) ignoreOwn() error {
	port := w.own()
	if port == w.filtered {
		return nil
	}
	raw, err := w.sock.SyscallConn()
	if err != nil {
		return err
	}
	// BPF loads words as big-endian, the kernel wrote the port as it is.
	word := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, port))
	const offsetOfPort = 12
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offsetOfPort},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: word},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: ^uint32(0)},
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	var setErr error
	if err := raw.Control(func(fd uintptr) {
		setErr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog)
	}); err != nil {
		return err
	}
	if setErr == nil {
		w.filtered = port
	}
	return setErr
}
