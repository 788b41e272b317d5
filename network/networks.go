package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/pausa-run/pausa/network/bridge"
)

// builtinName is the name of the network that is used without a configuration.
const builtinName = "pausa"

// Named is a further built-in network, for pods that choose it. It has a bridge of its own,
// BRIDGE-NAME, and its pods reach those of other networks only if that is said.
type Named struct {
	Name   string
	Ranges []netip.Prefix
}

// CheckNamed says what is wrong with the further networks, nil if nothing. base is the bridge of
// the first one and taken its ranges; connected are pairs of names.
func CheckNamed(base string, taken []netip.Prefix, all []Named, connected [][2]string) error {
	names := []string{builtinName}
	for _, n := range all {
		if strings.ContainsFunc(n.Name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) || n.Name == "" {
			return fmt.Errorf("network %q: want lower-case letters and digits", n.Name)
		}
		if len(base)+1+len(n.Name) > 15 {
			return fmt.Errorf("network %s: its bridge %s would be longer than 15 characters; choose a name of at most %d", n.Name, bridgeOf(base, n.Name), 14-len(base))
		}
		if slices.Contains(names, n.Name) {
			return fmt.Errorf("network %s: there are two of this name", n.Name)
		}
		names = append(names, n.Name)
		taken = append(slices.Clone(taken), n.Ranges...)
		if err := bridge.CheckRanges(taken); err != nil || len(n.Ranges) == 0 {
			return fmt.Errorf("network %s: %w", n.Name, errors.Join(err, bridge.CheckRanges(n.Ranges)))
		}
	}
	for _, pair := range connected {
		for _, name := range pair {
			if !slices.Contains(names, name) {
				return fmt.Errorf("connect %s and %s: there is no network %s, but %s", pair[0], pair[1], name, strings.Join(names, ", "))
			}
		}
		if pair[0] == pair[1] {
			return fmt.Errorf("connect %s and %s: want two networks", pair[0], pair[1])
		}
	}
	return nil
}

func bridgeOf(base, name string) string {
	if name == builtinName {
		return base
	}
	return base + "-" + name
}

// networkFor is the network that a pod chose, or the one of pods that choose none.
func (m *Manager) networkFor(p Pod) (*libcni.NetworkConfigList, error) {
	name := p.Annotations[AnnotationNetwork]
	if name == "" {
		return m.confList()
	}
	if slices.Contains(m.builtIn(), name) {
		return m.builtinList(name)
	}
	lists, errs := m.confLists()
	for _, l := range lists {
		if l.Name == name {
			return l, nil
		}
	}
	known := m.builtIn()
	for _, l := range lists {
		known = append(known, l.Name)
	}
	errs = append(errs, fmt.Errorf("annotation %s: there is no network %q; there are %s", AnnotationNetwork, name, strings.Join(known, ", ")))
	return nil, errors.Join(errs...)
}

// builtIn names the built-in networks, the first one first.
func (m *Manager) builtIn() []string {
	names := []string{builtinName}
	for _, n := range m.opts.Networks {
		names = append(names, n.Name)
	}
	return names
}

func (m *Manager) rangesOf(name string) []netip.Prefix {
	for _, n := range m.opts.Networks {
		if n.Name == name {
			return n.Ranges
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.cidrs)
}

// builtinList is the configuration of a built-in network.
func (m *Manager) builtinList(name string) (*libcni.NetworkConfigList, error) {
	direct := slices.Clone(m.opts.NonMasqueradeCIDRs)
	for _, r := range m.opts.Routes {
		direct = append(direct, r.Dst)
	}
	var apart []string
	for _, other := range m.builtIn() {
		if other == name {
			continue
		}
		direct = append(direct, m.rangesOf(other)...)
		if !slices.Contains(m.opts.Connected, [2]string{name, other}) && !slices.Contains(m.opts.Connected, [2]string{other, name}) {
			apart = append(apart, bridgeOf(m.opts.Bridge, other))
		}
	}
	conf := struct {
		CNIVersion string        `json:"cniVersion"`
		Name       string        `json:"name"`
		Plugins    []bridge.Conf `json:"plugins"`
	}{"1.1.0", name, []bridge.Conf{{
		Type: bridge.Type, Capabilities: map[string]bool{"portMappings": true, "bandwidth": true, "ips": true, "mac": true},
		Bridge: bridgeOf(m.opts.Bridge, name), MTU: m.opts.MTU, Ranges: m.rangesOf(name),
		NonMasqueradeCIDRs: direct, Apart: apart, DataDir: m.path("ipam"),
	}}}
	data, err := json.Marshal(conf)
	if err != nil {
		return nil, fmt.Errorf("encode network %s: %w", name, err)
	}
	return libcni.NetworkConfFromBytes(data)
}

// inUse are the networks whose host side is ours to keep: that of pods that choose none, the
// further ones, and those that pods are on.
func (m *Manager) inUse() (lists []*libcni.NetworkConfigList, err error) {
	list, err := m.confList()
	if err != nil { // a broken file must not keep the others from being healed
		err = fmt.Errorf("read network: %w", err)
	} else {
		lists = append(lists, list)
	}
	for _, n := range m.opts.Networks {
		l, e := m.builtinList(n.Name)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		lists = append(lists, l)
	}
	return lists, err
}
