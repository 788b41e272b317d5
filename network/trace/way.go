package trace

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// start looks at where the connection begins: the pod's link and its route.
func (w *walk) start() {
	if w.From.NetNS == "" {
		w.routeFrom(w.host)
		return
	}
	err := in(w.From, func(h *netlink.Handle) error {
		w.podLink(h)
		if !w.stopped() {
			w.routeFrom(h)
		}
		return nil
	})
	if err != nil {
		w.add("namespace", Stop, fmt.Sprintf("the network of %s cannot be entered: %v", w.From, err), "delete the pod and let it be made again")
		return
	}
	if !w.stopped() {
		w.hostEnd()
	}
}

// podLink looks at the pod's interface, from within.
func (w *walk) podLink(h *netlink.Handle) {
	link, err := h.LinkByName("eth0")
	if err != nil {
		w.add("pod link", Stop, fmt.Sprintf("%s has no interface eth0: %v", w.From, err), "delete the pod and let it be made again")
		return
	}
	a := link.Attrs()
	if a.Flags&net.FlagUp == 0 {
		w.add("pod link", Stop, "eth0 of "+w.From.String()+" is down", w.enter("ip link set eth0 up"))
		return
	}
	if peer := w.peer(link); peer != nil {
		w.link = peer.Attrs().Name
		if peer.Attrs().Flags&net.FlagUp == 0 {
			w.add("pod link", Stop, fmt.Sprintf("%s, the host's end of the pod's eth0, is down", w.link), "ip link set "+w.link+" up")
			return
		}
	}
	if a.OperState == netlink.OperDown || a.OperState == netlink.OperLowerLayerDown {
		w.add("pod link", Stop, "eth0 of "+w.From.String()+" has no carrier: the other end of its link is down", "ip link set "+cmp.Or(w.link, "LINK")+" up")
		return
	}
	addrs, err := h.AddrList(link, family(w.To.Addr()))
	if err != nil || len(globals(addrs)) == 0 {
		w.add("pod link", Stop, fmt.Sprintf("eth0 of %s has no %s address", w.From, familyName(w.To.Addr())), "delete the pod and let it be made again; for IPv6 add a range to network.pod_cidrs")
		return
	}
	w.add("pod link", OK, fmt.Sprintf("eth0 is up with %s, MTU %d, host end %s", strings.Join(globals(addrs), ", "), a.MTU, cmp.Or(w.link, "elsewhere")), "")
}

// peer is the host's end of a veth, nil if it is none or not here.
func (w *walk) peer(link netlink.Link) netlink.Link {
	if link.Type() != "veth" || link.Attrs().ParentIndex == 0 {
		return nil
	}
	peer, err := w.host.LinkByIndex(link.Attrs().ParentIndex)
	if err != nil || peer.Type() != "veth" || peer.Attrs().ParentIndex != link.Attrs().Index {
		return nil
	}
	return peer
}

func globals(addrs []netlink.Addr) []string {
	var out []string
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_UNIVERSE {
			out = append(out, a.IP.String())
		}
	}
	return out
}

// routeFrom asks the kernel for the route of the place's own packets.
func (w *walk) routeFrom(h *netlink.Handle) {
	to := w.To.Addr()
	routes, err := h.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		cure := "delete the pod and let it be made again"
		if w.From.NetNS == "" {
			cure = "add a route, as with `ip route add " + to.String() + " …`; those of Services and pods the daemon makes: see `pausa doctor`"
		}
		w.add("route", Stop, fmt.Sprintf("%s has no route to %s: %v", w.From, to, plainErr(err)), cure)
		return
	}
	r := routes[0]
	if r.Type == unix.RTN_UNREACHABLE || r.Type == unix.RTN_BLACKHOLE || r.Type == unix.RTN_PROHIBIT {
		w.add("route", Stop, fmt.Sprintf("%s has a route that refuses %s", w.From, to), "ip route del "+to.String())
		return
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		w.src = src.Unmap()
	}
	w.add("route", OK, fmt.Sprintf("%s sends to %s %s", w.From, to, routeText(h, &r)), "")
}

