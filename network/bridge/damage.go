package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/pausa-run/pausa/internal/thread"
)

// Damage is what somebody has changed.
type Damage struct {
	Reason string // one word for what it is, as of an event
	What   string // in words; "" is no damage
}

// Reasons of Damage.
const (
	BridgeDeleted  = "BridgeDeleted"
	BridgeDown     = "BridgeDown"
	MTUChanged     = "MTUChanged"
	LinkDeleted    = "PodLinkDeleted"
	LinkDetached   = "PodLinkDetached"
	LinkDown       = "PodLinkDown"
	AddressRemoved = "AddressRemoved"
	RouteRemoved   = "RouteRemoved"
	SettingChanged = "KernelSettingChanged"
)

// Damage says what somebody has changed on the host side of a network that was
// made: its bridge, the addresses and MTU of that, its pods' links
// (WatchLinks), or kernel settings. It is cheap enough to be asked every second. Changes of rules are told by the
// kernel (nft.Conn.Watch).
func (p *Plugin) Damage(conf []byte) (Damage, error) {
	cfg, err := ParseConf(conf)
	if err != nil {
		return Damage{}, err
	}
	br, err := p.bridge(cfg.Bridge)
	switch {
	case err != nil:
		return Damage{}, err
	case br == nil:
		return Damage{BridgeDeleted, "bridge " + cfg.Bridge + " is gone"}, nil
	case br.Flags&net.FlagUp == 0:
		return Damage{BridgeDown, "bridge " + cfg.Bridge + " is down"}, nil
	}
	c := call{Plugin: p, conf: cfg}
	if mtu := c.wantedMTU(); br.MTU != mtu {
		return Damage{MTUChanged, fmt.Sprintf("bridge %s has mtu %d, the way out %d", br.Name, br.MTU, mtu)}, nil
	}
	if d := p.portDamage(br); d.What != "" {
		return d, nil
	}
	wanted := gateways(cfg.Ranges)
	has, err := p.host.AddrList(br, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return Damage{}, fmt.Errorf("list addresses of %s: %w", br.Name, err)
	}
	for _, w := range wanted {
		if !slices.ContainsFunc(has, func(a netlink.Addr) bool { return a.Equal(*addrOf(w)) }) {
			return Damage{AddressRemoved, fmt.Sprintf("address %s of bridge %s is gone", w, br.Name)}, nil
		}
	}
	var found string
	err = thread.InNetNS(p.hostNS, func() error {
		found = sysctlDamage(br.Name, wanted)
		return nil
	})
	if found == "" {
		return Damage{}, err
	}
	return Damage{SettingChanged, found}, err
}

// sysctlDamage names the first setting that is not as hostSysctls wants it.
func sysctlDamage(bridge string, gateways []netip.Prefix) string {
	for _, s := range wantedSysctls(bridge, gateways) {
		now, err := os.ReadFile("/proc/sys/" + s.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || strings.TrimSpace(string(now)) != s.value {
			return fmt.Sprintf("sysctl %s is %q", strings.ReplaceAll(s.name, "/", "."), strings.TrimSpace(string(now)))
		}
	}
	return ""
}
