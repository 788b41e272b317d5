package bridge

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/pausa-run/pausa/internal/nft"
)

// Type is the plugin's name in network configurations.
const Type = "pausa"

// Defaults of a configuration.
const (
	DefaultBridge  = "pausa0"
	DefaultDataDir = "/run/pausa/cni"
)

// versions are the versions of the CNI specification that the plugin speaks.
func versions() version.PluginInfo {
	return version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// PortMapping is an entry of the runtimeConfig "portMappings".
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// Conf is the plugin's network configuration as it stands in a conflist.
type Conf struct {
	CNIVersion   string          `json:"cniVersion,omitempty"`
	Name         string          `json:"name,omitempty"`
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`

	Bridge string `json:"bridge,omitempty"` // default pausa0
	MTU    int    `json:"mtu,omitempty"`    // 0: that of the route to the outside
	// Ranges are the pods' addresses: a pod gets one of each family, of the first range of the family
	// that has a free one. The first address of each range is the gateway.
	Ranges []netip.Prefix `json:"ranges"`
	// NonMasqueradeCIDRs are reached with the pod's own address, besides Ranges.
	NonMasqueradeCIDRs []netip.Prefix `json:"nonMasqueradeCIDRs,omitempty"`
	// Apart names the bridges of other networks whose pods those of this one cannot reach.
	Apart   []string `json:"apart,omitempty"`
	DataDir string   `json:"dataDir,omitempty"` // the plugin's records; default /run/pausa/cni

	RuntimeConfig *RuntimeConfig `json:"runtimeConfig,omitempty"`

	PrevResult       json.RawMessage      `json:"prevResult,omitempty"`
	ValidAttachments []types.GCAttachment `json:"cni.dev/valid-attachments,omitempty"`
}

// RuntimeConfig holds what the runtime passes by capability.
type RuntimeConfig struct {
	PortMappings []PortMapping `json:"portMappings,omitempty"`
	Bandwidth    *Bandwidth    `json:"bandwidth,omitempty"`
	IPs          []string      `json:"ips,omitempty"` // at most one per family, with or without a prefix length
	MAC          string        `json:"mac,omitempty"`
}

// ParseConf reads and checks a configuration and fills in the defaults.
func ParseConf(data []byte) (*Conf, error) {
	c := &Conf{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "decode network configuration", err.Error())
	}
	if c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	if c.DataDir == "" {
		c.DataDir = DefaultDataDir
	}
	if err := c.check(); err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "check network configuration", err.Error())
	}
	return c, nil
}

func (c *Conf) check() error {
	if !plainName(c.Name, 200) {
		return fmt.Errorf("network name %q: want letters, digits, '_', '.' and '-'", c.Name)
	}
	if !plainName(c.Bridge, 15) {
		return fmt.Errorf("bridge %q: want at most 15 letters, digits, '_', '.' and '-'", c.Bridge)
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		return fmt.Errorf("mtu %d: want 0 or 1280 to 65535", c.MTU)
	}
	if !filepath.IsAbs(c.DataDir) {
		return fmt.Errorf("dataDir %q: want an absolute path", c.DataDir)
	}
	for _, name := range c.Apart {
		if !plainName(name, 15) || name == c.Bridge {
			return fmt.Errorf("apart %q: want the name of another bridge", name)
		}
	}
	if limit := c.bandwidth(); limit != nil {
		if err := limit.check(); err != nil {
			return err
		}
	}
	return CheckRanges(c.Ranges)
}

// CheckRanges says what is wrong with the ranges of a network, nil if nothing.
func CheckRanges(ranges []netip.Prefix) error {
	if len(ranges) == 0 {
		return fmt.Errorf("no ranges: want an IPv4 range, an IPv6 range or some of each")
	}
	for i, r := range ranges {
		if !r.IsValid() || r.Addr().Is4In6() || r.Addr().IsMulticast() || r.Addr().IsLoopback() {
			return fmt.Errorf("range %s: want unicast addresses", r)
		}
		if r.Addr().BitLen()-r.Bits() < 2 {
			return fmt.Errorf("range %s: too small, want at least four addresses", r)
		}
		if j := slices.IndexFunc(ranges[:i], r.Overlaps); j >= 0 {
			return fmt.Errorf("ranges %s and %s overlap", ranges[j], r)
		}
	}
	return nil
}

func (c *Conf) ports() []PortMapping {
	if c.RuntimeConfig == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(c.RuntimeConfig.PortMappings), func(p PortMapping) bool { return p.HostPort == 0 })
}

func (c *Conf) bandwidth() *Bandwidth {
	if c.RuntimeConfig == nil {
		return nil
	}
	return c.RuntimeConfig.Bandwidth
}

// rangesOf are the ranges of a family, in the order of the configuration.
func (c *Conf) rangesOf(f nft.Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(c.Ranges), func(r netip.Prefix) bool { return nft.FamilyOf(r.Addr()) != f })
}

// gateway is the range's first address with the range's length, as the bridge has it.
func gateway(r netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(r.Masked().Addr().Next(), r.Bits())
}

// isBroadcast tells whether a is the last address of an IPv4 range.
func isBroadcast(r netip.Prefix, a netip.Addr) bool {
	return a.Is4() && !r.Contains(a.Next())
}

// plainName tells whether s is a letter or digit and then letters, digits, '_', '.'
// and '-', at most limit of them: safe as a part of a path and of a rule.
func plainName(s string, limit int) bool {
	for i, r := range s {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || r != '_' && r != '.' && r != '-') {
			return false
		}
	}
	return s != "" && len(s) <= limit
}
