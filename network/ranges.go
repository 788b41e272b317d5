package network

import (
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/pausa-run/pausa/network/bridge"
)

// ranges are those that this host's pods have, or had, addresses of.
type ranges struct {
	all    []netip.Prefix
	follow func([]netip.Prefix)
}

// FollowRanges calls f with the ranges of this host's pods now, and again with all
// of them whenever there is another one: a kubelet names its own, and other CNI
// plugins have theirs. It is for one f.
func (m *Manager) FollowRanges(f func([]netip.Prefix)) {
	m.rangesMu.Lock()
	defer m.rangesMu.Unlock()
	m.ranges.follow = f
	f(slices.Clone(m.ranges.all))
}

func (m *Manager) addRanges(more []netip.Prefix) {
	m.rangesMu.Lock()
	defer m.rangesMu.Unlock()
	before := len(m.ranges.all)
	for _, r := range more {
		if r = r.Masked(); !slices.Contains(m.ranges.all, r) {
			m.ranges.all = append(m.ranges.all, r)
		}
	}
	if len(m.ranges.all) > before && m.ranges.follow != nil {
		m.ranges.follow(slices.Clone(m.ranges.all))
	}
}

// openRanges gathers those that are known from the configuration and the records.
func (m *Manager) openRanges() {
	m.addRanges(m.opts.PodCIDRs)
	for _, n := range m.opts.Networks {
		m.addRanges(n.Ranges)
	}
	m.addRanges(m.cidrs)
	all, err := m.attempts()
	if err != nil {
		m.log.Error("read attempts", "error", err)
	}
	for _, a := range all {
		if a.Result == nil {
			continue
		}
		m.addRanges(a.Result.Ranges)
		if list, err := libcni.NetworkConfFromBytes(a.Conf); err == nil {
			_ = eachBuiltIn(list, func(conf []byte) error { // of a range that a kubelet named before
				c, err := bridge.ParseConf(conf)
				if err == nil {
					m.addRanges(c.Ranges)
				}
				return err
			})
		}
	}
}

// rangesBehind are the ranges of a pod's addresses that lie behind this host: its
// link has an end here. Those of pods that hang on a network of the host's
// neighbourhood (macvlan) do not.
func rangesBehind(r *types100.Result, addrs []netip.Addr) (out []netip.Prefix) {
	here := slices.ContainsFunc(r.Interfaces, func(i *types100.Interface) bool { return i != nil && i.Sandbox == "" })
	for _, ip := range r.IPs {
		if !here || ip == nil {
			continue
		}
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		bits, _ := ip.Address.Mask.Size()
		p := netip.PrefixFrom(a.Unmap(), bits).Masked()
		if slices.Contains(addrs, a.Unmap()) && p.IsValid() && !p.IsSingleIP() {
			out = append(out, p)
		}
	}
	return out
}
