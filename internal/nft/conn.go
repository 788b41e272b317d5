package nft

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// socketBuffer holds what the kernel tells without being waited for.
	socketBuffer = 8 << 20
	// commitTimeout bounds the wait for the kernel's answers.
	commitTimeout = 60 * time.Second
)

// Conn is a lasting connection to the table of one network namespace. It may be
// used by several goroutines.
type Conn struct {
	netns *os.File
	port  atomic.Uint32

	mu   sync.Mutex // guards what follows; held during a commit or a dump
	lib  *nftables.Conn
	sock *netlink.Conn
	seq  uint32 // of the next message that is not the library's
	room int    // of the send buffer, as far as it was asked for
}

// Open connects to the network namespace of the calling thread and stays there
// whatever thread it is used from.
func Open() (*Conn, error) { return OpenAt("/proc/thread-self/ns/net") }

// OpenAt connects to the network namespace that is this file.
func OpenAt(path string) (*Conn, error) {
	netns, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	c := &Conn{netns: netns}
	if err := c.dial(); err != nil {
		return nil, errors.Join(err, netns.Close())
	}
	return c, nil
}

// dial (re)opens the socket. The caller holds mu or is the only user.
func (c *Conn) dial() error {
	var sock *netlink.Conn
	lib, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(c.netns.Fd())),
		nftables.WithSockOptions(func(s *netlink.Conn) error {
			sock = s
			return s.SetReadBuffer(socketBuffer)
		}))
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	port, err := portID(sock)
	if err != nil {
		return errors.Join(err, lib.CloseLasting())
	}
	c.lib, c.sock, c.room = lib, sock, 0
	c.port.Store(port)
	return nil
}

// portID is the socket's netlink address: the kernel names it in what it tells
// others about our commits.
func portID(sock *netlink.Conn) (uint32, error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read netlink address: %w", err)
	}
	var addr unix.Sockaddr
	var nameErr error
	if err := raw.Control(func(fd uintptr) { addr, nameErr = unix.Getsockname(int(fd)) }); err != nil {
		return 0, fmt.Errorf("read netlink address: %w", err)
	}
	nl, ok := addr.(*unix.SockaddrNetlink)
	if nameErr != nil || !ok {
		return 0, fmt.Errorf("read netlink address: %w", nameErr)
	}
	return nl.Pid, nil
}

// PortID is the netlink address that the kernel's notifications name as the
// origin of this connection's commits. An error while reading renews it.
func (c *Conn) PortID() uint32 { return c.port.Load() }

// Close ends the connection; the rules stay.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lib == nil {
		return nil
	}
	err := errors.Join(c.lib.CloseLasting(), c.netns.Close())
	c.lib = nil
	return err
}

// errClosed is what use after Close gets.
var errClosed = errors.New("connection to nftables is closed")

// Commit makes all changes of the transaction or, with an error, none of them.
// The error wraps the kernel's errno (ENOENT, EEXIST, EBUSY, ...).
func (c *Conn) Commit(tx *Tx) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return err
	}
	b, err := encodeTx(tx, c.seq)
	if err != nil {
		return fmt.Errorf("encode nftables transaction: %w", err)
	}
	c.seq = b.next
	if err := b.settle(c.talk(b.messages)); err != nil {
		return fmt.Errorf("commit nftables transaction: %w", err)
	}
	return nil
}

// ready checks that the connection is open and starts the clock of its answers.
func (c *Conn) ready() error {
	if c.lib == nil {
		return errClosed
	}
	return c.sock.SetReadDeadline(time.Now().Add(commitTimeout))
}

// reset takes a new socket: when the library fails, answers may still be on their
// way in the old one.
func (c *Conn) reset() error {
	return errors.Join(c.lib.CloseLasting(), c.dial())
}

func table() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

// trim takes away the padding that a value has only in a concatenation.
func trim(types []Type, v Value) []byte {
	if len(types) == 1 && len(v) > types[0].bytes() {
		return v[:types[0].bytes()]
	}
	return v
}

// pad gives it back.
func pad(v []byte) Value {
	for len(v)%4 != 0 {
		v = append(v, 0)
	}
	return v
}

// Elements reads the elements of a set back from the kernel.
func (c *Conn) Elements(s Set) ([]Element, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return nil, err
	}
	found, err := c.lib.GetSetElements(s.lib())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read set %s: %w", s.Name, err), c.reset())
	}
	out := make([]Element, len(found))
	for i, e := range found {
		out[i].Key = pad(e.Key)
		if s.Verdicts {
			out[i].Verdict = parseVerdict(e.Val)
		} else {
			out[i].Data = pad(e.Val)
		}
	}
	return out, nil
}

