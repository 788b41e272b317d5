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
// thousand connects timed out while endpoints came and went.

// restFor is more than any packet needs for its way through the rules.
const restFor = time.Second

// retiree is a chain, with its set if it has one, that is not used any more.
type retiree struct {
	rank  int // what leads to others comes first
	chain string
	set   *nft.Set
}

// retired are those of one change by name.
func (c *change) retired() map[string]retiree {
	out := map[string]retiree{}
	for _, g := range c.oldGuards {
		out[g.name()] = retiree{0, g.name(), nil}
	}
	for _, name := range c.oldStickies {
		out[name] = retiree{1, name, nil}
	}
	for _, cl := range c.oldClients {
		set := cl.set()
		out[cl.name()] = retiree{2, cl.name(), &set}
	}
	for _, b := range c.oldChains {
		out[b.name()] = retiree{3, b.name(), nil}
	}
	return out
}

// made are the names of the chains of a change.
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
	return out
}

// rest are the chains that wait for their deletion: those of the last second or
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
				r.fresh[name] = retiree{min(rank, 3), name, nil}
			}
		}
	}
	for _, name := range sets {
		if strings.HasPrefix(name, prefixClient) {
			r.fresh[name] = retiree{2, r.fresh[name].chain, &nft.Set{Name: name}}
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
	for _, x := range slices.SortedFunc(maps.Values(r.ripe), func(a, b retiree) int { return cmp.Compare(a.rank, b.rank) }) {
		if x.chain != "" {
			tx.DeleteChain(x.chain)
		}
		if x.set != nil {
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
