package bridge

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

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
	key := fmt.Sprint(c.conf.DataDir, c.conf.Name, c.conf.Bridge, c.conf.MTU, c.conf.Ranges, c.conf.NonMasqueradeCIDRs, c.conf.Apart)
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
	state, err := c.makeHost(force)
	if err != nil {
		return state, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ensured[key] = state
	return state, nil
}

// makeHost makes all of the host side; with heal, also the links of attachments
// that have lost theirs.
func (c call) makeHost(heal bool) (hostState, error) {
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
	state := hostState{mtu: c.wantedMTU()}
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
	return state, c.ensurePorts(state, all, heal)
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
	c.rules.write(tx, ranges, slices.Concat(ranges, c.conf.NonMasqueradeCIDRs, multicast), c.conf.Apart)
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
	for _, f := range families() {
		ranges := c.conf.rangesOf(f)
		if len(ranges) > 0 && !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return roomIn(r, used) }) {
			return types.NewError(types.ErrLimitedConnectivity, "give out addresses", fmt.Sprintf("%v in %v", errFull, ranges))
		}
	}
	return nil
}

// roomIn tells whether a range has a free address.
func roomIn(r netip.Prefix, used map[string]bool) bool {
	if hostBits := r.Addr().BitLen() - r.Bits(); hostBits >= 30 {
		return true
	}
	taken := 0
	for name := range used {
		if a, err := netip.ParseAddr(name); err == nil && r.Contains(a) {
			taken++
		}
	}
	return taken < usable(r)
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
