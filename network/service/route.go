package service

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// routeProtocol marks our routes in `ip route`.
const routeProtocol = 0x70

// router is the host's routing table.
type router interface {
	// Assert makes the route to dst by the device, or another one if that is not
	// there, with the device's address of the same family as source. errNoRoute:
	// no device has one now.
	Assert(dst netip.Prefix, dev string) error
	// Remove deletes it; one that is not there is no error.
	Remove(dst netip.Prefix) error
}

// errNoRoute says that a route must wait for its device or its address.
var errNoRoute = errors.New("device is not ready for the route")

// assertRoutes gives the host routes to the service ranges: without one a
// connect fails before it comes to any rule. The bridge may come later than we.
func (t *Table) assertRoutes() error {
	var errs []error
	t.routed = true
	for _, c := range t.opts.ServiceCIDRs {
		err := t.route.Assert(c.Masked(), t.opts.RouteDev)
		t.routed = t.routed && err == nil
		if errors.Is(err, errNoRoute) {
			t.opts.Log.Debug("route of the service range waits", "range", c, "device", t.opts.RouteDev, "cause", err)
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (t *Table) removeRoutes() error {
	var errs []error
	for _, c := range t.opts.ServiceCIDRs {
		errs = append(errs, t.route.Remove(c.Masked()))
	}
	return errors.Join(errs...)
}

// Assert replaces the route in the kernel. Without the device, as with a network
// that others make, it leads to another one: our rules have found the endpoint
// before a packet gets there. Only lo will not do: IPv6 refuses such routes.
func (h *handle) Assert(dst netip.Prefix, dev string) error {
	f := nft.FamilyOf(dst.Addr())
	link, src, err := h.preferred(dev, f)
	if errors.Is(err, errNoRoute) {
		var other error
		if link, src, other = h.anyOther(dev, f); other == nil {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("route %s: %w", dst, err)
	}
	r := serviceRoute(dst, link)
	r.Src = src
	have, err := h.ours(dst)
	if err == nil && len(have) == 1 && have[0].LinkIndex == r.LinkIndex && have[0].Src.Equal(src) {
		return nil // nobody needs to be told of a change
	}
	if err := h.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s dev %s src %s: %w", dst, link.Attrs().Name, src, err)
	}
	return nil
}

// preferred is the device and its address, if it is there and up.
func (h *handle) preferred(dev string, f nft.Family) (netlink.Link, net.IP, error) {
	link, err := h.nl.LinkByName(dev)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil, fmt.Errorf("%w: no device %s", errNoRoute, dev)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find device %s: %w", dev, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return nil, nil, fmt.Errorf("%w: device %s is down", errNoRoute, dev)
	}
	src, err := h.sourceAddr(link, f)
	return link, src, err
}

// anyOther is the first device but dev that is up, in nobody's bridge, and has
// an address that pods can answer to.
func (h *handle) anyOther(dev string, f nft.Family) (netlink.Link, net.IP, error) {
	links, err := h.nl.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, nil, fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		if a.Name == dev || a.MasterIndex != 0 || a.Flags&net.FlagUp == 0 || a.Flags&net.FlagLoopback != 0 {
			continue
		}
		if src, err := h.sourceAddr(l, f); err == nil {
			return l, src, nil
		}
	}
	return nil, nil, errNoRoute
}

func serviceRoute(dst netip.Prefix, link netlink.Link) *netlink.Route {
	return &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       ipNet(dst),
		Scope:     netlink.SCOPE_LINK,
		Protocol:  routeProtocol,
	}
}

// sourceAddr is the device's first address that others can answer to.
func (h *handle) sourceAddr(link netlink.Link, f nft.Family) (net.IP, error) {
	family := netlink.FAMILY_V4
	if f == nft.IPv6 {
		family = netlink.FAMILY_V6
	}
	addrs, err := h.nl.AddrList(link, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unix.IFA_F_TENTATIVE == 0 {
			return a.IP, nil
		}
	}
	return nil, fmt.Errorf("%w: device %s has no %s address", errNoRoute, link.Attrs().Name, f)
}

// Remove deletes the route, whatever device it is by.
func (h *handle) Remove(dst netip.Prefix) error {
	routes, err := h.ours(dst)
	if err != nil {
		return fmt.Errorf("remove route %s: list routes: %w", dst, err)
	}
	for i := range routes {
		if err := h.nl.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route %s: %w", dst, err)
		}
	}
	return nil
}

// ours are the routes to dst that we made.
func (h *handle) ours(dst netip.Prefix) ([]netlink.Route, error) {
	family := netlink.FAMILY_V4
	if dst.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	like := &netlink.Route{Dst: ipNet(dst), Protocol: routeProtocol}
	routes, err := h.nl.RouteListFiltered(family, like, netlink.RT_FILTER_DST|netlink.RT_FILTER_PROTOCOL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	return routes, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
