package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// pullFormats of --progress.
const (
	progressAuto  = "auto"
	progressBars  = "bars"
	progressPlain = "plain"
	progressJSON  = "json"
	progressNone  = "none"
)

func progressFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "progress", Value: progressAuto,
		Usage: "`HOW` to show progress on standard error: auto (bars on a terminal, else plain), bars, plain (a line a second), json, none",
	}
}

func credentialFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "creds", Usage: "`USER[:PASSWORD]` for the registry; without a password it is asked for"},
		&cli.StringFlag{Name: "authfile", Usage: "docker configuration `FILE` with the credential; by default the daemon's own"},
	}
}

func (p *program) imagesPullCommand() *cli.Command {
	return &cli.Command{
		Name:      "pull",
		Usage:     "Bring images from their registry",
		ArgsUsage: "REF...",
		Description: "Prints the ids of the images. Mirrors and certificates are configured by hosts.toml files,\n" +
			"see 'pausa config'; 'pausa images explain' shows what a pull does. Ctrl-C ends it, and the\n" +
			"next pull goes on where it stopped.\n\n" +
			"Examples:\n" +
			"  pausa images pull registry.example.com/web:1.2\n" +
			"  pausa images pull --creds me registry.example.com/web:1.2\n" +
			"  pausa images pull --platform linux/arm64 --progress json busybox",
		Flags: append(credentialFlags(), &cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` instead of this host's"}, progressFlag()),
		Action: func(ctx *cli.Context) error {
			how, err := p.progressHow(ctx)
			if err != nil {
				return err
			}
			return p.eachImage(ctx, func(c *client, ref string) error {
				credential, err := p.credential(ctx, ref)
				if err != nil {
					return err
				}
				stream, err := c.PullImage(ctx.Context, &pausav1.PullImageRequest{Ref: ref, Credential: credential, Platform: ctx.String("platform")})
				if err != nil {
					return err
				}
				return p.transfer(ctx.Context, stream, how, "Pulling "+ref)
			})
		},
	}
}

func (p *program) imagesPushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Usage:     "Send an image to a registry",
		ArgsUsage: "REF [NAME-IN-REGISTRY]",
		Description: "Prints the digest under which the registry has it. What the registry has already is not sent.\n\n" +
			"Examples:\n" +
			"  pausa images push registry.example.com/web:1.2\n" +
			"  pausa images push localhost/web:dev registry.example.com/web:1.2 --creds me",
		Flags: append(credentialFlags(), progressFlag()),
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() < 1 || ctx.NArg() > 2 {
				return badUsage(ctx, "name one image, and if need be its name in the registry")
			}
			how, err := p.progressHow(ctx)
			if err != nil {
				return err
			}
			ref, to := ctx.Args().Get(0), ctx.Args().Get(1)
			target := to
			if target == "" {
				target = ref
			}
			credential, err := p.credential(ctx, target)
			if err != nil {
				return err
			}
			c, err := dial(ctx)
			if err != nil {
				return err
			}
			defer c.close()
			stream, err := c.PushImage(ctx.Context, &pausav1.PushImageRequest{Ref: ref, To: to, Credential: credential})
			if err == nil {
				err = p.transfer(ctx.Context, stream, how, "Pushing "+target)
			}
			return first(ctx.Context, err)
		},
	}
}

// progressHow is how progress is shown.
func (p *program) progressHow(ctx *cli.Context) (string, error) {
	switch how := ctx.String("progress"); how {
	case progressBars, progressPlain, progressJSON, progressNone:
		return how, nil
	case progressAuto:
		if f, ok := p.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return progressBars, nil
		}
		return progressPlain, nil
	default:
		return "", badUsage(ctx, "unknown progress %q: there are auto, bars, plain, json and none", how)
	}
}

// progressStream is the client's side of PullImage and PushImage.
type progressStream interface {
	Recv() (*pausav1.ImageProgress, error)
}

// transfer shows the steps of a pull or push and prints its result.
func (p *program) transfer(ctx context.Context, stream progressStream, how, title string) error {
	show := p.newShow(ctx, how, title)
	result := ""
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			show.end(nil)
			fmt.Fprintln(p.out, result)
			return nil
		}
		if err != nil {
			show.end(err)
			return err
		}
		if m.GetResult() != "" {
			result = m.GetResult()
			continue
		}
		show.step(m)
	}
}
