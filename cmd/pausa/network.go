package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/network/bridge"
	"github.com/pausa-run/pausa/network/dns"
	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod/event"
)

// networkOptions are the settings of the pods' networks.
func networkOptions(c *config.Config, log *slog.Logger) network.Options {
	o := network.Options{
		RunDir: filepath.Join(c.Run, "network"), ConfDir: c.CNIConfDir, BinDirs: c.CNIBinDirs,
		PodCIDRs: c.PodCIDRs, Bridge: c.Bridge, MTU: c.MTU, Connected: c.Connected, Log: log,
	}
	for _, n := range c.Networks {
		o.Networks = append(o.Networks, network.Named{Name: n.Name, Ranges: n.CIDRs})
	}
	for _, r := range c.Routes {
		o.Routes = append(o.Routes, network.Route{Dst: r.CIDR, Via: r.Via})
	}
	return o
}

// allPodCIDRs are the ranges of all built-in networks.
func allPodCIDRs(c *config.Config) []netip.Prefix {
	all := slices.Clone(c.PodCIDRs)
	for _, n := range c.Networks {
		all = append(all, n.CIDRs...)
	}
	return all
}

// followRanges tells Services and DNS which addresses are those of this host's pods:
// also those that a kubelet names or another CNI plugin gives.
func followRanges(net *network.Manager, services *service.Table, names *dns.Server, serviceCIDRs []netip.Prefix, log *slog.Logger) {
	net.FollowRanges(func(ranges []netip.Prefix) {
		if err := services.SetPodCIDRs(ranges); err != nil {
			log.Error("tell Services of the pods' ranges", "error", err)
		}
		if names != nil {
			names.SetRanges(slices.Concat(ranges, serviceCIDRs))
		}
	})
}

// The network is looked at for damage so often, and written again without a
// cause so often.
const (
	lookEvery = time.Second
	healEvery = 30 * time.Second
)

// What is healed.
const (
	healLinks = "links" // bridge, addresses, routes and settings
	healRules = "rules"
)

// healer writes the bridges, links, kernel settings, routes and the rules of pods
// again when somebody has changed them, and now and then.
type healer struct {
	net      *network.Manager
	services *service.Table
	healed   func(what string, err error) // called each time that damage was found
	events   *event.Recorder
	log      *slog.Logger

	last   time.Time       // when all was written
	failed []bridge.Damage // what could not be cured then
	lost   string          // why new pods get no network
}

// Reasons of events of the host, besides those of bridge.Damage.
const (
	eventStarting        = "Starting"
	eventRules           = "RulesChanged"
	eventNetworkReady    = "NetworkReady"
	eventNetworkNotReady = "NetworkNotReady"
	eventDNSAddress      = "DNSAddressRemoved"
	eventDNSFailed       = "DNSFailed"
	eventKeeper          = "KeeperRestarted"
)

// run heals until ctx ends.
func (h *healer) run(ctx context.Context) {
	changed := h.services.Watch(ctx)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	h.last = time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case by, open := <-changed:
			if !open {
				changed = nil
				continue
			}
			h.heal(ctx, healRules, []bridge.Damage{{Reason: eventRules, What: "rules of pausa were changed by " + cmp.Or(by, "somebody else")}})
		case <-look.C:
			h.look(ctx)
		}
	}
}

// look heals what is damaged, but what could not be healed only now and then.
func (h *healer) look(ctx context.Context) {
	damage, err := h.net.Damage(ctx)
	if err != nil { // as with a wrong file in the CNI folder, which is in the log
		h.log.Debug("look for damage of the network", "error", err)
	}
	h.ready(err)
	if slices.Equal(damage, h.failed) && time.Since(h.last) < healEvery {
		if err := h.services.Maintain(); err != nil {
			h.log.Error("heal routes", "error", err)
		}
		return
	}
	h.heal(ctx, healLinks, damage)
}

// heal writes all again; damage says what was found, of what kind, if anything was.
func (h *healer) heal(ctx context.Context, what string, damage []bridge.Damage) {
	if len(damage) > 0 {
		h.log.Warn("the network was changed by somebody else; making it again", "damage", words(damage))
	}
	h.last, h.failed = time.Now(), nil
	err := errors.Join(h.net.Sync(ctx), h.services.Maintain())
	if err != nil && ctx.Err() == nil {
		h.log.Error("heal network", "error", err)
		h.failed = damage
	}
	if len(damage) > 0 {
		h.healed(what, err)
	}
	for _, d := range damage {
		switch {
		case err != nil:
			h.events.Warning(h.events.Node(), d.Reason, "%s; it cannot be healed: %v", d.What, err)
		case d.Reason == bridge.MTUChanged:
			h.events.Normal(h.events.Node(), d.Reason, "%s; it is followed", d.What)
		default:
			h.events.Warning(h.events.Node(), d.Reason, "%s; it was made again", d.What)
		}
	}
}

func words(damage []bridge.Damage) string {
	var out []string
	for _, d := range damage {
		out = append(out, d.What)
	}
	return strings.Join(out, "; ")
}

// ready notes when the network of new pods is lost, as with a wrong file in the
// CNI folder, and when there is one again.
func (h *healer) ready(err error) {
	switch {
	case err == nil && h.lost != "":
		h.lost = ""
		h.events.Normal(h.events.Node(), eventNetworkReady, "New pods get a network again")
	case err != nil && err.Error() != h.lost:
		h.lost = err.Error()
		h.events.Warning(h.events.Node(), eventNetworkNotReady, "New pods get no network: %v", err)
	}
}
