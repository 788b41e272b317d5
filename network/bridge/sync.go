package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/pausa-run/pausa/internal/nft"
)

func newTx() *nft.Tx { return nft.NewTx() }

// Sync writes the whole host side of a network again, from its configuration and
// the records of its attachments: bridge, ports, addresses, kernel settings, rules.
// It heals what somebody deleted or flushed.
func (p *Plugin) Sync(conf []byte) error {
	cfg, err := ParseConf(conf)
	if err != nil {
		return err
	}
	st, err := openStore(cfg.DataDir, cfg.Name)
	if err != nil {
		return err
	}
	c := call{Plugin: p, conf: cfg, store: st, rules: rules{cfg.Bridge}}
	_, err = c.ensureHost(true)
	return err
}

// ensureHost makes the host side unless this process has done so already and
// the bridge is still the same.
func (c call) ensureHost(force bool) (hostState, error) {
	key := fmt.Sprint(c.conf.DataDir, c.conf.Name, c.conf.Bridge, c.conf.MTU, c.conf.Ranges, c.conf.NonMasqueradeCIDRs)
	if !force {
		c.mu.Lock()
		state, ok := c.ensured[key]
		c.mu.Unlock()
		if ok {
			now, err := c.bridge(c.conf.Bridge)
			if err == nil && now != nil && now.Index == state.bridge.Index {
				return state, nil
			}
		}
	}
	state, err := c.makeHost()
	if err != nil {
		return state, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ensured[key] = state
	return state, nil
}

func (c call) makeHost() (hostState, error) {
	c.making.Lock()
	defer c.making.Unlock()
	unlock, err := c.store.lock()
	if err != nil {
		return hostState{}, err
	}
	defer unlock()
	all, err := c.store.attachments("attached")
	if err != nil {
		c.log.Error("read records of attachments; the others are synced", "error", err)
	}
	ranges := slices.Clone(c.conf.Ranges)
	for _, a := range all {
		for _, r := range a.Ranges {
			if !slices.Contains(ranges, r) {
				ranges = append(ranges, r)
			}
		}
	}
	state := hostState{mtu: c.conf.MTU}
	if state.mtu == 0 {
		state.mtu = c.egressMTU()
	}
	if state.bridge, err = c.ensureBridge(c.conf.Bridge, state.mtu, gateways(ranges)); err != nil {
		return state, err
	}
	if err := c.writeRules(ranges, all); err != nil {
		return state, err
	}
	c.forgetMissed(all...)
	if err := c.local.follow(c.network(), all, c.lives); err != nil { // all else works
		c.log.Error("publish host ports on loopback", "network", c.conf.Name, "error", err)
	}
	return state, c.ensurePorts(state.bridge, all)
}

func gateways(ranges []netip.Prefix) []netip.Prefix {
	all := make([]netip.Prefix, len(ranges))
	for i, r := range ranges {
		all[i] = gateway(r)
	}
	return all
}

// writeRules replaces all of the network's rules and elements. The caller holds the store's lock.
func (c call) writeRules(ranges []netip.Prefix, all []attachment) error {
	tx := newTx()
	multicast := []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}
	c.rules.write(tx, ranges, slices.Concat(ranges, c.conf.NonMasqueradeCIDRs, multicast))
	elems := map[string][]nft.Element{}
	for _, a := range all {
		for set, list := range c.rules.elements(a) {
			elems[set] = append(elems[set], list...)
		}
	}
	for _, s := range c.rules.sets() {
		tx.FlushSet(s)
		tx.AddElements(s, elems[s.Name]...)
	}
	if err := wrapRules(c.nft.Commit(tx)); err != nil {
		return err
	}
	return c.guard.replace(c.conf.Bridge, all)
}

// ensurePorts puts living links back on the bridge: it may have been made anew, or been down.
func (c call) ensurePorts(br *netlink.Bridge, all []attachment) error {
	if len(all) == 0 {
		return nil
	}
	links, err := c.host.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list links: %w", err)
	}
	byName := map[string]netlink.Link{}
	for _, l := range links {
		byName[l.Attrs().Name] = l
	}
	var errs []error
	ends := []end{{c.host, br.Name}}
	for _, a := range all {
		l := byName[a.Veth]
		if l == nil {
			continue // the pod's namespace has gone
		}
		mac, err := net.ParseMAC(a.MAC)
		errs = append(errs, err, c.enslave(l, br, mac, a.Addrs), c.host.LinkSetUp(l))
		ends = append(ends, end{c.host, a.Veth})
	}
	if err := errors.Join(errs...); err != nil || len(ends) == 1 {
		return err
	}
	return awaitUp(ends)
}

// status is STATUS: the surest answer is to make the host side. A full range is
// an error too.
func (c call) status() error {
	if _, err := c.ensureHost(false); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "make bridge "+c.conf.Bridge, err.Error())
	}
	used, err := c.store.names("addresses")
	if err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "read addresses", err.Error())
	}
	for _, r := range c.conf.Ranges {
		taken := 0
		for name := range used {
			if a, err := netip.ParseAddr(name); err == nil && r.Contains(a) {
				taken++
			}
		}
		if hostBits := r.Addr().BitLen() - r.Bits(); hostBits < 30 && taken >= usable(r) {
			return types.NewError(types.ErrLimitedConnectivity, "give out addresses", fmt.Sprintf("%v in %s", errFull, r))
		}
	}
	return nil
}

// usable is how many pods fit into a range of fewer than 2^30 addresses.
func usable(r netip.Prefix) int {
	n := 1<<(r.Addr().BitLen()-r.Bits()) - 2
	if r.Addr().Is4() {
		n--
	}
	return n
}

// Spoofed counts the packets dropped on a bridge because they came from an address that is not
// their pod's, since the rules were written last.
func (p *Plugin) Spoofed(bridge string) (packets uint64, err error) { return p.guard.drops(bridge) }
