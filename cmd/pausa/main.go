// Command pausa runs pods on one host: it is the command line, the daemon
// (pausa serve) and, when CNI_COMMAND is set, the built-in CNI plugin.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/network/bridge"
)

func main() {
	images.CheckMain()
	if os.Getenv("CNI_COMMAND") != "" {
		os.Exit(bridge.PluginMain(os.Stdin, os.Stdout, os.Environ()))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := &program{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		env: os.LookupEnv, environ: os.Environ, now: time.Now,
	}
	code := p.run(ctx, os.Args)
	stop()
	os.Exit(code)
}

// program is one run of the command line: where it reads and writes.
type program struct {
	in      io.Reader
	out     io.Writer
	err     io.Writer
	env     func(name string) (string, bool)
	environ func() []string
	now     func() time.Time
}

// exitCode ends the program with a code of somebody else's, without a message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// run executes one command line (args[0] is the program) and returns its exit
// status: 0 when all is as asked, 1 when not, 2 for a wrong command line, or
// the code of the command that ran in a container.
func (p *program) run(ctx context.Context, args []string) int {
	app := p.app()
	err := app.RunContext(ctx, arrange(app, args))
	var code exitCode
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		fmt.Fprintf(p.err, "error: %v\nsee '%s --help'\n", err, usage.command)
		return 2
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return 130
	default:
		p.fail(err)
		return 1
	}
}

// fail prints err, one line for each of those that were joined.
func (p *program) fail(err error) {
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) && err.Error() == errors.Join(many.Unwrap()...).Error() {
		for _, e := range many.Unwrap() {
			p.fail(e)
		}
		return
	}
	fmt.Fprintf(p.err, "error: %v\n", err)
}

func (p *program) app() *cli.App {
	app := &cli.App{
		Name:  "pausa",
		Usage: "pods with a network on one host",
		Description: "Speaks as kubectl does, to the daemon on this host ('pausa serve').\n" +
			"Manifests are standard Kubernetes YAML.\n\n" +
			"Examples:\n" +
			"  pausa apply -f hello.yaml        declare what should run\n" +
			"  pausa get pods,services -A       see what runs\n" +
			"  pausa exec -it hello -- sh       look around inside\n" +
			"  pausa delete --all -A            empty the host",
		Flags: []cli.Flag{&cli.StringFlag{
			Name: "socket", Usage: "`PATH` of the daemon's unix socket", Value: defaultSocket, EnvVars: []string{"PAUSA_SOCKET"},
		}},
		Commands: []*cli.Command{
			p.applyCommand(), p.deleteCommand(), p.getCommand(), p.describeCommand(),
			p.eventsCommand(), p.logsCommand(), p.execCommand(), p.attachCommand(), p.waitCommand(), p.runCommand(),
			p.imagesCommand(), p.traceCommand(), p.graphCommand(), p.doctorCommand(),
			p.serveCommand(), p.infoCommand(), p.configCommand(), p.firewallCommand(), p.versionCommand(),
			p.completionCommand(), p.completeCommand(),
		},
		Reader: p.in, Writer: p.out, ErrWriter: p.err,
		HideVersion:               true,
		UseShortOptionHandling:    true,
		DisableSliceFlagSeparator: true,
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              usage,
		Action:                    group,
	}
	prepare(app.Commands, "pausa")
	return app
}

// prepare gives all commands the same manners.
func prepare(commands []*cli.Command, parent string) {
	for _, c := range commands {
		if parent != "pausa" { // cli names those at the top itself
			c.HelpName = parent + " " + c.Name
		}
		for _, f := range c.Flags {
			if b, ok := f.(*cli.BoolFlag); ok && !b.Value {
				b.DisableDefaultText = true
			}
		}
		c.HideHelpCommand = true // else "help" could not be the name of a pod
		c.OnUsageError = usage
		if c.Subcommands != nil {
			c.Action = group
		}
		prepare(c.Subcommands, parent+" "+c.Name)
	}
}
