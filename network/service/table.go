package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pausa-run/pausa/internal/loopback"
	"github.com/pausa-run/pausa/internal/nft"
)

// Options says what a Table serves.
type Options struct {
	// ServiceCIDRs are the ranges of cluster IPs: what no Service has there is
	// dropped, and the host has a route to it.
	ServiceCIDRs []netip.Prefix
	// NodePortMin and NodePortMax bound the node ports that Services may have;
	// both 0: any port.
	NodePortMin, NodePortMax uint16
	// PodCIDRs are the ranges of this host's pods.
	PodCIDRs []netip.Prefix
	// RouteDev is the bridge that carries the route of the service ranges, so
	// that the host itself can connect; while it is not there, another device
	// does. "": no route.
	RouteDev string
	// RulesNS is the file of the network namespace that gets the rules; "": that of
	// the calling thread.
	RulesNS string
	// NoLoopback leaves node ports on 127.0.0.1 and ::1 unserved.
	NoLoopback bool
	Log        *slog.Logger // nil: the default one
}

// Table keeps the Services of one network namespace in the kernel. Its methods
// may be called by several goroutines.
type Table struct {
	opts  Options
	rules ruleset
	flows flows
	route router
	local *localPorts // nil: not served
	// health answers load balancers.
	health *healthPorts

	mu    sync.Mutex // guards what follows; held during a Sync
	state *state
	known bool // the kernel holds the state
	stale map[key]bool
	// routed: the routes were made once; Maintain makes them again.
	routed bool
	rest   rest
}

// ruleset is the table in the kernel: *nft.Conn, or *nft.Fake in tests.
type ruleset interface {
	Commit(*nft.Tx) error
	Elements(nft.Set) ([]nft.Element, error)
	Chains() ([]string, error)
	Sets() ([]string, error)
	Watch(ctx context.Context, match func(name string) bool) (<-chan string, error)
	Close() error
}

// Open connects to the kernel of the calling thread's network namespace and
// makes the chains. What an earlier run left stays in force until the first
// Sync replaces it, so that a restart interrupts nobody.
func Open(ctx context.Context, opts Options) (*Table, error) {
	if opts.RulesNS == "" {
		opts.RulesNS = "/proc/thread-self/ns/net"
	}
	conn, err := nft.OpenAt(opts.RulesNS)
	if err != nil {
		return nil, fmt.Errorf("open service table: %w", err)
	}
	handle, err := openHandle()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open service table: %w", err), conn.Close())
	}
	t := newTable(opts, conn, handle, handle)
	if err := t.makeChains(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open service table: %w", err), t.Close())
	}
	return t, nil
}

func newTable(opts Options, rules ruleset, fl flows, rt router) *Table {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	t := &Table{opts: opts, rules: rules, flows: fl, route: rt, state: newState(), stale: map[key]bool{}, health: newHealthPorts(), rest: newRest()}
	if !opts.NoLoopback {
		t.local = newLocalPorts(loopback.New(opts.Log, nil))
	}
	return t
}

// makeChains writes the static part. Sets and chains of another shape, of an
// earlier version, are replaced.
func (t *Table) makeChains(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tx := nft.NewTx()
	t.static(tx)
	err := t.rules.Commit(tx)
	if err == nil {
		return nil
	}
	t.opts.Log.Warn("replacing service chains of another shape", "cause", err)
	if err := t.deleteAll(); err != nil {
		return err
	}
	return t.rules.Commit(tx)
}

// static adds the chains and sets that are always there.
func (t *Table) static(tx *nft.Tx) {
	for _, f := range families() {
		for _, s := range f.all() {
			tx.AddSet(s)
		}
	}
	chains, rules := staticChains(t.opts.ServiceCIDRs, t.opts.PodCIDRs)
	for _, c := range chains {
		tx.SetRules(c, rules[c.Name]...)
	}
}

