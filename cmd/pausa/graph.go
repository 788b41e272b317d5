package main

import (
	"net/netip"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/cmd/pausa/internal/topology"
)

func (p *program) graphCommand() *cli.Command {
	return &cli.Command{
		Name:  "graph",
		Usage: "Draw what leads to what: ways in, Services, pods",
		Description: "Shows node ports, host ports and external addresses, the Services behind them with\n" +
			"their names and addresses, and the pods that answer, with their readiness.\n\n" +
			"Examples:\n" +
			"  pausa graph\n" +
			"  pausa graph -n shop\n" +
			"  pausa graph -o svg > shop.svg\n" +
			"  pausa graph -o mermaid >> README.md",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "namespace", Aliases: []string{"n"}, Usage: "only what is in `NAMESPACE`"},
			outputFlag("text", "mermaid", "svg", "json", "yaml"), configFlag(),
		},
		Action: p.graph,
	}
}

func (p *program) graph(ctx *cli.Context) error {
	format, err := outputOf(ctx, "text", "mermaid", "svg", "json", "yaml")
	if err != nil {
		return err
	}
	settings, _, err := p.settings(ctx)
	if err != nil {
		return err
	}
	all, err := p.world(ctx)
	if err != nil {
		return err
	}
	domain := settings.DNSDomain
	if !settings.DNS {
		domain = ""
	}
	all.Name(networksOf(settings), domain)
	w := all.Within(ctx.String("namespace"))
	switch format {
	case "json", "yaml":
		return p.printData(format, w)
	case "mermaid":
		return w.Mermaid(p.out)
	case "svg":
		return w.SVG(p.out)
	default:
		return w.Text(p.out)
	}
}

// networksOf are the built-in networks, and the ways to other hosts' pods.
func networksOf(c *config.Config) []topology.Network {
	out := []topology.Network{{Name: "pausa", Ranges: c.PodCIDRs}}
	for _, n := range c.Networks {
		out = append(out, topology.Network{Name: n.Name, Ranges: n.CIDRs})
	}
	for _, r := range c.Routes {
		via := "another host"
		if r.Via.IsValid() {
			via = "host " + r.Via.String()
		}
		out = append(out, topology.Network{Name: "of " + via, Ranges: []netip.Prefix{r.CIDR}})
	}
	return out
}
