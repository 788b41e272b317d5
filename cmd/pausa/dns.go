package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/network/dns"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/event"
	"github.com/pausa-run/pausa/pod/reconcile"
	"github.com/pausa-run/pausa/runtime"
)

// dnsPlace is which address of a range of Services is that of DNS, as clusters have it.
const dnsPlace = 10

// openDNS binds the sockets of cluster DNS. It is no reason for the daemon to
// end: without a server, pods use the host's resolver, and the warnings say why.
func openDNS(c *config.Config, inherited map[string]*os.File, routed func() bool, answered func(dns.Source, string), log *slog.Logger) (*dns.Server, *reconcile.ClusterDNS, []string) {
	if !c.DNS {
		if err := dns.Release(dnsAddrs(c.PodCIDRs, c.ServiceCIDRs)); err != nil {
			log.Warn("give up the addresses of DNS", "error", err)
		}
		return nil, nil, nil
	}
	addrs := dnsAddrs(c.PodCIDRs, c.ServiceCIDRs)
	if len(addrs) == 0 {
		return nil, nil, []string{"DNS is off: no range of network.service_cidrs has a 10th address and a range of network.pod_cidrs of its family"}
	}
	server, err := dns.Listen(dns.Options{
		Domain: c.DNSDomain, Addrs: addrs, Ranges: slices.Concat(allPodCIDRs(c), c.ServiceCIDRs), Log: log, Inherited: inherited, Answered: answered,
	})
	if err != nil {
		return nil, nil, []string{fmt.Sprintf("DNS is off: %v", err)}
	}
	var claimed []string
	if _, err := dns.Claim(addrs); err != nil {
		claimed = append(claimed, fmt.Sprintf("DNS: %v", err))
	}
	return server, &reconcile.ClusterDNS{
		Domain: c.DNSDomain, Addrs: addrs, Listeners: server.Listeners(), Set: server.Set, Update: server.Update, Reachable: routed,
	}, append(server.Warnings(), claimed...)
}

// namePods lets DNS answer for all pods, also those that a kubelet runs.
func namePods(names *dns.Server, pods *pod.Manager) {
	names.SetPods(func(namespace string, a netip.Addr) bool {
		return slices.ContainsFunc(pods.Snapshot().Pods, func(p *pod.Pod) bool {
			return p.Ready && p.Config.Namespace == namespace && slices.Contains(p.IPs, a)
		})
	})
}

// depositDNS lets the keeper hold the sockets of DNS, so that questions wait for
// the next daemon when this one ends, however it ends.
func depositDNS(ctx context.Context, keeper *runtime.Client, server *dns.Server, log *slog.Logger) {
	files := map[string]*os.File{}
	var err error
	if server != nil {
		files, err = server.Files()
	}
	err = errors.Join(err, keeper.Deposit(ctx, files))
	closeAll(files)
	if err != nil {
		log.Warn("the keeper does not hold the sockets of DNS: questions are lost while the daemon is restarted", "error", err)
	}
}

// inheritedDNS are the sockets of the daemon before; none is no fault.
func inheritedDNS(ctx context.Context, keeper *runtime.Client, log *slog.Logger) map[string]*os.File {
	files, err := keeper.Deposited(ctx)
	if err != nil {
		log.Debug("the keeper holds no sockets of DNS", "error", err)
	}
	return files
}

func closeAll(files map[string]*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// serveDNS answers until ctx ends. All else goes on without it.
func serveDNS(ctx context.Context, server *dns.Server, events *event.Recorder, log *slog.Logger) {
	if err := server.Serve(ctx); err != nil {
		events.Warning(events.Node(), eventDNSFailed, "DNS has ended; restart the daemon: %v", err)
		log.Error("DNS has ended; restart the daemon", "error", err)
	}
}

// dnsAddrs are the addresses of DNS, in the order of the ranges of Services: the
// same place in each whose family pods have.
func dnsAddrs(pods, services []netip.Prefix) (addrs []netip.Addr) {
	for _, s := range services {
		place := s.Masked().Addr()
		for range dnsPlace {
			place = place.Next()
		}
		has := slices.ContainsFunc(pods, func(p netip.Prefix) bool { return p.Addr().Is4() == s.Addr().Is4() })
		if has && s.Contains(place.Next()) { // an IPv4 range's last address is nobody's
			addrs = append(addrs, place)
		}
	}
	return addrs
}

// keepDNSAddrs takes the addresses of DNS back when somebody has taken them away, until ctx ends.
func keepDNSAddrs(ctx context.Context, addrs []netip.Addr, events *event.Recorder, log *slog.Logger) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		given, err := dns.Claim(addrs)
		for _, a := range given {
			events.Warning(events.Node(), eventDNSAddress, "address %s of DNS is gone from lo; it was given again", a)
		}
		if err != nil && err.Error() != failed {
			log.Error("keep the addresses of DNS", "error", err)
		}
		if failed = ""; err != nil {
			failed = err.Error()
		}
	}
}
