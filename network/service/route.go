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
	// Assert makes the route to dst by the device, with the device's address of
	// the same family as source. errNoRoute: the device has none now.
	Assert(dst netip.Prefix, dev string) error
	// Remove deletes it; one that is not there is no error.
	Remove(dst netip.Prefix, dev string) error
}

// errNoRoute says that a route must wait for its device or its address.
var errNoRoute = errors.New("device is not ready for the route")

// assertRoutes gives the host routes to the service ranges: without one a
// connect fails before it comes to any rule. The bridge may come later than we.
func (t *Table) assertRoutes() error {
	var errs []error
	for _, c := range t.opts.ServiceCIDRs {
		err := t.route.Assert(c.Masked(), t.opts.RouteDev)
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
		errs = append(errs, t.route.Remove(c.Masked(), t.opts.RouteDev))
	}
	return errors.Join(errs...)
}

// Assert replaces the route in the kernel.
func (h *handle) Assert(dst netip.Prefix, dev string) error {
	link, err := h.nl.LinkByName(dev)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return fmt.Errorf("%w: no device %s", errNoRoute, dev)
	}
	if err != nil {
		return fmt.Errorf("route %s: find device %s: %w", dst, dev, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("%w: device %s is down", errNoRoute, dev)
	}
	src, err := h.sourceAddr(link, nft.FamilyOf(dst.Addr()))
	if err != nil {
		return fmt.Errorf("route %s: %w", dst, err)
	}
	r := serviceRoute(dst, link)
	r.Src = src
	if err := h.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s dev %s src %s: %w", dst, dev, src, err)
	}
	return nil
}

func serviceRoute(dst netip.Prefix, link netlink.Link) *netlink.Route {
	size := len(dst.Addr().AsSlice()) * 8
	return &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), size)},
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

// Remove deletes the route.
func (h *handle) Remove(dst netip.Prefix, dev string) error {
	link, err := h.nl.LinkByName(dev)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove route %s: find device %s: %w", dst, dev, err)
	}
	err = h.nl.RouteDel(serviceRoute(dst, link))
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route %s: %w", dst, err)
	}
	return nil
}
