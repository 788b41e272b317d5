package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/thread"
)

// ensureBridge makes the bridge as the network wants it: up, with the gateway
// addresses of wanted (and no other global address that an earlier range left),
// a hardware address that does not depend on its ports.
func (p *Plugin) ensureBridge(name string, mtu int, wanted []netip.Prefix) (*netlink.Bridge, error) {
	br, err := p.bridge(name)
	if err == nil && br == nil {
		br, err = p.makeBridge(name, mtu)
	}
	if err != nil {
		return nil, err
	}
	if mac := hashMAC("bridge " + name); br.HardwareAddr.String() != mac.String() { // pods know it by heart
		if err := p.host.LinkSetHardwareAddr(br, mac); err != nil {
			return nil, fmt.Errorf("set hardware address of bridge %s: %w", name, err)
		}
		br.HardwareAddr = mac
	}
	if br.MTU != mtu {
		if err := p.host.LinkSetMTU(br, mtu); err != nil {
			return nil, fmt.Errorf("set mtu %d of bridge %s: %w", mtu, name, err)
		}
	}
	if err := thread.InNetNS(p.hostNS, func() error { return hostSysctls(name, wanted) }); err != nil {
		return nil, err
	}
	if err := p.ensureAddrs(br, wanted); err != nil {
		return nil, err
	}
	if err := p.host.LinkSetUp(br); err != nil {
		return nil, fmt.Errorf("bring up bridge %s: %w", name, err)
	}
	own := make([]netip.Addr, len(wanted))
	for i, w := range wanted {
		own[i] = w.Addr()
	}
	return br, awaitLocal(p.host, own)
}

// bridge finds the bridge; nil if there is none.
func (p *Plugin) bridge(name string) (*netlink.Bridge, error) {
	link, err := p.host.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up bridge %s: %w", name, err)
	}
	br, ok := link.(*netlink.Bridge)
	if !ok {
		return nil, fmt.Errorf("use bridge %s: an interface of this name is a %s; configure another bridge name", name, link.Type())
	}
	return br, nil
}

func (p *Plugin) makeBridge(name string, mtu int) (*netlink.Bridge, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtu, hashMAC("bridge "+name)
	snooping := false // would lose neighbour discovery for lack of a querier
	err := p.host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make bridge %s: %w", name, err)
	}
	br, err := p.bridge(name)
	if err == nil && br == nil {
		err = fmt.Errorf("make bridge %s: it has gone again", name)
	}
	return br, err
}

func (p *Plugin) ensureAddrs(br *netlink.Bridge, wanted []netip.Prefix) error {
	has, err := p.host.AddrList(br, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", br.Name, err)
	}
	for _, a := range has {
		got, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if !ok || a.IP.IsLinkLocalUnicast() || slices.Contains(wanted, netip.PrefixFrom(got.Unmap(), ones)) {
			continue
		}
		if err := p.host.AddrDel(br, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s of %s: %w", a.IPNet, br.Name, err)
		}
	}
	for _, w := range wanted {
		if w.Addr().Is6() { // the kernel's own one would be of no use for a second
			wanted = append(wanted, netip.PrefixFrom(linkLocal(br.HardwareAddr), 64))
			break
		}
	}
	for _, w := range wanted {
		if err := p.host.AddrReplace(br, addrOf(w)); err != nil {
			return fmt.Errorf("give address %s to %s: %w", w, br.Name, err)
		}
	}
	return nil
}

// addrOf never waits for duplicate address detection: nobody else gives addresses here.
func addrOf(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctl is a kernel setting, by its path below /proc/sys.
type sysctl struct {
	name, value string
	optional    bool // the kernel may lack it
}

// wantedSysctls are the settings of a host with the bridge.
func wantedSysctls(bridge string, gateways []netip.Prefix) []sysctl {
	var all []sysctl
	// Bridged packets must not pass the IP hooks inside the bridge: DNAT would happen there and
	// answers of a pod to itself would be lost.
	for _, f := range []string{"iptables", "ip6tables", "arptables"} {
		all = append(all, sysctl{"net/bridge/bridge-nf-call-" + f, "0", true})
	}
	for _, g := range gateways {
		if g.Addr().Is6() {
			all = append(all, sysctl{filepath.Join("net/ipv6/conf", bridge, "disable_ipv6"), "0", false},
				sysctl{forwardingIPv6, "1", false})
			continue
		}
		all = append(all, sysctl{"net/ipv4/ip_forward", "1", false},
			// The host must not name pods a shorter way to each other: there is none, and redirects use
			// up the rate of ICMP errors to a pod, so that its next refused datagram would be lost. The
			// kernel obeys "all" or the interface's own value, so others, whose own value is 1 by
			// default, go on as they were. IPv6 has no such setting.
			sysctl{filepath.Join("net/ipv4/conf", bridge, "send_redirects"), "0", false},
			sysctl{"net/ipv4/conf/all/send_redirects", "0", false})
	}
	return all
}

// hostSysctls turns on forwarding in the calling thread's network namespace, for the families in
// use, and turns off what would break it.
func hostSysctls(bridge string, gateways []netip.Prefix) error {
	for _, s := range wantedSysctls(bridge, gateways) {
		set := func() error { return setSysctl(s.name, s.value) }
		if s.name == forwardingIPv6 {
			set = forwardIPv6
		}
		err := set()
		switch {
		case err == nil || s.optional && errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.name, "net/ipv6"):
			return errors.New("use an IPv6 range: this host has no IPv6; configure an IPv4 range alone")
		default:
			return err
		}
	}
	return nil
}

const forwardingIPv6 = "net/ipv6/conf/all/forwarding"

// forwardIPv6 turns on forwarding and lets interfaces that learn their routes
// from router advertisements go on doing so: a forwarding host ignores them otherwise.
func forwardIPv6() error {
	if now, err := os.ReadFile("/proc/sys/" + forwardingIPv6); err == nil && strings.TrimSpace(string(now)) == "1" {
		return nil
	}
	ifaces, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, f := range ifaces {
		if now, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(now)) == "1" {
			if err := setSysctl(strings.TrimPrefix(f, "/proc/sys/"), "2"); err != nil {
				return err
			}
		}
	}
	return setSysctl(forwardingIPv6, "1")
}

// setSysctl writes only what is not so already: /proc/sys may be read-only.
func setSysctl(name, value string) error {
	path := "/proc/sys/" + name
	now, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(now)) == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0)
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}

// hashMAC is a locally administered unicast address made from a name.
func hashMAC(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// VethPrefix begins the names of the ports of a bridge that are ours.
func VethPrefix(bridge string) string {
	sum := sha256.Sum256([]byte(bridge))
	return "pv" + hex.EncodeToString(sum[:2])
}

// vethName is the host's end of owner's link.
func vethName(bridge, owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return VethPrefix(bridge) + hex.EncodeToString(sum[:5])[:9]
}
