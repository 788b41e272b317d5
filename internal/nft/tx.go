package nft

import "slices"

// TableName is the name of the table (family inet) that is ours.
const TableName = "pausa"

// Hook is where a base chain sees packets.
type Hook uint8

// The hooks. NoHook is a regular chain, reached by jump, goto or a verdict map.
const (
	NoHook Hook = iota
	Prerouting
	Input
	Forward
	Output
	Postrouting
)

// Types of base chains.
const (
	TypeFilter = "filter"
	TypeNAT    = "nat"
)

// Priorities of base chains: smaller ones come first.
const (
	PriorityRaw    = -300
	PriorityMangle = -150
	PriorityDNAT   = -100
	PriorityFilter = 0
	PrioritySNAT   = 100
)

// Chain is a chain of the table. The names are shared by all users of the
// table, so each user gives its own a prefix. A base chain accepts what no rule
// decides.
type Chain struct {
	Name     string
	Hook     Hook
	Type     string // TypeFilter or TypeNAT, with a hook
	Priority int    // with a hook
}

type opKind uint8

const (
	opAddTable opKind = iota
	opAddChain
	opFlushChain
	opDeleteChain
	opAddRule
	opAddSet
	opFlushSet
	opDeleteSet
	opAddElements
	opDeleteElements
)

type op struct {
	kind  opKind
	chain Chain
	rule  Rule
	set   Set
	elems []Element
}

// Tx collects changes. Nothing happens before Commit, then all of it or none.
type Tx struct {
	ops []op
}

// NewTx begins a transaction that makes the table if it is not there.
func NewTx() *Tx { return &Tx{ops: []op{{kind: opAddTable}}} }

// Empty tells that there is nothing to commit but the table itself.
func (t *Tx) Empty() bool { return len(t.ops) == 1 }

// AddChain makes a chain; one that is there already keeps its rules. A base
// chain with another hook or priority is refused (EOPNOTSUPP or EEXIST).
func (t *Tx) AddChain(c Chain) { t.ops = append(t.ops, op{kind: opAddChain, chain: c}) }

// FlushChain removes the chain's rules; the chain must exist.
func (t *Tx) FlushChain(name string) {
	t.ops = append(t.ops, op{kind: opFlushChain, chain: Chain{Name: name}})
}

// DeleteChain removes the chain with its rules; it must exist (ENOENT) and
// nothing may lead to it (EBUSY).
func (t *Tx) DeleteChain(name string) {
	t.ops = append(t.ops, op{kind: opDeleteChain, chain: Chain{Name: name}})
}

// SetRules makes the chain, if need be, and gives it exactly these rules.
func (t *Tx) SetRules(c Chain, rules ...Rule) {
	t.AddChain(c)
	t.FlushChain(c.Name)
	for _, r := range rules {
		t.AddRule(c.Name, r)
	}
}

// AddRule appends a rule to a chain.
func (t *Tx) AddRule(chain string, r Rule) {
	t.ops = append(t.ops, op{kind: opAddRule, chain: Chain{Name: chain}, rule: r})
}

// AddSet makes a set or map; one that is there already keeps its elements.
func (t *Tx) AddSet(s Set) { t.ops = append(t.ops, op{kind: opAddSet, set: s}) }

// FlushSet removes all elements; the set must exist.
func (t *Tx) FlushSet(s Set) { t.ops = append(t.ops, op{kind: opFlushSet, set: s}) }

// DeleteSet removes the set with its elements; it must exist (ENOENT) and no
// rule may use it (EBUSY).
func (t *Tx) DeleteSet(s Set) { t.ops = append(t.ops, op{kind: opDeleteSet, set: s}) }

// AddElements adds elements, however many. A key that is there with other data
// is refused (EEXIST); delete it first, in the same transaction.
func (t *Tx) AddElements(s Set, elems ...Element) { t.elements(opAddElements, s, elems) }

// DeleteElements removes elements by key; one that is not there is refused
// (ENOENT).
func (t *Tx) DeleteElements(s Set, elems ...Element) { t.elements(opDeleteElements, s, elems) }

// elements joins what goes into the same set: each operation is a message at least.
func (t *Tx) elements(kind opKind, s Set, elems []Element) {
	if len(elems) == 0 {
		return
	}
	if last := &t.ops[len(t.ops)-1]; last.kind == kind && last.set.Name == s.Name {
		last.elems = append(last.elems, elems...)
		return
	}
	t.ops = append(t.ops, op{kind: kind, set: s, elems: slices.Clip(elems)})
}

// Append adds the changes of another transaction behind those of this one.
func (t *Tx) Append(o *Tx) { t.ops = append(t.ops, o.ops[1:]...) }
