package main

import (
	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/internal/starter"
)

func (p *program) serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "Run the daemon",
		Description: "Starts the keeper if none runs, heals what an earlier daemon left, and answers on\n" +
			"the socket (runtime.v1 for a kubelet, pausa.v1 for this program). SIGTERM ends the\n" +
			"daemon alone: containers go on, and the next daemon takes them over.\n\n" +
			"Examples:\n" +
			"  pausa serve\n" +
			"  pausa serve --state /srv/pausa --run /run/pausa2\n" +
			"  PAUSA_LOG_LEVEL=debug pausa serve --config ./config.toml",
		Flags: []cli.Flag{
			configFlag(),
			&cli.StringFlag{Name: "state", Usage: "`FOLDER` of what outlives a reboot, instead of the setting"},
			&cli.StringFlag{Name: "run", Usage: "`FOLDER` of what ends with a reboot, instead of the setting"},
		},
		Action: p.serve,
	}
}

func (p *program) serve(ctx *cli.Context) error {
	if ctx.Args().Present() {
		return badUsage(ctx, "unexpected argument %q", ctx.Args().First())
	}
	settings, _, err := p.settings(ctx)
	if err != nil {
		return err
	}
	starter.Forget()
	return p.daemon(ctx.Context, settings)
}
