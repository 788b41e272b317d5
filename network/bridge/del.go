package bridge

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// del is DEL: rules and host ports are gone when it returns; the link, and
// after it the addresses, a little later (Drain waits for that). It is not an
// error if nothing is there.
func (c call) del() error {
	known, err := c.retire()
	if err != nil || !known {
		return err
	}
	c.reapLater(c.store, c.conf.Bridge, c.owner)
	return nil
}

// undo is DEL at once: nothing is left when it returns.
func (c call) undo() error {
	known, err := c.retire()
	if err != nil || !known {
		return err
	}
	return c.reap(c.store, c.conf.Bridge, []string{c.owner})
}

// retire takes the owner out of the rules, frees its host ports and marks the
// rest for deletion. known is false if the owner holds nothing.
func (c call) retire() (known bool, err error) {
	defer c.setLiving(false)
	a, err := c.store.load("attached", c.owner)
	if errors.Is(err, fs.ErrNotExist) {
		return c.retireUnrecorded()
	}
	if err != nil { // unreadable: what it holds is found by searching
		if err := removeFile(c.store.path("attached", c.owner)); err != nil {
			return false, err
		}
		return c.retireUnrecorded()
	}
	return true, c.close(a)
}

// close takes an attachment out of the rules and frees its host ports, whatever of
// it has been done before.
func (c call) close(a attachment) error {
	unlock, err := c.store.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.store.detach(c.owner); err != nil {
		return err
	}
	c.unwatch(a.Veth)
	// What another pod has by now is that one's.
	a.Ports = slices.DeleteFunc(a.Ports, func(p hostPort) bool {
		has, _ := c.store.portOwner(p.fileName())
		return has != c.owner
	})
	return errors.Join(
		c.removeElements(c.rules, a),
		c.guard.remove(c.conf.Bridge, a),
		c.local.end(c.network(), c.owner), // under the lock: a Sync must not open them again
		c.store.removePorts(c.owner, a.Ports),
	)
}

// retireUnrecorded is for what an ADD left that ended before its record, or a
// DEL after it detached the record.
func (c call) retireUnrecorded() (known bool, err error) {
	if err := c.local.end(c.network(), c.owner); err != nil {
		return true, err
	}
	if a, err := c.store.load("detached", c.owner); err == nil {
		return true, c.close(a)
	}
	ports, err := c.store.portsOf(c.owner)
	if err != nil {
		return false, err
	}
	names, err := c.store.names("addresses")
	if err != nil {
		return false, err
	}
	a := attachment{Version: attachmentVersion, Owner: c.owner, Veth: vethName(c.conf.Bridge, c.owner)}
	for name := range names {
		if addr, err := netip.ParseAddr(name); err == nil && c.store.addressOwner(name) == c.owner {
			a.Addrs = append(a.Addrs, addr)
		}
	}
	if len(ports) == 0 && len(a.Addrs) == 0 {
		return false, nil
	}
	if err := c.store.writeDetached(a); err != nil {
		return true, err
	}
	return true, c.store.removePorts(c.owner, ports)
}

// linger is how long deletions are gathered: the kernel takes 10 to 30 ms for one
// link and 10 ms for looking through all connections, and by then most links have
// gone with their pod's namespace.
const linger = 250 * time.Millisecond

// reaper deletes links in the background.
type reaper struct {
	mu    sync.Mutex // guards what follows
	queue map[reapKey][]string
	hurry chan struct{} // closed to end the linger
	done  chan struct{} // closed when the goroutine ends; nil when there is none
	one   sync.Mutex    // held while links are deleted
}

type reapKey struct{ dir, bridge string }

// reapLater queues the owner; one goroutine works through the queue.
func (p *Plugin) reapLater(s *store, bridge, owner string) {
	r := &p.reaper
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.queue == nil {
		r.queue = map[reapKey][]string{}
	}
	key := reapKey{s.dir, bridge}
	r.queue[key] = append(r.queue[key], owner)
	if r.done == nil {
		r.done, r.hurry = make(chan struct{}), make(chan struct{})
		go p.reapQueue(r.hurry)
	}
}

func (p *Plugin) reapQueue(hurry <-chan struct{}) {
	for {
		select {
		case <-hurry:
		case <-time.After(linger):
		}
		work := p.reaper.take()
		if work == nil {
			return
		}
		for key, owners := range work {
			if err := p.reap(&store{dir: key.dir}, key.bridge, owners); err != nil {
				p.log.Error("delete links; the next collection tries again", "owners", owners, "error", err)
			}
		}
	}
}

// take empties the queue; with nothing in it the goroutine is over.
func (r *reaper) take() map[reapKey][]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	work := r.queue
	r.queue = nil
	if work == nil {
		close(r.done)
		r.done = nil
	}
	return work
}

// Drain waits until the deletions begun so far are done.
func (p *Plugin) Drain() {
	r := &p.reaper
	r.mu.Lock()
	done := r.done
	if done != nil {
		select {
		case <-r.hurry:
		default:
			close(r.hurry)
		}
	}
	r.mu.Unlock()
	if done != nil {
		<-done
	}
}

