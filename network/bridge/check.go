package bridge

import (
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// check is CHECK: what ADD made is still there.
func (c call) check() error {
	a, err := c.store.load("attached", c.owner)
	if err != nil {
		return types.NewError(types.ErrUnknownContainer, "check "+c.owner, err.Error())
	}
	if err := c.checkHost(a); err != nil {
		return fmt.Errorf("check host side of %s: %w", c.owner, err)
	}
	ns, err := openNetNS(c.req.NetNS)
	if err != nil {
		return types.NewError(types.ErrInvalidNetNS, "use CNI_NETNS", err.Error())
	}
	defer func() { _ = unix.Close(ns) }()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer h.Close()
	if err := checkPod(h, c.req.IfName, a); err != nil {
		return fmt.Errorf("check pod side of %s: %w", c.owner, err)
	}
	return nil
}

func (c call) checkHost(a attachment) error {
	br, err := c.bridge(c.conf.Bridge)
	if err != nil {
		return err
	}
	if br == nil {
		return fmt.Errorf("bridge %s is missing", c.conf.Bridge)
	}
	veth, err := c.host.LinkByName(a.Veth)
	if err != nil {
		return fmt.Errorf("link %s: %w", a.Veth, err)
	}
	if veth.Attrs().MasterIndex != br.Index {
		return fmt.Errorf("link %s is not a port of bridge %s", a.Veth, br.Name)
	}
	if err := c.checkLimit(veth, a.Bandwidth); err != nil {
		return err
	}
	for _, addr := range a.Addrs {
		if owner := c.store.addressOwner(addr.String()); owner != a.Owner {
			return fmt.Errorf("address %s belongs to %q", addr, owner)
		}
	}
	ok, err := c.guard.has(c.conf.Bridge, a)
	if err == nil && !ok {
		err = fmt.Errorf("its sources are missing from the anti-spoofing rules")
	}
	if err != nil {
		return err
	}
	return c.checkElements(a)
}

func (c call) checkElements(a attachment) error {
	wanted := c.rules.elements(a)
	for _, s := range c.rules.sets() {
		if len(wanted[s.Name]) == 0 {
			continue
		}
		found, err := c.nft.Elements(s)
		if err != nil {
			return err
		}
		keys := make(map[string]bool, len(found))
		for _, e := range found {
			keys[string(e.Key)] = true
		}
		for _, e := range wanted[s.Name] {
			if !keys[string(e.Key)] {
				return fmt.Errorf("a host port is missing from set %s", s.Name)
			}
		}
	}
	return nil
}

func checkPod(h *netlink.Handle, ifName string, a attachment) error {
	link, err := h.LinkByName(ifName)
	if err != nil {
		return fmt.Errorf("interface %s: %w", ifName, err)
	}
	if link.Attrs().HardwareAddr.String() != a.MAC {
		return fmt.Errorf("interface %s has hardware address %s, not %s", ifName, link.Attrs().HardwareAddr, a.MAC)
	}
	has, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	found := map[netip.Addr]bool{}
	for _, x := range has {
		if addr, ok := netip.AddrFromSlice(x.IP); ok {
			found[addr.Unmap()] = true
		}
	}
	for _, addr := range a.Addrs {
		if !found[addr] {
			return fmt.Errorf("interface %s has lost address %s", ifName, addr)
		}
	}
	for _, r := range a.Ranges {
		if err := checkDefaultRoute(h, link, gateway(r).Addr()); err != nil {
			return err
		}
	}
	return nil
}

func checkDefaultRoute(h *netlink.Handle, link netlink.Link, gw netip.Addr) error {
	family := netlink.FAMILY_V4
	if gw.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := h.RouteList(link, family)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if a, ok := netip.AddrFromSlice(r.Gw); ok && a.Unmap() == gw {
			return nil
		}
	}
	return fmt.Errorf("the default route by %s is missing", gw)
}
