package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/cmd/pausa/internal/topology"
	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/network/trace"
	"github.com/pausa-run/pausa/pod"
)

func (p *program) traceCommand() *cli.Command {
	return &cli.Command{
		Name:      "trace",
		Usage:     "Follow a connection step by step, and say where it stops",
		ArgsUsage: "FROM TO",
		Description: "FROM is a pod, or 'host'. TO is svc/NAME:PORT, POD:PORT or IP:PORT, with /UDP at the\n" +
			"end for UDP. Names are of --namespace, or written NAMESPACE/NAME (svc/NAMESPACE/NAME).\n" +
			"Each thing on the way is looked at: the name as the pod resolves it, routes and links,\n" +
			"the rules of Services, the rules of others, and who listens. Then a connection is made,\n" +
			"from where the pod is. The first STOP says why, and what cures it. The exit status is 0\n" +
			"only if the connection goes through.\n\n" +
			"Examples:\n" +
			"  pausa trace web-1 svc/db:5432\n" +
			"  pausa trace host svc/shop/web:http\n" +
			"  pausa trace web-1 db-0:5432 --packet\n" +
			"  pausa trace web-1 203.0.113.9:53/UDP -o json",
		Flags: []cli.Flag{
			namespaceFlag(),
			&cli.BoolFlag{Name: "packet", Usage: "also list the nftables rules that a packet meets"},
			&cli.DurationFlag{Name: "timeout", Usage: "`DURATION` to wait for the connection", Value: 3 * time.Second},
			outputFlag("json", "yaml"), configFlag(), runFlag(),
		},
		Action: p.trace,
	}
}

func runFlag() cli.Flag {
	return &cli.StringFlag{Name: "run", Usage: "`FOLDER` of what ends with a reboot, instead of the setting"}
}

// route is one trace and its result.
type route struct {
	From    string       `json:"from"`
	To      string       `json:"to"`
	Through bool         `json:"through"`
	Steps   []trace.Step `json:"steps"`
}

func (p *program) trace(ctx *cli.Context) error {
	format, err := outputOf(ctx, "json", "yaml")
	if err != nil {
		return err
	}
	if ctx.Args().Len() != 2 {
		return badUsage(ctx, "name where from and where to, as in: pausa trace web-1 svc/db:5432")
	}
	settings, _, err := p.settings(ctx)
	if err != nil {
		return err
	}
	t := &tracer{p: p, ctx: ctx, config: settings}
	if t.pods, err = pod.ReadRecords(settings.Run); err != nil {
		fmt.Fprintf(p.err, "warning: %v\n", err)
	}
	out, err := t.run(ctx.Args().Get(0), ctx.Args().Get(1))
	if err != nil {
		return err
	}
	if format != "" {
		err = p.printData(format, out)
	} else {
		p.printRoute(out)
	}
	if err == nil && !out.Through {
		return exitCode(1)
	}
	return err
}

func (p *program) printRoute(r route) {
	fmt.Fprintf(p.out, "%s → %s\n", r.From, r.To)
	for _, s := range r.Steps {
		mark := map[string]string{trace.OK: "ok", trace.Warn: "warn", trace.Stop: "STOP"}[s.Verdict]
		fmt.Fprintf(p.out, "  %-4s  %-13s  %s\n", mark, s.Name, oneLine(s.What))
		if s.Cure != "" {
			fmt.Fprintf(p.out, "  %-4s  %-13s  cure: %s\n", "", "", oneLine(s.Cure))
		}
	}
	if r.Through {
		fmt.Fprintln(p.out, "it goes through")
	} else {
		fmt.Fprintln(p.out, "it does not go through")
	}
}

// tracer turns names into places and addresses.
type tracer struct {
	p      *program
	ctx    *cli.Context
	config *config.Config
	pods   []pod.Pod
}