func routeText(h *netlink.Handle, r *netlink.Route) string {
	text := ""
	if r.Gw != nil {
		text += "by " + r.Gw.String() + " "
	}
	if l, err := h.LinkByIndex(r.LinkIndex); err == nil {
		text += "on " + l.Attrs().Name
	}
	if r.Src != nil {
		text += " from " + r.Src.String()
	}
	return text
}

// hostEnd looks at the link's end on the host, and at the bridge behind it.
func (w *walk) hostEnd() {
	if w.link == "" {
		w.add("host link", OK, "the pod's link is not a veth of this host: what is on its way is not seen here", "")
		return
	}
	l, err := w.host.LinkByName(w.link)
	if err != nil {
		w.add("host link", Stop, fmt.Sprintf("%s is not there: %v", w.link, err), "delete the pod and let it be made again")
		return
	}
	if l.Attrs().MasterIndex == 0 {
		if w.builtIn() {
			w.add("host link", Stop, w.link+" is no port of bridge "+w.Bridge, "ip link set "+w.link+" master "+w.Bridge)
			return
		}
		w.add("host link", OK, w.link+" is up, routed", "")
		return
	}
	master, err := w.host.LinkByIndex(l.Attrs().MasterIndex)
	if err != nil {
		w.add("host link", Stop, fmt.Sprintf("the bridge of %s is not there: %v", w.link, err), "restart the daemon: it makes its bridge again")
		return
	}
	if master.Attrs().Flags&net.FlagUp == 0 {
		w.add("host link", Stop, "bridge "+master.Attrs().Name+" is down", "ip link set "+master.Attrs().Name+" up")
		return
	}
	w.add("host link", OK, w.link+" is up, port of bridge "+master.Attrs().Name, "")
}

// builtIn tells whether the pod is on the built-in network.
func (w *walk) builtIn() bool {
	for _, a := range w.From.Addrs {
		for _, r := range w.Ranges {
			if r.Contains(a) {
				_, err := w.host.LinkByName(w.Bridge)
				return err == nil
			}
		}
	}
	return false
}

// forward looks at the host's route to one end, and at whether it forwards.
func (w *walk) forward(end netip.AddrPort) {
	if w.From.NetNS == "" && end == w.To {
		return // the route has been looked at
	}
	routes, err := w.host.RouteGet(end.Addr().AsSlice())
	if err != nil || len(routes) == 0 {
		w.add("host route", Stop, fmt.Sprintf("this host has no route to %s: %v", end.Addr(), plainErr(err)), "ip route add "+end.Addr().String()+" dev "+cmp.Or(w.Bridge, "DEVICE"))
		return
	}
	w.add("host route", OK, fmt.Sprintf("this host sends to %s %s", end.Addr(), routeText(w.host, &routes[0])), "")
	if w.From.NetNS == "" || routes[0].Type == unix.RTN_LOCAL {
		return
	}
	name := "net.ipv4.ip_forward"
	if end.Addr().Is6() {
		name = "net.ipv6.conf.all.forwarding"
	}
	if value, err := sysctl(name); err != nil || value == "0" {
		w.add("forwarding", Stop, fmt.Sprintf("%s is %q: the host passes nothing on between its links", name, value), "sysctl -w "+name+"=1")
		return
	}
	w.add("forwarding", OK, name+" is 1", "")
}

func sysctl(name string) (string, error) {
	text, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	return strings.TrimSpace(string(text)), err
}

// enter is a command line that runs words in the pod's network.
func (w *walk) enter(words string) string { return "nsenter --net=" + w.From.NetNS + " " + words }

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func plainErr(err error) string {
	if err == nil {
		return "none was found"
	}
	return err.Error()
}