// Find reads one element, however many the set has.
func (c *Conn) Find(s Set, key Value) (e Element, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return e, false, err
	}
	m := newMessages(c.seq)
	m.begin(unix.NFT_MSG_GETSETELEM, 0)
	m.setName(s)
	list := m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	m.element(&s, &Element{Key: key}, false)
	m.unnest(list)
	m.end()
	c.seq = m.next
	answers, err := c.talk(m)
	for _, r := range answers {
		switch {
		case r.seq != m.first:
		case r.kind == unix.NLMSG_ERROR && errors.Is(r.errno(), unix.ENOENT):
			return e, false, nil
		case r.kind == unix.NLMSG_ERROR:
			return e, false, fmt.Errorf("read set %s: %w", s.Name, r.errno())
		default:
			e, err := s.parse(r.data)
			return e, err == nil, err
		}
	}
	if err == nil {
		err = errSilent
	}
	return e, false, fmt.Errorf("read set %s: %w", s.Name, err)
}

// parse reads a message with one element.
func (s Set) parse(data []byte) (e Element, err error) {
	ad, err := netlink.NewAttributeDecoder(data[min(4, len(data)):])
	if err != nil {
		return e, fmt.Errorf("read element of set %s: %w", s.Name, err)
	}
	value := func(of func([]byte)) func(*netlink.AttributeDecoder) error {
		return func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				of(ad.Bytes())
			}
			return ad.Err()
		}
	}
	for ad.Next() {
		if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		ad.Nested(func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						switch {
						case ad.Type() == unix.NFTA_SET_ELEM_KEY:
							ad.Nested(value(func(b []byte) { e.Key = pad(b) }))
						case ad.Type() == unix.NFTA_SET_ELEM_DATA && s.Verdicts:
							ad.Nested(value(func(b []byte) { e.Verdict = parseVerdict(b) }))
						case ad.Type() == unix.NFTA_SET_ELEM_DATA:
							ad.Nested(value(func(b []byte) { e.Data = pad(b) }))
						}
					}
					return ad.Err()
				})
			}
			return ad.Err()
		})
	}
	return e, ad.Err()
}

// parseVerdict reads the two attributes, code and chain, that the library hands
// over as they came.
func parseVerdict(b []byte) Verdict {
	attrs, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return Verdict{}
	}
	var v Verdict
	for _, a := range attrs {
		switch a.Type {
		case unix.NFTA_VERDICT_CODE:
			if len(a.Data) == 4 {
				v.Kind = kindOf(expr.VerdictKind(int32(be32(a.Data))))
			}
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = unix.ByteSliceToString(a.Data)
		}
	}
	return v
}

func be32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func kindOf(k expr.VerdictKind) VerdictKind {
	switch k {
	case expr.VerdictAccept:
		return VerdictAccept
	case expr.VerdictDrop:
		return VerdictDrop
	case expr.VerdictReturn:
		return VerdictReturn
	case expr.VerdictJump:
		return VerdictJump
	case expr.VerdictGoto:
		return VerdictGoto
	}
	return NoVerdict
}

// Chains lists the names of the table's chains; none if there is no table.
func (c *Conn) Chains() ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return nil, err
	}
	all, err := c.lib.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("list chains: %w", err), c.reset())
	}
	var names []string
	for _, ch := range all {
		if ch.Table != nil && ch.Table.Name == TableName {
			names = append(names, ch.Name)
		}
	}
	return names, nil
}

// Sets lists the names of the table's sets and maps; none if there is no table.
func (c *Conn) Sets() ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return nil, err
	}
	tables, err := c.lib.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("list tables: %w", err), c.reset())
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == TableName }) {
		return nil, nil
	}
	all, err := c.lib.GetSets(table())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("list sets: %w", err), c.reset())
	}
	names := make([]string, len(all))
	for i, s := range all {
		names[i] = s.Name
	}
	return names, nil
}

// RuleCount says how many rules a chain has.
func (c *Conn) RuleCount(chain string) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return 0, err
	}
	rules, err := c.lib.GetRules(table(), &nftables.Chain{Name: chain, Table: table()})
	if err != nil {
		return 0, errors.Join(fmt.Errorf("read chain %s: %w", chain, err), c.reset())
	}
	return len(rules), nil
}
