package service

import (
	"strings"
	"testing"
)

// TestForeignNetwork is a host whose pods are on a network of other plugins
// (here as ptp makes it): there is no bridge of ours, and no default route.
func TestForeignNetwork(t *testing.T) {
	w := newWorld(t)
	p := newPlace(t, "ptp0", "")
	p.addr = map[int]string{4: "10.5.0.2", 6: "fd05::2"}
	run(t, `ip addr add 10.5.0.1/32 dev ptp0; ip -6 addr add fd05::1/128 dev ptp0 nodad
ip route add 10.5.0.2 dev ptp0; ip -6 route add fd05::2 dev ptp0`)
	p.configure(`ip addr add 10.5.0.2/24 dev eth0; ip -6 addr add fd05::2/64 dev eth0 nodad
ip route add default via 10.5.0.1; ip -6 route add default via fd05::1`)
	awaitLocal(t, "fd05::1")
	p.serve("ptp", 8080)
	tab := openTable(t, Options{RouteDev: "pausa0"})
	mustSync(t, tab, web("10.5.0.2:8080", "[fd05::2]:8080"))
	for _, from := range []*place{w.host, p, w.other} {
		for network, targets := range map[string][]string{
			"tcp": {"10.96.0.1:80", "[fd96::1]:80"}, "udp": {"10.96.0.1:53", "[fd96::1]:53"},
		} {
			for _, to := range targets {
				if got, err := from.ask(network, to); err != nil || !strings.HasPrefix(got, "ptp ") {
					t.Errorf("%s %s from %v: %q, %v", network, to, from.addr, got, err)
				}
			}
		}
	}
}
