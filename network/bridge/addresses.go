package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/pausa-run/pausa/internal/atomicfile"
)

// errFull is wrapped when a range has no free address.
var errFull = errors.New("no free address")

// remembered is how many releases at least are kept in their order. In a range with
// more free addresses those before come first again, from the cursor on.
const remembered = 256

// allocate gives owner a free address of the range: the next one, after the one
// given last, that nobody has had lately; if there is none, the one that has been
// free for longest. Who still sends to the pod before finds nobody.
func (s *store) allocate(r netip.Prefix, owner string) (netip.Addr, error) {
	unlock, err := s.lockFile("cursor", "order")
	if err != nil {
		return netip.Addr{}, err
	}
	defer unlock()
	used, err := s.names("addresses")
	if err != nil {
		return netip.Addr{}, err
	}
	past, err := s.releases() // after the addresses: who releases one notes it first
	if err != nil {
		return netip.Addr{}, err
	}
	for a := range s.inOrder(r, used, past) {
		err := os.Symlink(owner, s.path("addresses", a.String()))
		if errors.Is(err, fs.ErrExist) {
			continue // somebody has asked for this one
		}
		if err != nil {
			return netip.Addr{}, fmt.Errorf("claim address %s: %w", a, err)
		}
		return a, s.setCursor(r, a)
	}
	return netip.Addr{}, fmt.Errorf("%w in %s: all are in use; delete pods or configure a larger range", errFull, r)
}

// inOrder are the free addresses of a range: those that nobody had lately from the
// cursor on, and then the others, those free for longest first.
func (s *store) inOrder(r netip.Prefix, used map[string]bool, past *releases) iter.Seq[netip.Addr] {
	first := gateway(r).Addr().Next()
	start := first
	if last, err := netip.ParseAddr(s.cursor(r)); err == nil && r.Contains(last) && r.Contains(last.Next()) {
		start = last.Next()
	}
	return func(yield func(netip.Addr) bool) {
		for a, begun := start, false; a != start || !begun; begun = true {
			if text := a.String(); !used[text] && r.Contains(a) && !isBroadcast(r, a) && !past.has(text) && !yield(a) {
				return
			}
			if a = a.Next(); !r.Contains(a) {
				a = first
			}
		}
		for text := range past.oldestFirst() {
			if a, err := netip.ParseAddr(text); err == nil && !used[text] && r.Contains(a) && !yield(a) {
				return
			}
		}
	}
}

// releases are the addresses released lately, one to a line, the latest at the end.
// Those that are in use again are among them.
type releases struct {
	text  string         // with a newline at its beginning, too
	last  map[string]int // where each address is the last time; nil until it is needed
	asked int
}

// searches are cheaper than reading all lines: in a large range one is enough.
const searches = 4

func (p *releases) has(addr string) bool {
	if p.asked++; p.asked <= searches && p.last == nil {
		return strings.Contains(p.text, "\n"+addr+"\n")
	}
	_, ok := p.index()[addr]
	return ok
}

// lines are the addresses, and where they are.
func (p *releases) lines() iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		at := 1
		for line := range strings.Lines(p.text[1:]) {
			if !yield(at, strings.TrimSuffix(line, "\n")) {
				return
			}
			at += len(line)
		}
	}
}

func (p *releases) index() map[string]int {
	if p.last == nil {
		p.last = make(map[string]int, remembered)
		for at, addr := range p.lines() {
			p.last[addr] = at
		}
	}
	return p.last
}

func (p *releases) oldestFirst() iter.Seq[string] {
	return func(yield func(string) bool) {
		last := p.index()
		for at, addr := range p.lines() {
			if last[addr] == at && !yield(addr) {
				return
			}
		}
	}
}

// releases reads them; the lock "order" is held. When there are too many lines,
// those that count no more are dropped, and then the oldest.
func (s *store) releases() (*releases, error) {
	data, err := os.ReadFile(s.path("cursor", "released"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what was released: %w", err)
	}
	p := &releases{text: "\n" + string(data)}
	if strings.Count(p.text, "\n") <= 2*remembered {
		return p, nil
	}
	all := slices.Collect(p.oldestFirst())
	all = all[max(0, len(all)-remembered):]
	p = &releases{text: "\n" + strings.Join(append(all, ""), "\n")}
	return p, atomicfile.Write(s.path("cursor", "released"), []byte(p.text[1:]), 0o600)
}

// noteRelease remembers that addresses are released now. Where that fails, as on a
// full disk, they are free all the same: only their turn is lost.
func (s *store) noteRelease(addrs []string) {
	if len(addrs) == 0 {
		return
	}
	unlock, err := s.lockFile("cursor", "order")
	if err != nil {
		return
	}
	defer unlock()
	f, err := os.OpenFile(s.path("cursor", "released"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString(strings.Join(addrs, "\n") + "\n")
}

func cursorName(r netip.Prefix) string {
	return strings.ReplaceAll(r.Masked().String(), "/", "-")
}

func (s *store) cursor(r netip.Prefix) string {
	last, _ := os.Readlink(s.path("cursor", cursorName(r)))
	return last
}

// setCursor remembers the address given last; the lock "order" is held.
func (s *store) setCursor(r netip.Prefix, a netip.Addr) error {
	tmp := s.path("cursor", "."+a.String())
	if err := os.Symlink(a.String(), tmp); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("remember address %s: %w", a, err)
	}
	if err := os.Rename(tmp, s.path("cursor", cursorName(r))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remember address %s: %w", a, err)
	}
	return nil
}

// releaseAddrs frees every address of owner. Those known (from the record) are tried first;
// with none known all addresses are looked through.
func (s *store) releaseAddrs(owner string, known []netip.Addr) error {
	names := make(map[string]bool, len(known))
	for _, a := range known {
		names[a.String()] = true
	}
	if len(names) == 0 {
		var err error
		if names, err = s.names("addresses"); err != nil {
			return err
		}
	}
	maps.DeleteFunc(names, func(name string, _ bool) bool { return s.addressOwner(name) != owner })
	s.noteRelease(slices.Collect(maps.Keys(names)))
	var errs []error
	for name := range names {
		errs = append(errs, removeFile(s.path("addresses", name)))
	}
	return errors.Join(errs...)
}

// addressOwner is "" when the address is free.
func (s *store) addressOwner(addr string) string {
	owner, _ := os.Readlink(s.path("addresses", addr))
	return owner
}