func (t *tracer) run(from, to string) (route, error) {
	place, resolv, err := t.from(from)
	if err != nil {
		return route{}, err
	}
	out := route{From: place.String(), To: to}
	target, steps, err := t.to(to, place, resolv)
	if err != nil {
		return route{}, err
	}
	out.Steps = steps
	if !target.addr.IsValid() {
		return out, nil
	}
	rest, through, err := trace.Run(t.ctx.Context, trace.Request{
		From: place, To: target.addr, Protocol: target.protocol, Bridge: t.config.Bridge,
		Ranges: allPodCIDRs(t.config), PodOf: t.podOf, Packet: t.ctx.Bool("packet"), Timeout: t.ctx.Duration("timeout"),
	})
	if through { // the connection is right, and what was said before is not
		for i := range out.Steps {
			if out.Steps[i].Verdict == trace.Stop && out.Steps[i].Name != "name" {
				out.Steps[i].Verdict = trace.Warn
			}
		}
	}
	out.Steps = append(out.Steps, rest...)
	out.Through = through && !slices.ContainsFunc(out.Steps, func(s trace.Step) bool { return s.Verdict == trace.Stop })
	return out, err
}

// from is the place that FROM names, and its resolv.conf.
func (t *tracer) from(name string) (trace.Place, string, error) {
	if name == "host" {
		return trace.Place{}, "", nil
	}
	found, err := t.pod(name)
	if err != nil {
		return trace.Place{}, "", err
	}
	return t.place(found), filepath.Join(pod.Folder(t.config.Run, found.ID), "resolv.conf"), nil
}

func (t *tracer) place(p *pod.Pod) trace.Place {
	out := trace.Place{Name: "pod " + p.Config.Namespace + "/" + p.Config.Name, NetNS: p.NetNS, Addrs: p.IPs}
	if p.Config.HostNetwork {
		out.NetNS = ""
	}
	return out
}

// pod finds the newest pod of a name that runs.
func (t *tracer) pod(name string) (*pod.Pod, error) {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "pod/"), "po/")
	namespace, name := t.split(name)
	var best *pod.Pod
	for i := range t.pods {
		p := &t.pods[i]
		if p.Config.Name == name && p.Config.Namespace == namespace && p.StoppedAt.IsZero() && (best == nil || p.CreatedAt.After(best.CreatedAt)) {
			best = p
		}
	}
	if best == nil {
		return nil, fmt.Errorf("pod %q does not run in namespace %s: see 'pausa get pods -A'", name, namespace)
	}
	return best, nil
}

// split gives NAMESPACE/NAME, or NAME of --namespace, in its parts.
func (t *tracer) split(text string) (namespace, name string) {
	if ns, rest, ok := strings.Cut(text, "/"); ok {
		return ns, rest
	}
	return t.ctx.String("namespace"), text
}

func (t *tracer) podOf(a netip.Addr) (trace.Place, bool) {
	for i := range t.pods {
		p := &t.pods[i]
		if p.StoppedAt.IsZero() && !p.Config.HostNetwork && slices.Contains(p.IPs, a) {
			return t.place(p), true
		}
	}
	return trace.Place{}, false
}

// goal is where a trace leads; without an address it ends before it begins.
type traceGoal struct {
	addr     netip.AddrPort
	protocol string
}

func (t *tracer) to(text string, from trace.Place, resolv string) (traceGoal, []trace.Step, error) {
	rest, protocol := text, "TCP"
	if cut, ok := cutSuffixFold(text, "/udp"); ok {
		rest, protocol = cut, "UDP"
	} else if cut, ok := cutSuffixFold(text, "/tcp"); ok {
		rest = cut
	}
	if addr, err := netip.ParseAddrPort(rest); err == nil {
		return traceGoal{addr, protocol}, nil, nil
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return traceGoal{}, nil, badUsage(t.ctx, "%q has no port: write svc/NAME:PORT, POD:PORT or IP:PORT", text)
	}
	name, port := rest[:i], rest[i+1:]
	for _, word := range []string{"svc/", "service/", "services/"} {
		if service, ok := strings.CutPrefix(name, word); ok {
			return t.service(service, port, from, resolv)
		}
	}
	p, err := t.pod(name)
	if err != nil {
		return traceGoal{}, nil, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return traceGoal{}, nil, badUsage(t.ctx, "%q is no port", port)
	}
	addrs := p.IPs
	if p.Config.HostNetwork {
		addrs = nodeIPs(t.config.Bridge)()
	}
	if len(addrs) == 0 {
		return traceGoal{}, nil, fmt.Errorf("pod %s has no address yet: see 'pausa describe pod %s'", name, name)
	}
	return traceGoal{netip.AddrPortFrom(addrs[0], uint16(number)), protocol}, nil, nil
}

func cutSuffixFold(s, suffix string) (string, bool) {
	if len(s) < len(suffix) || !strings.EqualFold(s[len(s)-len(suffix):], suffix) {
		return s, false
	}
	return s[:len(s)-len(suffix)], true
}

