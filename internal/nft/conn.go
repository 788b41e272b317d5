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
	// socketBuffer holds a transaction of 10,000 Services; with less the kernel
	// says "message too long".
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
			return errors.Join(s.SetWriteBuffer(socketBuffer), s.SetReadBuffer(socketBuffer))
		}))
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	port, err := portID(sock)
	if err != nil {
		return errors.Join(err, lib.CloseLasting())
	}
	c.lib, c.sock = lib, sock
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
// origin of this connection's commits. An error renews it.
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
	for _, o := range tx.ops {
		if err := c.encode(o); err != nil {
			return errors.Join(fmt.Errorf("encode nftables transaction: %w", err), c.reset())
		}
	}
	if err := c.lib.Flush(); err != nil {
		return errors.Join(fmt.Errorf("commit nftables transaction: %w", err), c.reset())
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

// reset takes a new socket: after an error answers may still be on their way in
// the old one, and the library keeps an encoding error for ever.
func (c *Conn) reset() error {
	return errors.Join(c.lib.CloseLasting(), c.dial())
}

func table() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

func (c *Conn) encode(o op) error {
	switch o.kind {
	case opAddTable:
		c.lib.AddTable(table())
	case opAddChain:
		c.lib.AddChain(o.chain.lib())
	case opFlushChain:
		c.lib.FlushChain(o.chain.lib())
	case opDeleteChain:
		c.lib.DelChain(o.chain.lib())
	case opAddRule:
		c.lib.AddRule(&nftables.Rule{Table: table(), Chain: o.chain.lib(), Exprs: o.rule.exprs()})
	case opAddSet:
		return c.lib.AddSet(o.set.lib(), nil)
	case opFlushSet:
		c.lib.FlushSet(o.set.lib())
	case opDeleteSet:
		c.lib.DelSet(o.set.lib())
	case opAddElements:
		return c.lib.SetAddElements(o.set.lib(), o.set.encode(o.elems, true))
	case opDeleteElements:
		return c.lib.SetDeleteElements(o.set.lib(), o.set.encode(o.elems, false))
	}
	return nil
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

func (s Set) encode(elems []Element, data bool) []nftables.SetElement {
	out := make([]nftables.SetElement, len(elems))
	for i, e := range elems {
		out[i].Key = trim(s.Key, e.Key)
		switch {
		case !data:
		case e.Verdict.Kind != NoVerdict:
			out[i].VerdictData = e.Verdict.lib()
		default:
			out[i].Val = trim(s.Data, e.Data)
		}
	}
	return out
}

func (c Chain) lib() *nftables.Chain {
	out := &nftables.Chain{Name: c.Name, Table: table()}
	if c.Hook == NoHook {
		return out
	}
	hooks := map[Hook]*nftables.ChainHook{
		Prerouting: nftables.ChainHookPrerouting, Input: nftables.ChainHookInput, Forward: nftables.ChainHookForward,
		Output: nftables.ChainHookOutput, Postrouting: nftables.ChainHookPostrouting,
	}
	out.Hooknum = hooks[c.Hook]
	out.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	out.Type = nftables.ChainType(c.Type)
	return out
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
