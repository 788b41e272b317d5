package service

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/pausa-run/pausa/internal/nft"
)

// state is what the table holds, as far as we know: what was written last.
type state struct {
	sets       map[nft.Family]familySets
	services   map[ID]*record
	failed     map[ID]*record // those with an err
	healthy    map[ID]*record // those with a health check node port
	round      uint64         // of plan
	seen       int            // Services of this round
	frontends  map[key]*frontend
	balancers  counted[balancer]
	clusterIPs counted[netip.Addr]
	hairpin    counted[netip.Addr]
	remotes    counted[netip.Addr]
	guards     counted[guard]
	clients    counted[client]
	stickies   counted[string]
	stickyOf   map[string][]client // by name of a chain in use
}

// record is a Service with the frontends that it owns.
type record struct {
	service Service
	keys    []key
	remotes []netip.Addr // counted
	// round and order say when, and in which place, it was desired last.
	round uint64
	order int
	// err is what is wrong with it; it is tried again with each change, since the
	// owner of what it wants may be gone.
	err error
}

func newState() *state {
	return &state{
		sets:     map[nft.Family]familySets{nft.IPv4: setsOf(nft.IPv4), nft.IPv6: setsOf(nft.IPv6)},
		services: map[ID]*record{}, failed: map[ID]*record{}, healthy: map[ID]*record{}, frontends: map[key]*frontend{},
		balancers: newCounted[balancer](), clusterIPs: newCounted[netip.Addr](), hairpin: newCounted[netip.Addr](),
		remotes: newCounted[netip.Addr](), guards: newCounted[guard](),
		clients: newCounted[client](), stickies: newCounted[string](), stickyOf: map[string][]client{},
	}
}

// counted is a set whose members have several users each.
type counted[K comparable] struct {
	users map[K]int
	// before is how many users each member touched had when the change began.
	before map[K]int
}

func newCounted[K comparable]() counted[K] {
	return counted[K]{users: map[K]int{}, before: map[K]int{}}
}

func (c *counted[K]) change(k K, by int) {
	users := c.users[k]
	if _, ok := c.before[k]; !ok {
		c.before[k] = users
	}
	if users += by; users == 0 {
		delete(c.users, k)
		return
	}
	c.users[k] = users
}

// settle calls added and removed for members that came and went, and ends the
// change.
func (c *counted[K]) settle(added, removed func(K)) {
	for k, before := range c.before {
		switch now := c.users[k]; {
		case before == 0 && now > 0:
			added(k)
		case before > 0 && now == 0:
			removed(k)
		}
	}
	c.before = emptied(c.before)
}

// smallMap is the size up to which a map is worth being kept.
const smallMap = 64

// emptied is an empty map: the same one if it is small. To clear a large one, or to
// look through it, costs its former size each time.
func emptied[K comparable, V any](m map[K]V) map[K]V {
	if len(m) > smallMap {
		return map[K]V{}
	}
	clear(m)
	return m
}

// change is the difference between two states.
type change struct {
	del, add map[string][]nft.Element // by name of the set
	// late goes some time after: what a packet under way looks up once it has its endpoint.
	late map[string][]nft.Element
	// newChains must exist before elements lead there, oldChains go some time after.
	newChains, oldChains []balancer
	newGuards, oldGuards []guard
	// The same for session affinity; stickies by name.
	newClients, oldClients []client
	newStickies            map[string][]client
	oldStickies            []string
	// keys are the frontends touched; stale those whose connections may lead to
	// an endpoint that is gone.
	keys  []key
	stale []key
}

func newChange() *change {
	return &change{
		del: map[string][]nft.Element{}, add: map[string][]nft.Element{}, late: map[string][]nft.Element{},
		newStickies: map[string][]client{},
	}
}

func (c *change) empty() bool {
	return len(c.del)+len(c.add)+len(c.late)+len(c.newChains)+len(c.oldChains)+len(c.newGuards)+len(c.oldGuards)+
		len(c.newClients)+len(c.oldClients)+len(c.newStickies)+len(c.oldStickies) == 0
}

