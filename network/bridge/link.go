package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/thread"
)

// podLink is what link makes: a veth pair with one end on the bridge and the
// other in the pod.
type podLink struct {
	ns       int // open namespace of the pod
	ifName   string
	veth     string
	mac      net.HardwareAddr
	mtu      int
	addrs    []netip.Addr
	gateways []netip.Addr // one per address
	gwMAC    net.HardwareAddr
	limit    *Bandwidth
}

// connect makes the link. What it made is undone by deleting the host's end.
func (p *Plugin) connect(l podLink, br *netlink.Bridge) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = l.veth, l.mtu, hashMAC("port "+l.veth)
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: l.ifName, PeerHardwareAddr: l.mac,
		PeerNamespace: netlink.NsFd(l.ns), PeerMTU: uint32(l.mtu), PeerTxQLen: -1,
	}
	if err := p.host.LinkAdd(veth); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make link %s to %s: one of them exists already; delete the attachment first: %w", l.veth, l.ifName, err)
		}
		return fmt.Errorf("make link %s to %s: %w", l.veth, l.ifName, err)
	}
	if err := p.enslave(veth, br, l.mac, l.addrs); err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(l.ns), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer h.Close()
	if err := l.configure(h); err != nil {
		return fmt.Errorf("configure %s in the pod: %w", l.ifName, err)
	}
	if err := p.ensureLimit(veth, l.mtu, l.limit); err != nil {
		return err
	}
	if err := p.host.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring up link %s: %w", l.veth, err)
	}
	if err := awaitUp([]end{{h, l.ifName}, {p.host, l.veth}, {p.host, br.Name}}); err != nil {
		return err
	}
	return awaitLocal(h, l.addrs)
}

// end is an interface and where to look for it.
type end struct {
	h    *netlink.Handle
	name string
}

// upTimeout is far beyond what the kernel needs (0.1 to 4 ms); after it the link is left to come up by itself.
const upTimeout = 100 * time.Millisecond

// awaitUp waits until the kernel's worker has seen that the interfaces have a
// carrier. Before that they drop what is sent, and the ARP question that is lost
// is asked again only a second later.
func awaitUp(ends []end) error {
	deadline := time.Now().Add(upTimeout)
	for _, e := range ends {
		for {
			link, err := e.h.LinkByName(e.name)
			if err != nil {
				return fmt.Errorf("look at link %s: %w", e.name, err)
			}
			if link.Attrs().OperState == netlink.OperUp || time.Now().After(deadline) {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	return nil
}

// enslave makes the link a port of the bridge that cannot talk to other ports
// without the host's routing, and tells the host who is behind it: the pod need
// not be asked (it could not answer in its first moments, and the question would
// be repeated only a second later), and nobody else can answer for it.
func (p *Plugin) enslave(link netlink.Link, br *netlink.Bridge, mac net.HardwareAddr, addrs []netip.Addr) error {
	name := link.Attrs().Name
	if err := p.host.LinkSetMasterByIndex(link, br.Index); err != nil {
		return fmt.Errorf("attach link %s to bridge %s: %w", name, br.Name, err)
	}
	if err := p.host.LinkSetIsolated(link, true); err != nil {
		return fmt.Errorf("isolate port %s of bridge %s: %w", name, br.Name, err)
	}
	behind := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
		State: netlink.NUD_NOARP, HardwareAddr: mac,
	}
	if err := p.host.NeighSet(behind); err != nil {
		return fmt.Errorf("tell bridge %s who is behind %s: %w", br.Name, name, err)
	}
	for _, a := range addrs {
		n := &netlink.Neigh{LinkIndex: br.Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
		if err := p.host.NeighSet(n); err != nil {
			return fmt.Errorf("set neighbour %s: %w", a, err)
		}
	}
	return nil
}

// configure gives the pod's end its addresses and routes.
func (l podLink) configure(h *netlink.Handle) error {
	link, err := h.LinkByName(l.ifName)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	for _, a := range l.addrs {
		if err := l.addAddr(h, link, a); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	for _, gw := range l.gateways {
		// No need to ask for it: the answer could be lost in the first moments, and be another pod's.
		n := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: l.gwMAC}
		if err := h.NeighSet(n); err != nil {
			return fmt.Errorf("set neighbour %s: %w", gw, err)
		}
		toGateway := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: host(gw), Scope: netlink.SCOPE_LINK}
		if err := h.RouteReplace(toGateway); err != nil {
			return fmt.Errorf("route to gateway %s: %w", gw, err)
		}
		if err := h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: defaultNet(gw), Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("default route by %s: %w", gw, err)
		}
	}
	return nil
}

func (l podLink) addAddr(h *netlink.Handle, link netlink.Link, a netip.Addr) error {
	addr := addrOf(netip.PrefixFrom(a, a.BitLen()))
	err := h.AddrReplace(link, addr)
	if err != nil && a.Is6() {
		// The host's defaults may have turned IPv6 off in new namespaces.
		err = thread.InNetNS(l.ns, func() error {
			return setSysctl(filepath.Join("net/ipv6/conf", l.ifName, "disable_ipv6"), "0")
		})
		if err == nil {
			err = h.AddrReplace(link, addr)
		}
	}
	if err == nil && a.Is6() { // before the kernel makes it: that one would wait a second for duplicates
		err = h.AddrReplace(link, addrOf(netip.PrefixFrom(linkLocal(l.mac), 64)))
	}
	if err != nil {
		return fmt.Errorf("give it address %s: %w", a, err)
	}
	return nil
}

// awaitLocal waits until the kernel delivers packets to the IPv6 addresses: a
// worker makes the route, a moment after the address.
func awaitLocal(h *netlink.Handle, addrs []netip.Addr) error {
	deadline := time.Now().Add(upTimeout)
	for _, a := range addrs {
		for a.Is6() && time.Now().Before(deadline) {
			routes, err := h.RouteGet(a.AsSlice())
			if err != nil && !errors.Is(err, unix.ENETUNREACH) {
				return fmt.Errorf("look up route to %s: %w", a, err)
			}
			if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	return nil
}

func host(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func defaultNet(a netip.Addr) *net.IPNet {
	if a.Is4() {
		return ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	}
	return ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
}

// linkLocal is the address that the kernel makes from a hardware address.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5],
	})
}

// deleteLink removes a link by name; it waits until the kernel is done. It is
// not an error if there is none.
func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}
