package network

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

// TestSpoofedFrames: what a pod with all rights over its own network may try on others.
func TestSpoofedFrames(t *testing.T) {
	h, _, m := twoHosts(t)
	a, ra := newPod(t, m, "aaaa")
	b, rb := newPod(t, m, "bbbb")
	own, other := must(net.ParseMAC(ra.MAC)), must(net.ParseMAC(rb.MAC))
	gw := must(h.Net.LinkByName("pausa0")).Attrs().HardwareAddr
	all4, all6 := netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("ff02::1")
	everybody := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	linkLocal := netip.MustParseAddr("fe80::" + fmt.Sprintf("%x:%xff:fe%x:%x", uint16(own[0]^2)<<8|uint16(own[1]), own[2], own[3], uint16(own[4])<<8|uint16(own[5])))
	for what, tc := range map[string]struct {
		frame []byte
		want  bool // it reaches the host or the other pod
	}{
		"its own":                    {hosttest.UDP(own, gw, ra.IPs[0], netip.MustParseAddr("10.9.0.1"), 1000, 7), true},
		"its own by IPv6":            {hosttest.UDP(own, gw, ra.IPs[1], netip.MustParseAddr("fd09::1"), 1000, 7), true},
		"another IP":                 {hosttest.UDP(own, gw, rb.IPs[0], netip.MustParseAddr("10.9.0.1"), 1000, 7), false},
		"another IPv6":               {hosttest.UDP(own, gw, rb.IPs[1], netip.MustParseAddr("fd09::1"), 1000, 7), false},
		"another MAC":                {hosttest.UDP(other, gw, ra.IPs[0], netip.MustParseAddr("10.9.0.1"), 1000, 7), false},
		"ARP for itself":             {hosttest.ARP(own, own, ra.IPs[0], netip.MustParseAddr("10.9.0.1")), true},
		"ARP as another":             {hosttest.ARP(own, own, rb.IPs[0], netip.MustParseAddr("10.9.0.1")), false},
		"ARP as the gateway":         {hosttest.ARP(own, own, netip.MustParseAddr("10.9.0.1"), rb.IPs[0]), false},
		"ARP with another MAC in it": {hosttest.ARP(own, other, ra.IPs[0], netip.MustParseAddr("10.9.0.1")), false},
		"router advertisement":       {hosttest.ICMPv6(own, linkLocal, all6, 134, make([]byte, 12)), false},
		"redirect":                   {hosttest.ICMPv6(own, linkLocal, all6, 137, make([]byte, 36)), false},
		"neighbour advertisement":    {hosttest.ICMPv6(own, linkLocal, all6, 136, append(make([]byte, 4), rb.IPs[1].AsSlice()...)), false},
		"echo":                       {hosttest.ICMPv6(own, linkLocal, all6, 128, make([]byte, 4)), true},
		"DHCP server to the other":   {hosttest.UDP(own, other, ra.IPs[0], all4, 67, 68), false},
		"DHCP client":                {hosttest.UDP(own, everybody, netip.MustParseAddr("0.0.0.0"), all4, 68, 67), false},
		"VLAN tag":                   {append(append(append([]byte{}, gw...), own...), 0x81, 0, 0, 1, 8, 0, 0x45), false},
		"another protocol":           {append(append(append([]byte{}, gw...), own...), 0x88, 0xcc, 1, 2, 3, 4), false},
	} {
		seen := hosttest.Capture(t, map[*hosttest.Host]string{h: "pausa0", b: "eth0"})
		must0(t, a.SendFrame("eth0", tc.frame))
		if got := seen(tc.frame); got != tc.want {
			t.Errorf("%s: seen by others: %v, want %v", what, got, tc.want)
		}
	}
	detach(t, m, "aaaa")
	detach(t, m, "bbbb")
	wantNothing(t, h, m)
}
