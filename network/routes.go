package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/atomicfile"
	"github.com/pausa-run/pausa/network/bridge"
)

// routeProtocol marks our routes in `ip route`.
const routeProtocol = 0x71

// Route is a way to the pods of another host, which are reached with a pod's own address. Without
// Via the network knows the way, and no route is made.
type Route struct {
	Dst netip.Prefix `json:"dst"`
	Via netip.Addr   `json:"via,omitzero"`
}

func (r Route) String() string {
	if !r.Via.IsValid() {
		return r.Dst.String()
	}
	return r.Dst.String() + " via " + r.Via.String()
}

// router keeps the host's routes to the pods of other hosts.
type router struct {
	nl     *netlink.Handle
	wanted []Route
	record string // file of the routes that we made, also in an earlier life
}

// newRouter works in the network namespace of the calling thread.
func newRouter(all []Route, record string) (*router, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	wanted := slices.DeleteFunc(slices.Clone(all), func(r Route) bool { return !r.Via.IsValid() })
	return &router{nl: nl, wanted: wanted, record: record}, nil
}

func (r *router) close() { r.nl.Close() }

// ensure makes the routes that are missing and removes those of an earlier configuration. The
// others are made, whatever fails.
func (r *router) ensure() (errs []error) {
	var made []Route
	if err := atomicfile.ReadJSON(r.record, &made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("read the record of routes: %w", err))
	}
	for _, old := range made {
		if slices.Contains(r.wanted, old) {
			continue
		}
		if err := r.nl.RouteDel(netlinkRoute(old)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", old, err))
		}
	}
	if !slices.Equal(made, r.wanted) { // before they are made: a crash must not leave one that nobody knows
		if err := atomicfile.WriteJSON(r.record, r.wanted); err != nil {
			return append(errs, fmt.Errorf("record routes: %w", err))
		}
	}
	for _, want := range r.wanted {
		if err := r.assert(want); err != nil {
			errs = append(errs, fmt.Errorf("route %s: %w", want, err))
		}
	}
	return errs
}

func (r *router) assert(want Route) error {
	has, err := r.find(want.Dst)
	if err != nil {
		return err
	}
	for _, h := range has {
		switch {
		case via(h) == want.Via:
			return nil
		case h.Protocol != routeProtocol:
			return fmt.Errorf("the host has another route there, by %s; remove that one or take this one out of network.routes", describe(h))
		}
	}
	err = r.nl.RouteReplace(netlinkRoute(want))
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return fmt.Errorf("%s is on none of this host's networks: %w", want.Via, err)
	}
	return err
}

// damage names a route that is missing. The kernel is asked for one address of
// each: looking through a router's whole table every second would be dear.
func (r *router) damage() (bridge.Damage, error) {
	for _, want := range r.wanted {
		routes, err := r.nl.RouteGetWithOptions(want.Dst.Addr().AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
		if err == nil && len(routes) > 0 && via(routes[0]) == want.Via && sameNet(routes[0].Dst, want.Dst) {
			continue
		}
		has, err := r.find(want.Dst)
		if err != nil {
			return bridge.Damage{}, err
		}
		if !slices.ContainsFunc(has, func(h netlink.Route) bool { return via(h) == want.Via }) {
			return bridge.Damage{Reason: bridge.RouteRemoved, What: fmt.Sprintf("route %s is missing", want)}, nil
		}
	}
	return bridge.Damage{}, nil
}

// find lists the main table's routes to exactly dst.
func (r *router) find(dst netip.Prefix) ([]netlink.Route, error) {
	family := netlink.FAMILY_V4
	if dst.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := r.nl.RouteListFiltered(family, &netlink.Route{Dst: ipNet(dst), Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

func via(r netlink.Route) netip.Addr {
	a, _ := netip.AddrFromSlice(r.Gw)
	return a.Unmap()
}

func describe(r netlink.Route) string {
	if a := via(r); a.IsValid() {
		return a.String()
	}
	if link, err := net.InterfaceByIndex(r.LinkIndex); err == nil {
		return link.Name
	}
	return fmt.Sprintf("link %d", r.LinkIndex)
}

func sameNet(n *net.IPNet, p netip.Prefix) bool { return n != nil && n.String() == p.String() }

func netlinkRoute(r Route) *netlink.Route {
	return &netlink.Route{Dst: ipNet(r.Dst), Gw: r.Via.AsSlice(), Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
