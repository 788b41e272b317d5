package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cri/pausav1"
)

func (p *program) logsCommand() *cli.Command {
	return &cli.Command{
		Name:      "logs",
		Usage:     "Print what a container wrote",
		ArgsUsage: "POD [-c CONTAINER]",
		Description: "Standard error of the container goes to standard error.\n\n" +
			"Examples:\n" +
			"  pausa logs hello\n" +
			"  pausa logs -f hello -c web --tail 10\n" +
			"  pausa logs hello --previous --timestamps --since 5m",
		Flags: []cli.Flag{
			namespaceFlag(), containerFlag(),
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until the container ends"},
			&cli.BoolFlag{Name: "previous", Aliases: []string{"p"}, Usage: "of the container's run before its last restart"},
			&cli.BoolFlag{Name: "timestamps", Usage: "each line with its time in front"},
			&cli.Int64Flag{Name: "tail", Usage: "only the last `LINES`; -1: all", Value: -1},
			&cli.DurationFlag{Name: "since", Usage: "only what is younger than `DURATION` (90s, 5m, 2h)"},
		},
		Action: p.logs,
	}
}

func (p *program) logs(ctx *cli.Context) error {
	args := ctx.Args().Slice()
	if len(args) == 0 || len(args) > 2 {
		return badUsage(ctx, "name one pod, see 'pausa get pods'")
	}
	pod, err := podName(args[0])
	if err != nil {
		return badUsage(ctx, "%w", err)
	}
	req := &pausav1.LogsRequest{
		Namespace: ctx.String("namespace"), Pod: pod, Container: ctx.String("container"),
		Follow: ctx.Bool("follow"), Previous: ctx.Bool("previous"), Timestamps: ctx.Bool("timestamps"),
	}
	if len(args) == 2 {
		if req.Container != "" {
			return badUsage(ctx, "container %q and -c %s: name one", args[1], req.Container)
		}
		req.Container = args[1]
	}
	switch tail := ctx.Int64("tail"); {
	case tail < -1:
		return badUsage(ctx, "--tail %d: must be 0 or more, or -1 for all", tail)
	case tail >= 0:
		req.Tail = &tail
	}
	if ctx.IsSet("since") {
		seconds := int64((ctx.Duration("since") + time.Second - 1) / time.Second)
		if seconds <= 0 {
			return badUsage(ctx, "--since %s: must be a second or more", ctx.Duration("since"))
		}
		req.SinceSeconds = &seconds
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	return first(ctx.Context, c.podError(ctx, req.GetNamespace(), pod, p.copyLogs(ctx.Context, c, req)))
}

// copyLogs prints a log until it ends. The daemon's remark on which container
// it chose goes to standard error.
func (p *program) copyLogs(ctx context.Context, c *client, req *pausav1.LogsRequest) error {
	stream, err := c.Logs(ctx, req)
	if err != nil {
		return plain(err)
	}
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			for _, remark := range stream.Trailer().Get("warning") {
				fmt.Fprintf(p.err, "warning: %s\n", remark)
			}
			return nil
		}
		if err != nil {
			return plain(err)
		}
		to := p.out
		if msg.GetStderr() {
			to = p.err
		}
		if _, err := to.Write(msg.GetData()); err != nil {
			return fmt.Errorf("write log: %w", err)
		}
	}
}