// service resolves a Service as the pod would, and tells of its endpoints.
func (t *tracer) service(name, port string, from trace.Place, resolv string) (traceGoal, []trace.Step, error) {
	namespace, name := t.split(name)
	world, err := t.p.world(t.ctx)
	if err != nil {
		return traceGoal{}, nil, err
	}
	s := world.Service(namespace, name)
	if s == nil {
		return traceGoal{}, nil, notFound(kindOf("Service"), name)
	}
	sp := s.Port(port)
	if sp == nil && s.ExternalName == "" {
		step := trace.Step{
			Name: "service", Verdict: trace.Stop, What: fmt.Sprintf("service %s/%s has no port %s, it has %s", namespace, name, port, s.PortNames()),
			Cure: "use one of them, or add the port to the Service",
		}
		return traceGoal{}, []trace.Step{step}, nil
	}
	steps := []trace.Step{endpointStep(s, sp)}
	var found []netip.Addr
	if resolv != "" {
		var step trace.Step
		found, step = trace.Resolve(t.ctx.Context, from, resolv, name+"."+namespace+".svc."+t.config.DNSDomain)
		steps = append(steps, checkName(s, found, step))
	}
	goal := s.Target(sp, port, found)
	return traceGoal{goal, protocolOf(sp)}, steps, nil
}

func protocolOf(p *topology.Port) string {
	if p == nil {
		return "TCP"
	}
	return p.Protocol
}

// endpointStep says which pods are behind a Service, and why others are not.
func endpointStep(s *topology.Service, p *topology.Port) trace.Step {
	step := trace.Step{Name: "endpoints", Verdict: trace.OK}
	if s.ExternalName != "" {
		step.What = fmt.Sprintf("service %s is another name of %s: it has no endpoints here", s.ID(), s.ExternalName)
		return step
	}
	var ready, not []string
	for _, e := range s.Endpoints {
		text := fmt.Sprintf("%s (%s)", e.Pod, e.Addr())
		if e.Ready {
			ready = append(ready, text)
		} else {
			not = append(not, text+" is not ready: "+e.Reason)
		}
	}
	switch {
	case len(s.Endpoints) == 0 && len(s.Selector) > 0:
		step.Verdict, step.What = trace.Stop, fmt.Sprintf("service %s has no endpoint: no pod of namespace %s has the labels %s", s.ID(), s.Namespace, s.SelectorText())
		step.Cure = "pausa get pods --show-labels -n " + s.Namespace
	case len(ready) == 0 && !s.NotReadyToo && len(s.Endpoints) > 0:
		step.Verdict, step.What = trace.Stop, fmt.Sprintf("service %s has no ready endpoint: %s", s.ID(), strings.Join(not, "; "))
		step.Cure = "pausa describe pod " + s.Endpoints[0].Pod + " -n " + s.Namespace
	case len(not) > 0:
		step.Verdict, step.What = trace.Warn, fmt.Sprintf("service %s leads to %s; %s", s.ID(), strings.Join(ready, ", "), strings.Join(not, "; "))
	default:
		step.What = fmt.Sprintf("service %s port %s leads to %s", s.ID(), p, orNone(strings.Join(ready, ", ")))
	}
	return step
}

// checkName compares what a pod resolves with what the Service has.
func checkName(s *topology.Service, found []netip.Addr, step trace.Step) trace.Step {
	if len(found) == 0 || len(s.ClusterIPs) == 0 {
		return step
	}
	for _, a := range found {
		if !slices.Contains(s.ClusterIPs, a) {
			step.Verdict, step.What = trace.Stop, fmt.Sprintf("%s, which is not an address of service %s", step.What, s.ID())
			step.Cure = "the pod asks a server other than the cluster's: see its dnsPolicy and dnsConfig"
		}
	}
	return step
}

// world asks the daemon for what there is.
func (p *program) world(ctx *cli.Context) (*topology.World, error) {
	c, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	var raw [][]byte
	for _, k := range []string{"Pod", "Service", "Endpoints"} {
		found, err := c.fetch(ctx, &pausav1.GetRequest{Kind: k})
		if err != nil && !isNotFound(err) {
			return nil, fmt.Errorf("get %s: %w", kindOf(k).plural, err)
		}
		for _, o := range found {
			raw = append(raw, o.raw)
		}
	}
	return topology.Build(raw)
}
