package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestDNSAddrs(t *testing.T) {
	for _, c := range []struct {
		pods, services []netip.Prefix
		want           string
	}{
		{prefixes("10.88.0.0/16", "fd88::/64"), prefixes("10.96.0.0/16", "fd96::/112"), "[10.96.0.10 fd96::a]"},
		{prefixes("fd88::/64", "10.88.0.0/16"), prefixes("10.96.0.0/16"), "[10.96.0.10]"},
		{prefixes("10.88.0.0/16"), prefixes("fd96::/112", "10.96.0.0/28"), "[10.96.0.10]"},
		{prefixes("10.88.0.0/16"), prefixes("10.96.0.0/29"), "[]"},
		{prefixes("10.88.0.0/16"), prefixes("fd96::/112"), "[]"},
	} {
		addrs := dnsAddrs(c.pods, c.services)
		if got := fmt.Sprint(addrs); got != c.want {
			t.Errorf("pods %v, services %v: %s, want %s", c.pods, c.services, got, c.want)
		}
	}
}

// The daemon goes on without DNS, and says why.
func TestDNSThatCannotBe(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if server, cluster, warnings := openDNS(&config.Config{}, nil, nil, nil, log); server != nil || cluster != nil || len(warnings) != 0 {
		t.Errorf("switched off: %v %v %v", server, cluster, warnings)
	}
	server, cluster, warnings := openDNS(&config.Config{DNS: true, DNSDomain: "cluster.local", PodCIDRs: prefixes("10.88.0.0/16"), ServiceCIDRs: prefixes("10.96.0.0/29")}, nil, nil, nil, log)
	if server != nil || cluster != nil || !strings.Contains(fmt.Sprint(warnings), "DNS is off: no range of network.service_cidrs") {
		t.Errorf("a small range: %v %v %v", server, cluster, warnings)
	}
	server, cluster, warnings = openDNS(&config.Config{DNS: true, DNSDomain: "a..b", PodCIDRs: prefixes("10.88.0.0/16"), ServiceCIDRs: prefixes("10.96.0.0/16")}, nil, nil, nil, log)
	if server != nil || cluster != nil || !strings.Contains(fmt.Sprint(warnings), "is not a domain") {
		t.Errorf("a bad domain: %v %v %v", server, cluster, warnings)
	}
}
