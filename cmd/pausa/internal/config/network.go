package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Network is a further built-in network.
type Network struct {
	Name  string
	CIDRs []netip.Prefix
}

// Route is a way to other hosts' pods; without Via the network knows the way.
type Route struct {
	CIDR netip.Prefix
	Via  netip.Addr
}

func networkSettings() []setting {
	return []setting{
		{
			"network.pod_cidrs", list, "10.88.0.0/16,fd88::/64",
			"Addresses of pods on the built-in network: a pod gets one per family, of the first range that has a free one.",
			func(c *Config, v string) error { return setRanges(&c.PodCIDRs, v) },
		},
		{
			"network.bridge", text, "pausa0", "Name of the built-in network's bridge.",
			func(c *Config, v string) error {
				if len(v) == 0 || len(v) > 15 || strings.ContainsAny(v, "/ \t\n:") || v == "." || v == ".." {
					return errors.New("is not a link name: 1 to 15 characters, no slash, colon or space")
				}
				c.Bridge = v
				return nil
			},
		},
		{
			"network.firewall", text, "kernel", "kernel writes the rules of Services, host ports and masquerading; print leaves them to somebody\nelse, who sees them by 'pausa firewall'.",
			func(c *Config, v string) error { return setOneOf(&c.Firewall, v, "kernel", "print") },
		},
		{
			"network.mtu", number, "0", "Bytes per packet on the built-in networks; 0 takes that of the default route, also when it changes.",
			func(c *Config, v string) (err error) {
				c.MTU, err = strconv.Atoi(v)
				if err != nil || c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
					return errors.New("must be 0 or a number from 1280 to 65535")
				}
				return nil
			},
		},
		{
			"network.further", list, "",
			"Further built-in networks, which pods choose by the annotation pausa.run/network: \"NAME RANGE RANGE…\" each.\nTheir pods and those of other networks do not reach each other.",
			func(c *Config, v string) error { return setNetworks(&c.Networks, v) },
		},
		{
			"network.connected", list, "", "Built-in networks whose pods reach each other: \"NAME NAME\" each; the first network is pausa.",
			func(c *Config, v string) error { return setConnected(&c.Connected, v) },
		},
		{
			"network.routes", list, "",
			"Pods of other hosts, which are reached without NAT: \"RANGE via ADDRESS\" each, or \"RANGE\" where the network knows the way.",
			func(c *Config, v string) error { return setRoutes(&c.Routes, v) },
		},
		{
			"network.cni_conf_dir", text, "/etc/cni/net.d", "With a configuration in this folder, that CNI network is used instead of the built-in one.",
			func(c *Config, v string) error { return setPath(&c.CNIConfDir, v) },
		},
		{
			"network.cni_bin_dirs", list, "/opt/cni/bin,/usr/lib/cni", "Where CNI plugins are looked for.",
			func(c *Config, v string) error {
				c.CNIBinDirs = splitList(v)
				for _, dir := range c.CNIBinDirs {
					if err := setPath(new(string), dir); err != nil {
						return err
					}
				}
				return nil
			},
		},
		{
			"network.service_cidrs", list, "10.96.0.0/16,fd96::/112", "Virtual addresses of Services: one range per family.",
			func(c *Config, v string) error { return setPrefixes(&c.ServiceCIDRs, v) },
		},
		{
			"network.load_balancer_cidrs", list, "", "Addresses of Services of type LoadBalancer, which the network must route to this host: one range per family; none takes the host's own addresses.",
			func(c *Config, v string) error {
				if len(splitList(v)) == 0 {
					c.BalancerCIDRs = nil
					return nil
				}
				return setPrefixes(&c.BalancerCIDRs, v)
			},
		},
		{
			"network.node_port_range", text, "30000-32767", "Ports that Services of type NodePort get.",
			func(c *Config, v string) error { return setPortRange(&c.NodePortMin, &c.NodePortMax, v) },
		},
	}
}

// parseRange reads one range of addresses.
func parseRange(item string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(item)
	if err != nil {
		return p, fmt.Errorf("%q is not a range of addresses such as 10.88.0.0/16", item)
	}
	if p.Masked() != p {
		return p, fmt.Errorf("%s has bits beyond its prefix: write %s", item, p.Masked())
	}
	return p, nil
}

// setRanges takes one range or more, which do not overlap.
func setRanges(to *[]netip.Prefix, v string) error {
	var out []netip.Prefix
	for _, item := range splitList(v) {
		p, err := parseRange(item)
		if err != nil {
			return err
		}
		for _, other := range out {
			if other.Overlaps(p) {
				return fmt.Errorf("%s and %s overlap: choose separate ranges", other, p)
			}
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return errors.New("must hold one range at least")
	}
	*to = out
	return nil
}

// setPrefixes takes one or two ranges, of different families.
func setPrefixes(to *[]netip.Prefix, v string) error {
	var out []netip.Prefix
	if err := setRanges(&out, v); err != nil {
		return err
	}
	for i, p := range out {
		for _, other := range out[:i] {
			if other.Addr().Is4() == p.Addr().Is4() {
				return fmt.Errorf("%s and %s are of one family: give one range per family", other, p)
			}
		}
	}
	*to = out
	return nil
}

func setNetworks(to *[]Network, v string) error {
	*to = nil
	for _, item := range splitList(v) {
		words := strings.Fields(item)
		if len(words) < 2 {
			return fmt.Errorf("%q: want a name and its ranges, such as \"blue 10.90.0.0/24 fd90::/64\"", item)
		}
		n := Network{Name: words[0]}
		if err := setRanges(&n.CIDRs, strings.Join(words[1:], ",")); err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
		*to = append(*to, n)
	}
	return nil
}

func setConnected(to *[][2]string, v string) error {
	*to = nil
	for _, item := range splitList(v) {
		words := strings.Fields(item)
		if len(words) != 2 {
			return fmt.Errorf("%q: want the names of two networks, such as \"blue green\"", item)
		}
		*to = append(*to, [2]string{words[0], words[1]})
	}
	return nil
}

func setRoutes(to *[]Route, v string) error {
	*to = nil
	for _, item := range splitList(v) {
		words := strings.Fields(item)
		if len(words) != 1 && (len(words) != 3 || words[1] != "via") {
			return fmt.Errorf("%q: want \"RANGE via ADDRESS\" or \"RANGE\"", item)
		}
		p, err := parseRange(words[0])
		if err != nil {
			return err
		}
		r := Route{CIDR: p}
		if len(words) == 3 {
			if r.Via, err = netip.ParseAddr(words[2]); err != nil || r.Via.Zone() != "" {
				return fmt.Errorf("%q is not an address", words[2])
			}
			if r.Via.Is4() != p.Addr().Is4() {
				return fmt.Errorf("%s via %s: want addresses of one family", p, r.Via)
			}
		}
		*to = append(*to, r)
	}
	return nil
}