// SetPodCIDRs changes the ranges of this host's pods.
func (t *Table) SetPodCIDRs(cidrs []netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if slices.Equal(cidrs, t.opts.PodCIDRs) {
		return nil
	}
	t.opts.PodCIDRs = slices.Clone(cidrs)
	tx := nft.NewTx()
	chains, rules := staticChains(t.opts.ServiceCIDRs, t.opts.PodCIDRs)
	for _, c := range chains {
		if c.Name == chainPostrouting {
			tx.SetRules(c, rules[c.Name]...)
		}
	}
	if err := t.rules.Commit(tx); err != nil {
		return fmt.Errorf("write the ranges of pods: %w", err)
	}
	return nil
}

// Sync makes the kernel hold exactly the desired Services. It works out the
// difference to what was written last and commits that as one transaction, after
// one that makes new chains if there are any, so its cost grows with the change. With an error every Service that is not named
// in it has been brought about; the next Sync tries the others again.
func (t *Table) Sync(ctx context.Context, desired []Service) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if !t.known {
		return t.rewrite(desired)
	}
	desired, invalid := t.withinRange(desired)
	c, err := t.state.plan(desired)
	return t.apply(c, append(invalid, err))
}

// Update is Sync for some Services: those of set shall be as they are there,
// those of gone not at all, all others as before. Its cost is that of the change,
// however many others there are.
func (t *Table) Update(ctx context.Context, set []Service, gone []ID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	set, invalid := t.withinRange(set)
	c, err := t.state.update(set, gone)
	if !t.known {
		return t.rewrite(t.state.all())
	}
	return t.apply(c, append(invalid, err))
}

// apply commits a change of the state.
func (t *Table) apply(c *change, invalid []error) error {
	if !c.empty() {
		if err := t.commit(c.chains(nft.NewTx()), c.tx()); err != nil {
			// Somebody else changed the table: what was known is worth nothing.
			t.opts.Log.Warn("rewriting all services", "cause", err)
			t.note(c)
			return t.rewrite(t.state.all())
		}
		t.rest.note(c)
		if err := t.tidy(time.Now()); err != nil {
			t.opts.Log.Warn("rewriting all services", "cause", err)
			return t.rewrite(t.state.all())
		}
	}
	return errors.Join(append(invalid, t.after(c, false))...)
}

// Resync forgets what was written and writes everything again, as the last
// Sync wanted it, in one transaction that no packet sees half-done.
func (t *Table) Resync(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	return t.rewrite(t.state.all())
}

// withinRange takes away the node ports that are not in the range.
func (t *Table) withinRange(desired []Service) ([]Service, []error) {
	lo, hi := t.opts.NodePortMin, t.opts.NodePortMax
	if lo == 0 && hi == 0 {
		return desired, nil
	}
	var errs []error
	for i, s := range desired {
		for j, p := range s.Ports {
			if p.NodePort == 0 || (p.NodePort >= lo && p.NodePort <= hi) {
				continue
			}
			if len(errs) == 0 {
				desired = slices.Clone(desired)
			}
			errs = append(errs, fmt.Errorf("service %s: node port %d is outside %d-%d: choose one within", s.id(), p.NodePort, lo, hi))
			s = s.clone()
			s.Ports[j].NodePort = 0
			desired[i] = s
		}
	}
	return desired, errs
}

// rewrite replaces all that the table holds of ours. The caller holds mu.
func (t *Table) rewrite(desired []Service) error {
	for k := range t.state.frontends {
		t.stale[k] = true
	}
	err := t.staleInKernel()
	if err != nil {
		t.opts.Log.Warn("reading what an earlier run left", "cause", err)
	}
	t.known, t.state = false, newState()
	desired, outside := t.withinRange(desired)
	c, invalid := t.state.plan(desired)
	invalid = errors.Join(append(outside, invalid)...)
	if err := t.replace(c); err != nil {
		t.opts.Log.Warn("replacing the service chains", "cause", err)
		if err := t.deleteAll(); err != nil {
			return errors.Join(invalid, err)
		}
		if err := t.replace(c); err != nil {
			return errors.Join(invalid, fmt.Errorf("write services: %w", err))
		}
	}
	t.known = true
	return errors.Join(invalid, t.after(c, true))
}

