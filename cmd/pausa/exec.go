package main

import (
	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cri/pausav1"
)

func (p *program) execCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Usage:     "Run a command in a container",
		ArgsUsage: "POD [-c CONTAINER] -- COMMAND [ARG...]",
		Description: "Ends with the exit status of the command.\n\n" +
			"Examples:\n" +
			"  pausa exec hello -- ls -l /\n" +
			"  pausa exec -it hello -c web -- sh\n" +
			"  tar c . | pausa exec -i hello -- tar x -C /data",
		Flags:  append(append([]cli.Flag{namespaceFlag(), containerFlag()}, stdioFlags()...), quietFlag()),
		Action: p.exec,
	}
}

// quietFlag is taken so that scripts written for kubectl work; there is nothing to silence.
func quietFlag() cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only the command's own output", Hidden: true}
}

func (p *program) exec(ctx *cli.Context) error {
	if ctx.NArg() == 0 {
		return badUsage(ctx, "name a pod, see 'pausa get pods'")
	}
	pod, err := podName(ctx.Args().First())
	if err != nil {
		return badUsage(ctx, "%w", err)
	}
	command := ctx.Args().Tail()
	if len(command) == 0 {
		return badUsage(ctx, "name the command to run in pod %q, as in: pausa exec %s -- ls", pod, pod)
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	s := &session{p: p, open: c.Exec, start: &pausav1.ExecRequest_Start{
		Namespace: ctx.String("namespace"), Pod: pod, Container: ctx.String("container"),
		Command: command, Stdin: ctx.Bool("stdin"), Tty: ctx.Bool("tty"),
	}}
	code, err := s.run(ctx.Context)
	return ended(ctx, code, c.podError(ctx, s.start.GetNamespace(), pod, err))
}

// ended turns the end of a container's process into that of the program.
func ended(ctx *cli.Context, code int, err error) error {
	if err != nil {
		return first(ctx.Context, err)
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

func (p *program) attachCommand() *cli.Command {
	return &cli.Command{
		Name:      "attach",
		Usage:     "Join the input and output of a running container",
		ArgsUsage: "POD [-c CONTAINER]",
		Description: "Shows what the container writes from now on; see 'pausa logs' for what it wrote\n" +
			"before. Ends with the container, and with its exit status.\n\n" +
			"Examples:\n" +
			"  pausa attach hello\n" +
			"  pausa attach -it shell",
		Flags:  append([]cli.Flag{namespaceFlag(), containerFlag()}, stdioFlags()...),
		Action: p.attach,
	}
}

func (p *program) attach(ctx *cli.Context) error {
	if ctx.NArg() != 1 {
		return badUsage(ctx, "name one pod, see 'pausa get pods'")
	}
	pod, err := podName(ctx.Args().First())
	if err != nil {
		return badUsage(ctx, "%w", err)
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	s := &session{p: p, open: c.Attach, start: &pausav1.ExecRequest_Start{
		Namespace: ctx.String("namespace"), Pod: pod, Container: ctx.String("container"),
		Stdin: ctx.Bool("stdin"), Tty: ctx.Bool("tty"),
	}}
	code, err := s.run(ctx.Context)
	return ended(ctx, code, c.podError(ctx, s.start.GetNamespace(), pod, err))
}
