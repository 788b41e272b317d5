package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Packet is the first packet of a connection, as a hook sees it.
type Packet struct {
	Proto    uint8
	Src, Dst netip.AddrPort
	Iif, Oif string
	Mark     uint32
	CtState  uint32
	CtStatus uint32
	// Local tells whether the host itself has an address; nil: none.
	Local func(netip.Addr) bool
	// Random is the generator of numgen, from 0 to mod-1; nil: always 0.
	Random func(mod uint32) uint32
}

// Fate is what the rules do with a packet.
type Fate struct {
	Verdict    string // "accept", "drop", "reject" or "reset"
	DNAT       netip.AddrPort
	Masquerade bool
	Mark       uint32
	// Trail is the chains in the order in which the packet met them.
	Trail []string
}

func (f Fate) String() string {
	s := f.Verdict
	if f.DNAT.IsValid() {
		s += " dnat " + f.DNAT.String()
	}
	if f.Masquerade {
		s += " masquerade"
	}
	return s
}

// maxJumps is the kernel's limit for chains in chains.
const maxJumps = 16

// Walk sends a packet through all base chains of the hook, by priority.
func (f *Fake) Walk(hook Hook, p Packet) (Fate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &walker{packet: p, family: FamilyOf(p.Dst.Addr()), fate: Fate{Verdict: "accept", Mark: p.Mark}}
	if f.state == nil {
		return w.fate, nil
	}
	w.table = f.state
	var bases []*fakeChain
	for _, name := range f.state.order {
		if c := f.state.chains[name]; c.Hook == hook {
			bases = append(bases, c)
		}
	}
	slices.SortStableFunc(bases, func(a, b *fakeChain) int { return a.Priority - b.Priority })
	for _, c := range bases {
		if c.Type == TypeNAT && (w.fate.DNAT.IsValid() || w.fate.Masquerade) {
			continue
		}
		if _, err := w.chain(c, 0); err != nil {
			return w.fate, err
		}
		if w.fate.Verdict != "accept" {
			break
		}
	}
	return w.fate, nil
}

type walker struct {
	table  *fakeTable
	packet Packet
	family Family
	fate   Fate
	regs   [20 * 4]byte // the verdict register's sixteen bytes, then 32-bit ones
}

// step is what a rule leaves behind: go on with the next rule, leave the chain,
// or the packet's fate is sealed.
type step uint8

const (
	next step = iota
	leave
	done
)

func (w *walker) chain(c *fakeChain, depth int) (step, error) {
	if depth > maxJumps {
		return done, errors.New("too many jumps")
	}
	w.fate.Trail = append(w.fate.Trail, c.Name)
	for _, r := range c.rules {
		s, err := w.rule(r, depth)
		if err != nil {
			return done, fmt.Errorf("chain %s, rule %q: %w", c.Name, r, err)
		}
		if s == leave {
			return next, nil
		}
		if s == done {
			return done, nil
		}
	}
	return next, nil
}

func (w *walker) rule(r Rule, depth int) (step, error) {
	for _, e := range r.exprs() {
		v, ok, err := w.expr(e)
		if err != nil || !ok {
			return next, err
		}
		if v.Kind != NoVerdict {
			return w.verdict(v, depth)
		}
		if w.fate.DNAT.IsValid() || w.fate.Masquerade || w.fate.Verdict != "accept" {
			return done, nil
		}
	}
	return next, nil
}

func (w *walker) verdict(v Verdict, depth int) (step, error) {
	switch v.Kind {
	case VerdictAccept:
		return done, nil
	case VerdictDrop:
		w.fate.Verdict = "drop"
		return done, nil
	case VerdictReturn:
		return leave, nil
	}
	c, ok := w.table.chains[v.Chain]
	if !ok {
		return done, fmt.Errorf("chain %s does not exist", v.Chain)
	}
	s, err := w.chain(c, depth+1)
	if s == next && v.Kind == VerdictGoto {
		s = leave
	}
	return s, err
}

// reg is the n bytes that begin at a 32-bit register.
func (w *walker) reg(r uint32, n int) []byte {
	off := 16 + int(r-firstReg)*4
	return w.regs[off : off+n]
}

// put fills whole registers: what is shorter is padded with zeros.
func (w *walker) put(r uint32, v []byte) bool {
	dst := w.reg(r, (len(v)+3)/4*4)
	clear(dst)
	copy(dst, v)
	return v != nil
}

// expr runs one expression. ok is false where the rule ends.
func (w *walker) expr(e expr.Any) (v Verdict, ok bool, err error) {
	switch e := e.(type) {
	case *expr.Payload:
		return v, w.put(e.DestRegister, w.payload(e)), nil
	case *expr.Meta:
		return v, w.meta(e), nil
	case *expr.Ct:
		n := w.packet.CtStatus
		if e.Key == expr.CtKeySTATE {
			n = w.packet.CtState
		}
		return v, w.put(e.Register, binary.NativeEndian.AppendUint32(nil, n)), nil
	case *expr.Fib:
		kind := uint32(unix.RTN_UNICAST)
		if w.packet.Local != nil && w.packet.Local(w.packet.Dst.Addr()) {
			kind = unix.RTN_LOCAL
		}
		return v, w.put(e.Register, binary.NativeEndian.AppendUint32(nil, kind)), nil
	case *expr.Numgen:
		n := uint32(0)
		if w.packet.Random != nil {
			n = w.packet.Random(e.Modulus)
		}
		return v, w.put(e.Register, binary.NativeEndian.AppendUint32(nil, n)), nil
	case *expr.Bitwise:
		src, out := w.reg(e.SourceRegister, int(e.Len)), make([]byte, e.Len)
		for i := range out {
			out[i] = src[i]&e.Mask[i] ^ e.Xor[i]
		}
		return v, w.put(e.DestRegister, out), nil
	case *expr.Cmp:
		same := bytes.Equal(w.reg(e.Register, len(e.Data)), e.Data)
		return v, same == (e.Op == expr.CmpOpEq), nil
	case *expr.Immediate:
		return v, w.put(e.Register, e.Data), nil
	case *expr.Lookup:
		return w.lookup(e)
	}
	return w.act(e)
}