// plan changes the state to the desired one and says what that means for the
// table. The error names each Service that cannot be had, wholly or in part;
// all others are in the change. What has not changed costs one look.
func (s *state) plan(desired []Service) (*change, error) {
	c := newChange()
	s.round++
	s.seen = 0
	todo, errs := s.compare(desired)
	s.drop(c)
	return c, errors.Join(append(errs, s.write(c, todo))...)
}

// update is plan for some Services: those of set are desired as they are now,
// those of gone not at all, and all others as before.
func (s *state) update(set []Service, gone []ID) (*change, error) {
	c := newChange()
	s.round++
	todo, errs := s.compare(set)
	for _, id := range gone {
		if r := s.services[id]; r != nil && r.round != s.round {
			s.forget(c, id, r)
		}
	}
	for _, r := range s.failed {
		if r.round != s.round {
			todo = append(todo, r)
		}
	}
	return c, errors.Join(append(errs, s.write(c, todo))...)
}

// write gives Services what they want now.
func (s *state) write(c *change, todo []*record) error {
	var errs []error
	for _, r := range todo {
		// What they give up comes first, so that others can have it.
		s.release(c, r)
	}
	for _, r := range todo {
		errs = append(errs, s.claim(c, r))
	}
	s.settle(c)
	return errors.Join(errs...)
}

// compare marks the records of the desired Services and lists those that are
// new, differ or could not be had before.
func (s *state) compare(desired []Service) ([]*record, []error) {
	var todo []*record
	var errs []error
	for i := range desired {
		want := &desired[i]
		id := ID{want.Namespace, want.Name}
		r := s.services[id]
		fresh := r == nil
		if fresh {
			r = &record{}
			s.services[id] = r
		}
		if r.round == s.round {
			errs = append(errs, fmt.Errorf("service %s is given twice: only the first counts", want.id()))
			continue
		}
		r.round, r.order = s.round, i
		s.seen++
		if fresh || r.err != nil || !r.service.Equal(*want) {
			r.service = want.clone()
			todo = append(todo, r)
		}
	}
	return todo, errs
}

// drop removes the Services that are not desired any more.
func (s *state) drop(c *change) {
	if s.seen < len(s.services) {
		for id, r := range s.services {
			if r.round != s.round {
				s.forget(c, id, r)
			}
		}
	}
}

func (s *state) forget(c *change, id ID, r *record) {
	s.keep(c, r, nil)
	s.countRemotes(r, nil)
	delete(s.services, id)
	delete(s.failed, id)
	delete(s.healthy, id)
}

// countRemotes notes which endpoints of a Service are not on this host.
func (s *state) countRemotes(r *record, now []netip.Addr) {
	for _, a := range r.remotes {
		s.remotes.change(a, -1)
	}
	r.remotes = nil
	for _, a := range now {
		r.remotes = append(r.remotes, a.Unmap())
		s.remotes.change(a.Unmap(), 1)
	}
}

// release takes away the frontends that a Service does not want any more.
func (s *state) release(c *change, r *record) {
	if len(r.keys) == 0 {
		return
	}
	fs, _ := render(r.service)
	stay := make(map[key]bool, len(fs))
	for _, f := range fs {
		stay[f.key] = true
	}
	s.keep(c, r, stay)
}

// all lists the Services in the order in which they were desired.
func (s *state) all() []Service {
	records := slices.SortedFunc(maps.Values(s.services), func(a, b *record) int { return a.order - b.order })
	out := make([]Service, len(records))
	for i, r := range records {
		out[i] = r.service
	}
	return out
}

// keep removes the frontends of r but those that stay.
func (s *state) keep(c *change, r *record, stay map[key]bool) {
	var left []key
	for _, k := range r.keys {
		if stay[k] {
			left = append(left, k)
			continue
		}
		s.remove(c, s.frontends[k])
	}
	r.keys = left
}

