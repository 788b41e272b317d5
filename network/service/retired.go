package service

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pausa-run/pausa/internal/nft"
)

// Chains that nothing leads to any more are deleted a little later, never with the
// elements that led to them: a packet that has just read such an element would find
// the chain empty, pass untranslated, and its connection would stay so. One in some
// thousand connects timed out while endpoints came and went. The same holds for the
// elements that say which connections are masqueraded, since that is looked up last:
// a pod that got itself as the endpoint would wait for an answer from itself.

// restFor is more than any packet needs for its way through the rules.
const restFor = time.Second

// retiree is a chain, with its set if it has one, or an element that is not used any more.
type retiree struct {
	rank  int // what leads to others comes first
	chain string
	set   *nft.Set
	key   nft.Value // of the element that goes, not the whole set
}

// compare puts elements of one set side by side, so that they go with one message.
func (x retiree) compare(o retiree) int {
	by := cmp.Compare(x.rank, o.rank)
	if by == 0 && x.set != nil && o.set != nil {
		by = cmp.Compare(x.set.Name, o.set.Name)
	}
	return by
}

func elementName(set nft.Set, e nft.Element) string { return set.Name + " " + string(e.Key) }

// retired are those of one change by name.
func (c *change) retired() map[string]retiree {
	out := map[string]retiree{}
	for _, g := range c.oldGuards {
		out[g.name()] = retiree{rank: 0, chain: g.name()}
	}
	for _, name := range c.oldStickies {
		out[name] = retiree{rank: 1, chain: name}
	}
	for _, cl := range c.oldClients {
		set := cl.set()
		out[cl.name()] = retiree{rank: 2, chain: cl.name(), set: &set}
	}
	for _, b := range c.oldChains {
		out[b.name()] = retiree{rank: 3, chain: b.name()}
	}
	for _, set := range lateSets() {
		for _, e := range c.late[set.Name] {
			out[elementName(set, e)] = retiree{rank: 4, set: &set, key: e.Key}
		}
	}
	return out
}

// lateSets are those that are looked up when a packet has its endpoint.
func lateSets() []nft.Set {
	f := families()
	return []nft.Set{f[0].hairpin, f[1].hairpin, f[0].remotes, f[1].remotes}
}

// made are the names of what is in use with a change.
func (c *change) made() []string {
	var out []string
	for _, g := range c.newGuards {
		out = append(out, g.name())
	}
	for name := range c.newStickies {
		out = append(out, name)
	}
	for _, cl := range c.newClients {
		out = append(out, cl.name())
	}
	for _, b := range c.newChains {
		out = append(out, b.name())
	}
	for _, set := range lateSets() {
		for _, e := range c.add[set.Name] {
			out = append(out, elementName(set, e))
		}
	}
	return out
}

// rest are the chains and elements that wait for their deletion: those of the last second or
// so, and the ones before, which are ripe.
type rest struct {
	fresh, ripe map[string]retiree
	since       time.Time // of the last deletion
}

func newRest() rest { return rest{fresh: map[string]retiree{}, ripe: map[string]retiree{}} }

// leftOver are the chains and sets in the kernel that were made on demand.
func leftOver(chains, sets []string) rest {
	r := newRest()
	for _, name := range chains {
		for rank, is := range []string{prefixFrom, prefixSticky, prefixClient, prefix + "lb", prefix + "node"} {
			if strings.HasPrefix(name, is) {
				r.fresh[name] = retiree{rank: min(rank, 3), chain: name}
			}
		}
	}
	for _, name := range sets {
		if strings.HasPrefix(name, prefixClient) {
			r.fresh[name] = retiree{rank: 2, chain: r.fresh[name].chain, set: &nft.Set{Name: name}}
		}
	}
	return r
}

func (r *rest) note(c *change) {
	for _, name := range c.made() {
		delete(r.fresh, name)
		delete(r.ripe, name)
	}
	maps.Copy(r.fresh, c.retired())
}

// due is the transaction that deletes what is ripe, nil if it is not time yet.
func (r *rest) due(now time.Time) *nft.Tx {
	if len(r.fresh)+len(r.ripe) == 0 || now.Sub(r.since) < restFor {
		return nil
	}
	tx := nft.NewTx()
	for _, x := range slices.SortedFunc(maps.Values(r.ripe), retiree.compare) {
		if x.chain != "" {
			tx.DeleteChain(x.chain)
		}
		switch {
		case x.key != nil:
			tx.DeleteElements(*x.set, nft.Element{Key: x.key})
		case x.set != nil:
			tx.DeleteSet(*x.set)
		}
	}
	r.fresh, r.ripe, r.since = map[string]retiree{}, r.fresh, now
	return tx
}

// tidy deletes chains that nothing has led to for a while. The caller holds mu.
func (t *Table) tidy(now time.Time) error {
	tx := t.rest.due(now)
	if tx == nil || tx.Empty() {
		return nil
	}
	return t.rules.Commit(tx)
}

// Maintain is to be called every second or so: it makes the routes of the service
// ranges again, which go with the bridge or its address, and deletes what is not
// used any more.
func (t *Table) Maintain() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known {
		if err := t.tidy(time.Now()); err != nil {
			t.opts.Log.Warn("rewriting all services", "cause", err)
			if err := t.rewrite(t.state.all()); err != nil {
				return err
			}
		}
	}
	if t.opts.RouteDev == "" {
		return nil
	}
	return t.assertRoutes()
}
