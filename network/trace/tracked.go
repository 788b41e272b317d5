package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tracked tells where connections from here to the same destination go that
// exist already: a client that goes on sending datagrams stays with these.
func (w *walk) tracked(ends []netip.AddrPort) {
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.InetFamily(family(w.To.Addr())))
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		w.add("tracked", Warn, fmt.Sprintf("connection tracking cannot be read: %v", err), "")
		return
	}
	counts := map[netip.AddrPort]int{}
	for _, fl := range flows {
		if by, ours := w.leads(fl); ours {
			counts[by]++
		}
	}
	if len(counts) == 0 {
		w.add("tracked", OK, "no connection of before to "+w.To.String(), "")
		return
	}
	var words, stale []string
	for by, n := range counts {
		text := fmt.Sprintf("%d to %s%s", n, by, w.nameOf(by.Addr()))
		words = append(words, text)
		if w.Protocol == "UDP" && !slices.Contains(ends, by) {
			stale = append(stale, text)
		}
	}
	sort.Strings(words)
	if len(stale) > 0 {
		w.add("tracked", Warn, "datagrams of before still lead elsewhere: "+strings.Join(stale, ", "), fmt.Sprintf("conntrack -D -p udp --orig-dst %s --orig-port-dst %d", w.To.Addr(), w.To.Port()))
		return
	}
	w.add("tracked", OK, "connections of before: "+strings.Join(words, ", "), "")
}

// leads is where a flow from here to the destination goes.
func (w *walk) leads(fl *netlink.ConntrackFlow) (netip.AddrPort, bool) {
	proto := uint8(unix.IPPROTO_TCP)
	if w.Protocol == "UDP" {
		proto = unix.IPPROTO_UDP
	}
	src, _ := netip.AddrFromSlice(fl.Forward.SrcIP)
	dst, _ := netip.AddrFromSlice(fl.Forward.DstIP)
	by, _ := netip.AddrFromSlice(fl.Reverse.SrcIP)
	ours := fl.Forward.Protocol == proto && src.Unmap() == w.src && netip.AddrPortFrom(dst.Unmap(), fl.Forward.DstPort) == w.To
	return netip.AddrPortFrom(by.Unmap(), fl.Reverse.SrcPort), ours
}