// claim gives a Service its frontends.
func (s *state) claim(c *change, r *record) error {
	id := r.service.id()
	fs, err := render(r.service)
	errs := []error{err}
	r.keys = r.keys[:0]
	for i := range fs {
		f := &fs[i]
		old := s.frontends[f.key]
		if old != nil && old.owner != id {
			errs = append(errs, fmt.Errorf("service %s: %s belongs to service %s: choose another or delete that one", id, f.key, old.owner))
			continue
		}
		if old != nil && slices.Contains(r.keys, f.key) {
			errs = append(errs, fmt.Errorf("service %s: %s is named twice", id, f.key))
			continue
		}
		r.keys = append(r.keys, f.key)
		s.put(c, old, f)
	}
	s.countRemotes(r, r.service.Remote)
	r.err = errors.Join(errs...)
	key := ID{r.service.Namespace, r.service.Name}
	delete(s.failed, key)
	if r.err != nil {
		s.failed[key] = r
	}
	delete(s.healthy, key)
	if r.service.HealthPort != 0 {
		s.healthy[key] = r
	}
	return r.err
}

func (s *state) remove(c *change, f *frontend) {
	sets := s.sets[f.key.family]
	c.del[sets.mapOf(f.key)] = append(c.del[sets.mapOf(f.key)], nft.Element{Key: f.key.value()})
	for i, e := range f.endpoints {
		c.del[sets.slotsOf(f.key)] = append(c.del[sets.slotsOf(f.key)], nft.Element{Key: f.key.slot(i)})
		s.hairpin.change(e.Addr(), -1)
	}
	s.count(f, -1)
	delete(s.frontends, f.key)
	c.touch(f.key, true)
}

// touch notes that a frontend changed, and whether connections may be stale.
func (c *change) touch(k key, stale bool) {
	c.keys = append(c.keys, k)
	if stale && k.connectionless() {
		c.stale = append(c.stale, k)
	}
}

func (s familySets) mapOf(k key) string {
	if k.node() {
		return s.nodePorts.Name
	}
	return s.frontends.Name
}

func (s familySets) slotsOf(k key) string {
	if k.node() {
		return s.nodeEndpoints.Name
	}
	return s.endpoints.Name
}

// count notes the users that a frontend is for chain and address.
func (s *state) count(f *frontend, by int) {
	switch {
	case len(f.endpoints) == 0:
	case f.sticky.timeout > 0:
		clients := f.clients()
		for _, c := range clients {
			s.clients.change(c, by)
		}
		s.stickyOf[f.stickyName()] = clients
		s.stickies.change(f.stickyName(), by)
	default:
		s.balancers.change(f.balancer(), by)
	}
	if f.cluster {
		s.clusterIPs.change(f.key.addr, by)
	}
	if f.allow != nil {
		s.guards.change(f.guard(), by)
	}
}

// put writes a frontend in place of old, which may be nil.
func (s *state) put(c *change, old, f *frontend) {
	sets := s.sets[f.key.family]
	var before []netip.AddrPort
	if old != nil {
		before = old.endpoints
	}
	f.endpoints = assign(before, f.endpoints)
	gone := s.putSlots(c, f, before)
	if old != nil {
		gone = gone || slices.ContainsFunc(old.draining, func(e netip.AddrPort) bool { return !f.serves(e) })
	}
	fresh := old == nil || len(before) == 0
	if old == nil || old.verdict() != f.verdict() {
		name := sets.mapOf(f.key)
		if old != nil {
			c.del[name] = append(c.del[name], nft.Element{Key: f.key.value()})
		}
		c.add[name] = append(c.add[name], nft.Element{Key: f.key.value(), Verdict: f.verdict()})
	}
	if old != nil {
		s.count(old, -1)
	}
	s.count(f, 1)
	s.frontends[f.key] = f
	c.touch(f.key, gone || fresh)
}

