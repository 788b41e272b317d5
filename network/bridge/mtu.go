package bridge

import (
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	plainMTU = 1500
	leastMTU = 1280 // IPv6 needs it
	mostMTU  = 65535
)

// wantedMTU is that of the configuration or, without one, of the way out.
func (c call) wantedMTU() int {
	if c.conf.MTU > 0 {
		return c.conf.MTU
	}
	return c.egressMTU()
}

// egressMTU is what fits into a packet on the default routes: the smaller one,
// if the families have different ones, and 1500 without any. The kernel is asked
// for the way to addresses that are nobody's (RFC 2544, RFC 5180): looking
// through a router's whole table every second would be dear.
func (p *Plugin) egressMTU() int {
	mtu := 0
	for _, probe := range []net.IP{net.IPv4(198, 18, 0, 1), net.ParseIP("2001:2::1")} {
		routes, err := p.host.RouteGet(probe)
		if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST {
			continue
		}
		here := routes[0].MTU
		if here == 0 {
			link, err := p.host.LinkByIndex(routes[0].LinkIndex)
			if err != nil || link.Attrs().Flags&net.FlagLoopback != 0 {
				continue
			}
			here = link.Attrs().MTU
		}
		if here >= leastMTU && (mtu == 0 || here < mtu) {
			mtu = here
		}
	}
	if mtu == 0 {
		return plainMTU
	}
	return min(mtu, mostMTU)
}

// followMTU gives both ends of a pod's link the network's MTU, and the device of
// its egress limit too.
func (p *Plugin) followMTU(link netlink.Link, a attachment, mtu int) error {
	if link.Attrs().MTU == mtu {
		return nil
	}
	if err := p.host.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set mtu %d of %s: %w", mtu, a.Veth, err)
	}
	if ifb, err := p.host.LinkByName(ifbName(a.Veth)); err == nil {
		if err := p.host.LinkSetMTU(ifb, mtu); err != nil {
			return fmt.Errorf("set mtu %d of %s: %w", mtu, ifb.Attrs().Name, err)
		}
	}
	ns, err := openNetNS(a.NetNS)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ns) }()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer h.Close()
	_, ifName, _ := strings.Cut(a.Owner, ":")
	inside, err := h.LinkByName(ifName)
	if err == nil {
		err = h.LinkSetMTU(inside, mtu)
	}
	if err != nil {
		return fmt.Errorf("set mtu %d of %s in pod %s: %w", mtu, ifName, a.Pod, err)
	}
	return nil
}
