package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/network/dns"
	"github.com/pausa-run/pausa/pod/reconcile"
)

// dnsPlace is which address of a range of Services is that of DNS, as clusters have it.
const dnsPlace = 10

// openDNS binds the sockets of cluster DNS. It is no reason for the daemon to
// end: without a server, pods use the host's resolver, and the warnings say why.
func openDNS(c *config.Config, log *slog.Logger) (*dns.Server, *reconcile.ClusterDNS, []string) {
	if !c.DNS {
		return nil, nil, nil
	}
	gateways, virtual := dnsAddrs(c.PodCIDRs, c.ServiceCIDRs)
	if len(virtual) == 0 {
		return nil, nil, []string{"DNS is off: no range of network.service_cidrs has a 10th address and a range of network.pod_cidrs of its family"}
	}
	server, err := dns.Listen(dns.Options{
		Domain: c.DNSDomain, Addrs: gateways, Ranges: slices.Concat(c.PodCIDRs, c.ServiceCIDRs), Own: virtual, Log: log,
	})
	if err != nil {
		return nil, nil, []string{fmt.Sprintf("DNS is off: %v", err)}
	}
	return server, &reconcile.ClusterDNS{
		Domain: c.DNSDomain, Addrs: virtual, Listeners: server.Listeners(), Set: server.Set,
		Reachable: func() bool { return hasAddr(gateways[0]) },
	}, server.Warnings()
}

// serveDNS answers until ctx ends. All else goes on without it.
func serveDNS(ctx context.Context, server *dns.Server, log *slog.Logger) {
	if err := server.Serve(ctx); err != nil {
		log.Error("DNS has ended; restart the daemon", "error", err)
	}
}

// dnsAddrs are the addresses to listen on, those of the bridge, and the cluster
// IPs that lead there, in the order of the ranges of Services.
func dnsAddrs(pods, services []netip.Prefix) (gateways, virtual []netip.Addr) {
	for _, s := range services {
		place := s.Masked().Addr()
		for range dnsPlace {
			place = place.Next()
		}
		i := slices.IndexFunc(pods, func(p netip.Prefix) bool { return p.Addr().Is4() == s.Addr().Is4() })
		if i < 0 || !s.Contains(place.Next()) { // an IPv4 range's last address is nobody's
			continue
		}
		gateways = append(gateways, pods[i].Masked().Addr().Next())
		virtual = append(virtual, place)
	}
	return gateways, virtual
}

// hasAddr tells whether an address is one of this host's.
func hasAddr(a netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addrs, func(have net.Addr) bool {
		p, err := netip.ParsePrefix(have.String())
		return err == nil && p.Addr() == a
	})
}
