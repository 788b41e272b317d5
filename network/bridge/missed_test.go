package bridge

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMissedFlows(t *testing.T) {
	at := netip.MustParseAddrPort
	m := missedFlows{
		local: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true},
		ports: map[missedPort][]hostPort{
			{unix.IPPROTO_UDP, 53}: {{unix.IPPROTO_UDP, at("0.0.0.0:53"), at("10.88.0.2:5353")}},
			{unix.IPPROTO_UDP, 54}: {{unix.IPPROTO_UDP, at("198.51.100.1:54"), at("10.88.0.2:5353")}},
		},
	}
	for _, c := range []struct {
		to, by string
		proto  uint8
		want   bool
	}{
		{"192.0.2.1:53", "192.0.2.1", unix.IPPROTO_UDP, true}, // sent before there was a rule
		{"192.0.2.1:53", "10.88.0.9", unix.IPPROTO_UDP, true}, // or to another pod
		{"192.0.2.1:53", "10.88.0.2", unix.IPPROTO_UDP, false},
		{"192.0.2.1:53", "192.0.2.1", unix.IPPROTO_TCP, false},
		{"8.8.8.8:53", "8.8.8.8", unix.IPPROTO_UDP, false}, // on its way to somebody else
		{"198.51.100.1:54", "198.51.100.1", unix.IPPROTO_UDP, true},
		{"192.0.2.1:54", "192.0.2.1", unix.IPPROTO_UDP, false},
	} {
		to := at(c.to)
		flow := &netlink.ConntrackFlow{
			Forward: netlink.IPTuple{DstIP: to.Addr().AsSlice(), DstPort: to.Port(), Protocol: c.proto},
			Reverse: netlink.IPTuple{SrcIP: net.ParseIP(c.by)},
		}
		if got := m.MatchConntrackFlow(flow); got != c.want {
			t.Errorf("%d to %s by %s: %v, want %v", c.proto, c.to, c.by, got, c.want)
		}
	}
}