// staleInKernel notes the frontends of an earlier run, whose connections may
// lead to endpoints that are gone.
func (t *Table) staleInKernel() error {
	have, err := t.rules.Sets()
	if err != nil {
		return err
	}
	for _, f := range families() {
		for _, set := range []nft.Set{f.frontends, f.nodePorts} {
			if !slices.Contains(have, set.Name) {
				continue
			}
			elems, err := t.rules.Elements(set)
			if err != nil {
				return err
			}
			for _, e := range elems {
				if k, ok := parseKey(f.family, e.Key); ok && k.connectionless() {
					t.stale[k] = true
				}
			}
		}
	}
	return nil
}

// replace commits the state's whole content in place of what is there.
func (t *Table) replace(c *change) error {
	chains, err := t.rules.Chains()
	if err != nil {
		return err
	}
	first, tx := nft.NewTx(), nft.NewTx()
	for _, f := range families() {
		for _, s := range f.all() {
			first.AddSet(s)
			tx.FlushSet(s)
		}
	}
	t.static(first)
	sets, err := t.rules.Sets()
	if err != nil {
		return err
	}
	tx.Append(c.tx())
	if err := t.commit(c.chains(first), tx); err != nil {
		return err
	}
	t.rest = leftOver(chains, sets)
	t.rest.note(c)
	return nil
}

// commit does one transaction after the other; an empty one costs nothing.
func (t *Table) commit(all ...*nft.Tx) error {
	for _, tx := range all {
		if tx.Empty() {
			continue
		}
		if err := t.rules.Commit(tx); err != nil {
			return err
		}
	}
	return nil
}

// after does what follows a transaction: connections to endpoints that are gone
// are forgotten, loopback listeners follow the node ports, the host's route is
// there. all: the state is new.
func (t *Table) after(c *change, all bool) error {
	t.note(c)
	var errs []error
	if err := t.forgetFlows(); err != nil {
		errs = append(errs, err)
	}
	if t.local != nil {
		errs = append(errs, t.local.follow(t.state, c.keys, all))
	}
	errs = append(errs, t.health.follow(t.state))
	if t.opts.RouteDev != "" && !t.routed {
		errs = append(errs, t.assertRoutes())
	}
	return errors.Join(errs...)
}

// note remembers whose connections may be stale until they have been forgotten.
func (t *Table) note(c *change) {
	for _, k := range c.stale {
		t.stale[k] = true
	}
}

// deleteAll removes our chains and sets, and nothing else of the table.
func (t *Table) deleteAll() error {
	chains, err := t.rules.Chains()
	if err != nil {
		return err
	}
	sets, err := t.rules.Sets()
	if err != nil {
		return err
	}
	ours := func(name string) bool { return strings.HasPrefix(name, prefix) }
	tx := nft.NewTx()
	for _, name := range chains {
		if ours(name) {
			tx.FlushChain(name)
		}
	}
	for _, name := range sets {
		if ours(name) {
			tx.DeleteSet(nft.Set{Name: name})
		}
	}
	for _, name := range chains {
		if ours(name) {
			tx.DeleteChain(name)
		}
	}
	if tx.Empty() {
		return nil
	}
	if err := t.rules.Commit(tx); err != nil {
		return fmt.Errorf("delete service chains: %w", err)
	}
	return nil
}

// Close ends the connections and the loopback listeners. The rules stay, and
// with them the Services, until another Table takes over or Remove.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	if t.local != nil {
		errs = append(errs, t.local.close())
	}
	errs = append(errs, t.health.close())
	return errors.Join(append(errs, t.rules.Close(), t.flows.Close())...)
}

// Remove deletes our chains, maps and the routes of the service ranges; the
// table itself stays for its other users. It is idempotent.
func (t *Table) Remove(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	for k := range t.state.frontends {
		t.stale[k] = true
	}
	readErr := t.staleInKernel()
	t.known, t.state = false, newState()
	errs := []error{readErr, t.deleteAll(), t.forgetFlows()}
	if t.local != nil {
		errs = append(errs, t.local.close())
	}
	errs = append(errs, t.health.close())
	if t.opts.RouteDev != "" {
		errs = append(errs, t.removeRoutes())
	}
	return errors.Join(errs...)
}
