package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
)

func (p *program) configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "Print each setting of the daemon and where it came from",
		Description: "Later ones override: default, file, environment variable, flag of 'pausa serve'.\n" +
			"The file is " + config.DefaultFile + ", if it exists, unless --config or PAUSA_CONFIG names another.\n\n" +
			"Examples:\n" +
			"  pausa config\n" +
			"  PAUSA_LOG_LEVEL=debug pausa config -o json\n" +
			"  pausa config --default > " + config.DefaultFile,
		Flags: []cli.Flag{
			configFlag(),
			&cli.BoolFlag{Name: "default", Usage: "print a commented file that holds every default"},
			outputFlag("json", "yaml"),
		},
		Action: p.config,
	}
}

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Usage: "settings `FILE` (TOML)", EnvVars: []string{"PAUSA_CONFIG"}}
}

func (p *program) config(ctx *cli.Context) error {
	format, err := outputOf(ctx, "json", "yaml")
	if err != nil {
		return err
	}
	if ctx.Args().Present() {
		return badUsage(ctx, "unexpected argument %q", ctx.Args().First())
	}
	if ctx.Bool("default") {
		_, err := fmt.Fprint(p.out, config.Default())
		return err
	}
	_, values, err := p.settings(ctx)
	if err != nil {
		return err
	}
	if format != "" {
		return p.printData(format, values)
	}
	rows := [][]string{{"SETTING", "VALUE", "SOURCE"}}
	for _, v := range values {
		if v.Value == "" {
			v.Value = `""`
		}
		rows = append(rows, []string{v.Key, v.Value, v.Source})
	}
	return p.printRows(rows)
}

// settings are those in force for this command line. Misspelt variables are
// named on standard error.
func (p *program) settings(ctx *cli.Context) (*config.Config, []config.Value, error) {
	for _, name := range config.UnknownEnv(p.environ()) {
		fmt.Fprintf(p.err, "warning: environment variable %s is no setting\n", name)
	}
	flags := map[string]string{}
	for _, name := range []string{"state", "run", "socket"} {
		if !p.flagGiven(ctx, name) {
			continue
		}
		path, err := filepath.Abs(ctx.String(name))
		if err != nil {
			return nil, nil, fmt.Errorf("--%s: %w", name, err)
		}
		flags[name] = path
	}
	return config.Load(config.Source{File: ctx.String("config"), Env: p.env, Flags: flags})
}

// flagGiven tells whether a flag was written on the command line; cli's IsSet
// is also true of a value that came from the environment.
func (p *program) flagGiven(ctx *cli.Context, name string) bool {
	fromEnv, ok := p.env("PAUSA_" + strings.ToUpper(name))
	return ctx.IsSet(name) && (!ok || fromEnv != ctx.String(name))
}