// putSlots writes the slots that differ and tells whether an endpoint is gone.
func (s *state) putSlots(c *change, f *frontend, before []netip.AddrPort) (gone bool) {
	name := s.sets[f.key.family].slotsOf(f.key)
	for i := range max(len(before), len(f.endpoints)) {
		if i < len(before) && i < len(f.endpoints) && before[i] == f.endpoints[i] {
			continue
		}
		if i < len(before) {
			c.del[name] = append(c.del[name], nft.Element{Key: f.key.slot(i)})
			s.hairpin.change(before[i].Addr(), -1)
			gone = true
		}
		if i < len(f.endpoints) {
			e := f.endpoints[i]
			c.add[name] = append(c.add[name], nft.Element{Key: f.key.slot(i), Data: make(nft.Value, 0, 20).Addr(e.Addr()).Port(e.Port())})
			s.hairpin.change(e.Addr(), 1)
		}
	}
	return gone
}

// settle turns what the counted sets gained and lost into elements and chains.
func (s *state) settle(c *change) {
	one := func(a netip.Addr) (string, nft.Element) {
		return s.sets[nft.FamilyOf(a)].clusterIPs.Name, nft.Element{Key: nft.Value(nil).Addr(a)}
	}
	pair := func(a netip.Addr) (string, nft.Element) {
		return s.sets[nft.FamilyOf(a)].hairpin.Name, nft.Element{Key: make(nft.Value, 0, 32).Addr(a).Addr(a)}
	}
	remote := func(a netip.Addr) (string, nft.Element) {
		return s.sets[nft.FamilyOf(a)].remotes.Name, nft.Element{Key: nft.Value(nil).Addr(a)}
	}
	into := func(m map[string][]nft.Element, of func(netip.Addr) (string, nft.Element)) func(netip.Addr) {
		return func(a netip.Addr) {
			name, e := of(a)
			m[name] = append(m[name], e)
		}
	}
	s.clusterIPs.settle(into(c.add, one), into(c.del, one))
	s.hairpin.settle(into(c.add, pair), into(c.late, pair))
	s.remotes.settle(into(c.add, remote), into(c.late, remote))
	s.guards.settle(
		func(g guard) { c.newGuards = append(c.newGuards, g) },
		func(g guard) { c.oldGuards = append(c.oldGuards, g) })
	s.balancers.settle(
		func(b balancer) { c.newChains = append(c.newChains, b) },
		func(b balancer) { c.oldChains = append(c.oldChains, b) })
	s.clients.settle(
		func(cl client) { c.newClients = append(c.newClients, cl) },
		func(cl client) { c.oldClients = append(c.oldClients, cl) })
	for name := range s.stickies.before {
		if s.stickies.users[name] == 0 {
			delete(s.stickyOf, name)
		}
	}
	s.stickies.settle(
		func(name string) { c.newStickies[name] = s.stickyOf[name] },
		func(name string) { c.oldStickies = append(c.oldStickies, name) })
}

// chains makes the chains that the change needs. It is a transaction of its own,
// before the others: a packet that has begun its way through the old rules may
// find a new element, and would see a chain of the same transaction still empty.
func (c *change) chains(tx *nft.Tx) *nft.Tx {
	for _, b := range c.newChains {
		tx.SetRules(nft.Chain{Name: b.name()}, b.rules()...)
	}
	c.addSticky(tx)
	for _, g := range c.newGuards {
		tx.SetRules(nft.Chain{Name: g.name()}, g.rules()...)
	}
	return tx
}

// tx is the change of elements as a transaction. Chains that they leave, and late
// elements, are deleted later.
func (c *change) tx() *nft.Tx {
	tx := nft.NewTx()
	for _, f := range families() {
		for _, set := range f.all() {
			tx.DeleteElements(set, c.del[set.Name]...)
			tx.AddElements(set, c.add[set.Name]...)
		}
	}
	return tx
}