// reap deletes the links of detached owners and then frees their addresses.
func (p *Plugin) reap(s *store, bridge string, owners []string) error {
	p.reaper.one.Lock()
	defer p.reaper.one.Unlock()
	var gone []attachment
	var errs []error
	for _, owner := range owners {
		a, err := s.load("detached", owner)
		if errors.Is(err, fs.ErrNotExist) {
			continue // done by somebody else
		}
		if err != nil {
			a = attachment{Owner: owner}
		}
		veth := vethName(bridge, owner)
		if err := errors.Join(deleteLink(p.slow, veth), deleteLink(p.slow, ifbName(veth))); err != nil {
			errs = append(errs, err)
			continue
		}
		gone = append(gone, a)
	}
	if len(gone) == 0 {
		return errors.Join(errs...)
	}
	p.forgetNeighbours(bridge, gone)
	p.forgetConnections(gone)
	for _, a := range gone {
		err := s.releaseAddrs(a.Owner, a.Addrs)
		if err == nil {
			err = removeFile(s.path("detached", a.Owner))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// forgetNeighbours removes what enslave told the host: the next pod with the
// address has another hardware address.
func (p *Plugin) forgetNeighbours(bridge string, gone []attachment) {
	br, err := p.slow.LinkByName(bridge)
	if err != nil {
		return
	}
	for _, a := range gone {
		for _, addr := range a.Addrs {
			family := netlink.FAMILY_V4
			if addr.Is6() {
				family = netlink.FAMILY_V6
			}
			n := &netlink.Neigh{LinkIndex: br.Attrs().Index, Family: family, IP: addr.AsSlice()}
			if err := p.slow.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
				p.log.Warn("forget neighbour; a new pod with this address may be out of reach for a minute", "address", addr, "error", err)
			}
		}
	}
}

// forgetConnections removes the tracked connections of addresses that are gone:
// the next pod with the address must not get their packets.
func (p *Plugin) forgetConnections(gone []attachment) {
	dead := deadFlows{}
	families := map[netlink.InetFamily]bool{}
	for _, a := range gone {
		for _, addr := range a.Addrs {
			dead[addr] = true
			if addr.Is4() {
				families[unix.AF_INET] = true
			} else {
				families[unix.AF_INET6] = true
			}
		}
	}
	for f := range families {
		if _, err := p.slow.ConntrackDeleteFilters(netlink.ConntrackTable, f, dead); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			p.log.Warn("forget connections of deleted pods", "error", err)
		}
	}
}

// deadFlows matches connections of addresses that are gone.
type deadFlows map[netip.Addr]bool

// MatchConntrackFlow is netlink's filter.
func (d deadFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range [][]byte{flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && d[a.Unmap()] {
			return true
		}
	}
	return false
}

// gc is GC: everything is deleted that is not valid and not made by this process.
func (c call) gc() error {
	valid := map[string]bool{}
	for _, v := range c.conf.ValidAttachments {
		valid[v.ContainerID+":"+v.IfName] = true
	}
	owners, err := c.store.owners()
	if err != nil {
		return types.NewError(types.ErrIOFailure, "list attachments", err.Error())
	}
	var errs []error
	known := map[string]bool{}
	for owner := range owners {
		if c.keeps(owner, valid) {
			known[vethName(c.conf.Bridge, owner)] = true
			continue
		}
		stale := c
		stale.owner = owner
		errs = append(errs, stale.undo())
	}
	if len(errs) > 0 { // an owner without a record may have had elements in the rules
		_, err := c.ensureHost(true)
		errs = append(errs, err)
	}
	errs = append(errs, c.store.sweepTemp(func(owner string) bool { return c.keeps(owner, valid) }))
	return errors.Join(append(errs, c.sweepLinks(known))...)
}

// keeps tells whether gc leaves an owner alone. One that is being detached is not kept.
func (c call) keeps(owner string, valid map[string]bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.living[owner] {
		return true
	}
	_, err := os.Lstat(c.store.path("detached", owner))
	return valid[owner] && errors.Is(err, fs.ErrNotExist)
}

// sweepLinks deletes ports of ours that no record knows of: the records were
// lost. Links come after their addresses and go before them, so that an address
// is held by whoever has a link.
func (c call) sweepLinks(known map[string]bool) error {
	links, err := c.slow.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return err
	}
	owners, err := c.store.owners()
	if err != nil {
		return err
	}
	for owner := range owners {
		known[vethName(c.conf.Bridge, owner)] = true
	}
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		prefix := VethPrefix(c.conf.Bridge)
		ours := len(name) == len(prefix)+9 && (strings.HasPrefix(name, prefix) || strings.HasPrefix(name, ifbName(prefix)))
		if ours && !known["pv"+name[2:]] {
			errs = append(errs, deleteLink(c.slow, name))
		}
	}
	return errors.Join(errs...)
}
