//go:build cgo

package keeper

import "testing"

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":            "net/ipv4/ip_forward",
		"net/ipv4/conf/eth0.5/rp_filter": "net/ipv4/conf/eth0.5/rp_filter",
		"net.ipv4.conf/eth0.5/rp_filter": "net/ipv4/conf/eth0.5/rp_filter",
	} {
		if got := sysctlPath(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
