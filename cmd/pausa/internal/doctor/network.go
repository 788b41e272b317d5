package doctor

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/network/bridge"
)

// firewall names the chains of others that cut pods off.
func (h Host) firewall(context.Context) []Check {
	var out []Check
	plugin, err := bridge.New(nil)
	if err != nil {
		return warn("run as root", "the rules of others cannot be read: %v", err)
	}
	defer func() { _ = plugin.Close() }()
	blockers, err := plugin.Blockers(h.Config.Bridge)
	if err != nil {
		return warn("run as root", "the rules of others cannot be read: %v", err)
	}
	for _, b := range blockers {
		what, cure, _ := strings.Cut(b, ": run ")
		out = append(out, fail(cure, "%s", what)...)
	}
	for _, family := range []string{"ip", "ip6"} {
		names, err := os.ReadFile(filepath.Join(h.Proc, "net", family+"_tables_names"))
		if err == nil && strings.Contains(string(names), "filter") {
			out = append(out, warn(family+"tables-legacy -S FORWARD, and move these rules to nftables",
				"legacy %stables has rules, which nobody but itself can read: they may drop what pods send", family)...)
		}
	}
	if len(out) == 0 {
		return ok("no chain of others drops what pods send")
	}
	return out
}

// network looks at the configuration that new pods get.
func (h Host) network(context.Context) []Check {
	used, problems := network.CheckConf(h.Config.CNIConfDir, h.Config.CNIBinDirs)
	var out []Check
	for _, p := range problems {
		verdict := warn
		if used == "" {
			verdict = fail
		}
		out = append(out, verdict("correct or remove the file; install the plugin in "+strings.Join(h.Config.CNIBinDirs, " or "), "%v", p)...)
	}
	if used != "" {
		out = append(out, ok("new pods get network %s", used)...)
	}
	return out
}

// often is how many times an hour is more than a coincidence.
const often = 10

// events tells what was changed of the network of late.
func (h Host) events(context.Context) []Check {
	if h.Daemon.Err != nil {
		return ok("not known: the daemon keeps them, which does not run")
	}
	if len(h.Daemon.Healed) == 0 {
		return ok("nobody has changed the network in the last hour")
	}
	var out []Check
	for _, e := range h.Daemon.Healed {
		if e.PerHour >= often {
			out = append(out, warn("end what does it, or let it leave Pausa's own be: see pausa events --types Warning", "somebody changes the network again and again: %s", e.What)...)
		} else {
			out = append(out, ok("%s", e.What)...)
		}
	}
	return out
}

// patience is how long a name server is waited for.
const patience = 2 * time.Second

// names asks the cluster's own server, as pods do.
func (h Host) names(ctx context.Context) []Check {
	if !h.Config.DNS {
		return ok("cluster DNS is off, by the setting network.dns.enabled")
	}
	if h.Daemon.Err != nil {
		return ok("cluster DNS is served by the daemon, which does not run")
	}
	if !h.hasBridge() {
		return ok("not asked: the built-in network's bridge is made with the first pod")
	}
	name := "kube-dns.kube-system.svc." + h.Config.DNSDomain
	for _, at := range h.DNS {
		m, err := ask(ctx, net.JoinHostPort(at.String(), "53"), name, dns.TypeA)
		if err != nil {
			return fail("pausa trace host "+at.String()+":53/UDP", "%s does not answer: pods find no Service by its name: %v", at, err)
		}
		if m.Rcode != dns.RcodeSuccess {
			return fail("see the daemon's log", "%s says %s of %s", at, dns.RcodeToString[m.Rcode], name)
		}
	}
	return ok("cluster DNS answers for %s", h.Config.DNSDomain)
}

// upstream asks the servers to which other names are forwarded.
func (h Host) upstream(ctx context.Context) []Check {
	const path = "/etc/resolv.conf"
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil || len(conf.Servers) == 0 {
		return warn("name one there", "%s has no name server: pods find no name outside of the cluster", path)
	}
	var silent []string
	for _, s := range conf.Servers {
		if _, err := ask(ctx, net.JoinHostPort(s, conf.Port), ".", dns.TypeNS); err != nil {
			silent = append(silent, s)
		}
	}
	switch {
	case len(silent) == len(conf.Servers):
		return warn("correct "+path+"; it is followed at once", "no name server of %s answers (%s): pods find no name outside of the cluster", path, some(silent))
	case len(silent) > 0:
		return warn("correct "+path+"; it is followed at once", "name servers that do not answer: %s; others do", some(silent))
	}
	return ok("%s answers", strings.Join(conf.Servers, ", "))
}

func ask(ctx context.Context, server, name string, kind uint16) (*dns.Msg, error) {
	client := dns.Client{Timeout: patience}
	m, _, err := client.ExchangeContext(ctx, new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), server)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	return m, nil
}
