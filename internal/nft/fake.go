package nft

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Fake is the table in memory, for tests. Commit refuses what the kernel would:
// names that are missing or still in use, elements that are there already. Walk
// sends a packet through the rules.
type Fake struct {
	mu     sync.Mutex // guards state
	state  *fakeTable // nil: no table
	commit int
}

type fakeTable struct {
	chains map[string]*fakeChain
	order  []string
	sets   map[string]*fakeSet
}

type fakeChain struct {
	Chain
	rules []Rule
}

type fakeSet struct {
	Set
	elems map[string]Element
}

// NewFake makes a fake without a table.
func NewFake() *Fake { return &Fake{} }

// Commits counts the transactions that were accepted.
func (f *Fake) Commits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.commit
}

// Flush removes the table, as `nft flush ruleset` does.
func (f *Fake) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = nil
}

// Close does nothing.
func (f *Fake) Close() error { return nil }

// Watch never tells anything.
func (f *Fake) Watch(ctx context.Context, _ func(string) bool) (<-chan string, error) {
	out := make(chan string)
	context.AfterFunc(ctx, func() { close(out) })
	return out, nil
}

// Commit is Conn's.
func (f *Fake) Commit(tx *Tx) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.state.clone()
	for _, o := range tx.ops {
		if err := next.apply(o); err != nil {
			return fmt.Errorf("commit nftables transaction: %w", err)
		}
	}
	f.state = next
	f.commit++
	return nil
}

func (t *fakeTable) clone() *fakeTable {
	out := &fakeTable{chains: map[string]*fakeChain{}, sets: map[string]*fakeSet{}}
	if t == nil {
		return out
	}
	out.order = slices.Clone(t.order)
	for name, c := range t.chains {
		out.chains[name] = &fakeChain{c.Chain, slices.Clone(c.rules)}
	}
	for name, s := range t.sets {
		out.sets[name] = &fakeSet{s.Set, maps.Clone(s.elems)}
	}
	return out
}

func (t *fakeTable) apply(o op) error {
	switch o.kind {
	case opAddTable:
		return nil
	case opAddChain, opFlushChain, opDeleteChain, opAddRule:
		return t.applyChain(o)
	default:
		return t.applySet(o)
	}
}

func (t *fakeTable) applyChain(o op) error {
	name := o.chain.Name
	c, ok := t.chains[name]
	if o.kind == opAddChain {
		if !ok {
			t.chains[name] = &fakeChain{Chain: o.chain}
			t.order = append(t.order, name)
		} else if c.Chain != o.chain {
			return fmt.Errorf("chain %s: %w", name, unix.EOPNOTSUPP)
		}
		return nil
	}
	if !ok {
		return fmt.Errorf("chain %s: %w", name, unix.ENOENT)
	}
	switch o.kind {
	case opFlushChain:
		c.rules = nil
	case opDeleteChain:
		if user := t.userOfChain(name); user != "" {
			return fmt.Errorf("chain %s is used by %s: %w", name, user, unix.EBUSY)
		}
		delete(t.chains, name)
		t.order = slices.DeleteFunc(t.order, func(n string) bool { return n == name })
	case opAddRule:
		if err := t.checkRule(o.rule); err != nil {
			return fmt.Errorf("rule %q: %w", o.rule, err)
		}
		c.rules = append(c.rules, o.rule)
	}
	return nil
}

func (t *fakeTable) checkRule(r Rule) error {
	for _, s := range r.stmts {
		for _, name := range s.sets {
			if t.sets[name] == nil {
				return fmt.Errorf("set %s: %w", name, unix.ENOENT)
			}
		}
		for _, name := range s.chains {
			if t.chains[name] == nil {
				return fmt.Errorf("chain %s: %w", name, unix.ENOENT)
			}
		}
	}
	return nil
}

func (t *fakeTable) userOfChain(name string) string {
	for _, c := range t.chains {
		for _, r := range c.rules {
			for _, s := range r.stmts {
				if c.Name != name && slices.Contains(s.chains, name) {
					return "chain " + c.Name
				}
			}
		}
	}
	for _, s := range t.sets {
		for _, e := range s.elems {
			if e.Verdict.Chain == name {
				return "map " + s.Name
			}
		}
	}
	return ""
}

func (t *fakeTable) userOfSet(name string) string {
	for _, c := range t.chains {
		for _, r := range c.rules {
			for _, s := range r.stmts {
				if slices.Contains(s.sets, name) {
					return "chain " + c.Name
				}
			}
		}
	}
	return ""
}

func (t *fakeTable) applySet(o op) error {
	name := o.set.Name
	s, ok := t.sets[name]
	if o.kind == opAddSet {
		if !ok {
			t.sets[name] = &fakeSet{o.set, map[string]Element{}}
		} else if s.String() != o.set.String() {
			return fmt.Errorf("set %s: %w", name, unix.EEXIST)
		}
		return nil
	}
	if !ok {
		return fmt.Errorf("set %s: %w", name, unix.ENOENT)
	}
	switch o.kind {
	case opFlushSet:
		s.elems = map[string]Element{}
	case opDeleteSet:
		if user := t.userOfSet(name); user != "" {
			return fmt.Errorf("set %s is used by %s: %w", name, user, unix.EBUSY)
		}
		delete(t.sets, name)
	case opAddElements:
		return t.addElements(s, o.elems)
	case opDeleteElements:
		for _, e := range o.elems {
			if _, ok := s.elems[string(e.Key)]; !ok {
				return fmt.Errorf("element %s of %s: %w", Format(s.Key, e.Key), name, unix.ENOENT)
			}
			delete(s.elems, string(e.Key))
		}
	}
	return nil
}

func (t *fakeTable) addElements(s *fakeSet, elems []Element) error {
	for _, e := range elems {
		where := fmt.Sprintf("element %s of %s", Format(s.Key, e.Key), s.Name)
		if len(e.Key) != size(s.Key) || (len(s.Data) > 0 && len(e.Data) != size(s.Data)) ||
			s.Verdicts != (e.Verdict.Kind != NoVerdict) {
			return fmt.Errorf("%s: %w", where, unix.EINVAL)
		}
		if e.Verdict.Chain != "" && t.chains[e.Verdict.Chain] == nil {
			return fmt.Errorf("%s leads to chain %s: %w", where, e.Verdict.Chain, unix.ENOENT)
		}
		old, ok := s.elems[string(e.Key)]
		if ok && (string(old.Data) != string(e.Data) || old.Verdict != e.Verdict) {
			return fmt.Errorf("%s: %w", where, unix.EEXIST)
		}
		s.elems[string(e.Key)] = e
	}
	return nil
}

// size is the length of a value of these types in bytes.
func size(types []Type) int {
	n := 0
	for _, t := range types {
		n += int(t.words() * 4)
	}
	return n
}

// Elements is Conn's; sorted by key.
func (f *Fake) Elements(s Set) ([]Element, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == nil || f.state.sets[s.Name] == nil {
		return nil, fmt.Errorf("read set %s: %w", s.Name, unix.ENOENT)
	}
	elems := f.state.sets[s.Name].elems
	out := make([]Element, 0, len(elems))
	for _, k := range slices.Sorted(maps.Keys(elems)) {
		out = append(out, elems[k])
	}
	return out, nil
}

// Chains is Conn's.
func (f *Fake) Chains() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == nil {
		return nil, nil
	}
	return slices.Clone(f.state.order), nil
}

// Sets is Conn's; sorted.
func (f *Fake) Sets() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == nil {
		return nil, nil
	}
	return slices.Sorted(maps.Keys(f.state.sets)), nil
}