func (w *walker) act(e expr.Any) (v Verdict, ok bool, err error) {
	switch e := e.(type) {
	case *expr.Counter, *expr.Rt, *expr.Byteorder, *expr.Exthdr: // no fate depends on the segment size
	case *expr.Verdict:
		v = Verdict{kindOf(e.Kind), e.Chain}
	case *expr.NAT:
		a, _ := netip.AddrFromSlice(w.reg(e.RegAddrMin, w.family.AddrType().bytes()))
		w.fate.DNAT = netip.AddrPortFrom(a, binary.BigEndian.Uint16(w.reg(e.RegProtoMin, 2)))
		if Family(e.Family) != w.family {
			return v, false, fmt.Errorf("dnat %s of an %s packet", Family(e.Family), w.family)
		}
	case *expr.Dynset:
		s := w.table.sets[e.SetName]
		if s == nil {
			return v, false, fmt.Errorf("set %s does not exist", e.SetName)
		}
		k := slices.Clone(w.reg(e.SrcRegKey, size(s.Key)))
		s.elems[string(k)] = Element{Key: k}
	case *expr.Masq:
		w.fate.Masquerade = true
	case *expr.Reject:
		w.fate.Verdict = "reject"
		if e.Type == unix.NFT_REJECT_TCP_RST {
			w.fate.Verdict = "reset"
		}
	default:
		return v, false, fmt.Errorf("walk: expression %T is unknown", e)
	}
	return v, true, nil
}

func (t Type) bytes() int { return int(t.datatype().Bytes) }

func (w *walker) payload(e *expr.Payload) []byte {
	switch {
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 0:
		return binary.BigEndian.AppendUint16(nil, w.packet.Src.Port())
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == tcpFlagsOffset:
		return []byte{tcpSYN}
	case e.Base == expr.PayloadBaseTransportHeader:
		return binary.BigEndian.AppendUint16(nil, w.packet.Dst.Port())
	case e.Base == expr.PayloadBaseLLHeader:
		return nil
	case e.Offset == 12 || e.Offset == 8:
		return w.packet.Src.Addr().Unmap().AsSlice()
	default:
		return w.packet.Dst.Addr().Unmap().AsSlice()
	}
}

func (w *walker) meta(e *expr.Meta) bool {
	if e.SourceRegister {
		w.fate.Mark = binary.NativeEndian.Uint32(w.reg(e.Register, 4))
		return true
	}
	switch e.Key {
	case expr.MetaKeyNFPROTO:
		return w.put(e.Register, []byte{byte(w.family)})
	case expr.MetaKeyL4PROTO:
		return w.put(e.Register, []byte{w.packet.Proto})
	case expr.MetaKeyMARK:
		return w.put(e.Register, binary.NativeEndian.AppendUint32(nil, w.fate.Mark))
	case expr.MetaKeyIIFNAME:
		return w.put(e.Register, Value(nil).IfName(w.packet.Iif))
	case expr.MetaKeyOIFNAME:
		return w.put(e.Register, Value(nil).IfName(w.packet.Oif))
	}
	return false
}

func (w *walker) lookup(e *expr.Lookup) (v Verdict, ok bool, err error) {
	s := w.table.sets[e.SetName]
	if s == nil {
		return v, false, fmt.Errorf("set %s does not exist", e.SetName)
	}
	el, found := s.elems[string(w.reg(e.SourceRegister, size(s.Key)))]
	if !e.IsDestRegSet {
		return v, found != e.Invert, nil
	}
	if !found {
		return v, false, nil
	}
	if s.Verdicts {
		return el.Verdict, true, nil
	}
	return v, w.put(e.DestRegister, el.Data), nil
}

// Dump prints the whole table in nft's syntax, sets by name, chains in the
// order in which they were made.
func (f *Fake) Dump() string {
	sets, _ := f.Sets()
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, name := range sets {
		s := f.state.sets[name]
		fmt.Fprintln(&b, s.Set)
		var lines []string
		for _, e := range s.elems {
			line := "  " + Format(s.Key, e.Key)
			if s.IsMap() {
				line += " : " + e.Verdict.String() + Format(s.Data, e.Data)
			}
			lines = append(lines, line)
		}
		slices.Sort(lines)
		for _, l := range lines {
			fmt.Fprintln(&b, l)
		}
	}
	if f.state == nil {
		return ""
	}
	for _, name := range f.state.order {
		fmt.Fprintln(&b, "chain "+name)
		for _, r := range f.state.chains[name].rules {
			fmt.Fprintln(&b, "  "+r.String())
		}
	}
	return b.String()
}
