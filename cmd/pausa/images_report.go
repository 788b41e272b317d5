package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cri"
	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/images"
)

func (p *program) imagesInspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "Show all that is known of images",
		ArgsUsage: "REF...",
		Description: "Names, configuration, layers with their sizes, who uses it, where it came from.\n\n" +
			"Examples:\n" +
			"  pausa images inspect localhost/busybox:latest\n" +
			"  pausa images inspect -o yaml 3f57d9401f8d",
		Flags: []cli.Flag{outputFlag("json", "yaml")},
		Action: func(ctx *cli.Context) error {
			format, err := outputOf(ctx, "json", "yaml")
			if err != nil {
				return err
			}
			if format == "" {
				format = "json"
			}
			return p.eachImage(ctx, func(c *client, ref string) error {
				answer, err := c.InspectImage(ctx.Context, &pausav1.ImageRequest{Ref: ref})
				if err != nil {
					return err
				}
				return p.printData(format, json.RawMessage(answer.GetJson()))
			})
		},
	}
}

func (p *program) imagesExplainCommand() *cli.Command {
	return &cli.Command{
		Name:      "explain",
		Usage:     "Show where an image would be pulled from, and why a pull fails",
		ArgsUsage: "REF",
		Description: "Asks each endpoint in the order of a pull, with the credential that it would get, and\n" +
			"fetches nothing.\n\n" +
			"Examples:\n" +
			"  pausa images explain busybox\n" +
			"  pausa images explain --creds me:secret registry.example.com/web:1.2",
		Flags:  append(credentialFlags(), outputFlag("json", "yaml")),
		Action: p.imagesExplain,
	}
}

func (p *program) imagesExplain(ctx *cli.Context) error {
	format, err := outputOf(ctx, "json", "yaml")
	if err != nil {
		return err
	}
	if ctx.NArg() != 1 {
		return badUsage(ctx, "name one image")
	}
	credential, err := p.credential(ctx, ctx.Args().First())
	if err != nil {
		return err
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	answer, err := c.ExplainImage(ctx.Context, &pausav1.PullImageRequest{Ref: ctx.Args().First(), Credential: credential})
	if err != nil {
		return first(ctx.Context, err)
	}
	if format != "" {
		return p.printData(format, json.RawMessage(answer.GetJson()))
	}
	var e images.Explanation
	if err := json.Unmarshal(answer.GetJson(), &e); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	fmt.Fprintf(p.out, "Image:       %s\nHosts file:  %s\n", e.Ref, orNone(e.HostsFile))
	if e.Refused != "" {
		fmt.Fprintf(p.out, "Refused:     %s\n", oneLine(e.Refused))
	}
	fmt.Fprintln(p.out)
	rows := [][]string{{"", "ENDPOINT", "CREDENTIAL", "STATUS"}}
	for i, a := range e.Attempts {
		mark := strconv.Itoa(i + 1)
		if a.Used {
			mark += " *"
		}
		status := a.Status
		if a.Digest != "" {
			status += ", " + a.Digest
		}
		rows = append(rows, []string{mark, a.Endpoint, a.Credential, status})
	}
	return p.printRows(rows)
}

func (p *program) imagesPruneCommand() *cli.Command {
	return &cli.Command{
		Name:  "prune",
		Usage: "Remove images that nothing uses",
		Description: "Without --all only those that have no name. Images of containers and pinned images stay.\n" +
			"Prints the ids.\n\n" +
			"Examples:\n" +
			"  pausa images prune\n" +
			"  pausa images prune --all --older-than 24h --dry-run",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also images with a name"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only show what would go"},
			&cli.DurationFlag{Name: "older-than", Usage: "keep what came or was used within this `TIME`"},
		},
		Action: p.imagesPrune,
	}
}

func (p *program) imagesPrune(ctx *cli.Context) error {
	if ctx.Args().Present() {
		return badUsage(ctx, "unexpected argument %q: 'pausa images rm' removes single images", ctx.Args().First())
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	answer, err := c.PruneImages(ctx.Context, &pausav1.PruneImagesRequest{
		All: ctx.Bool("all"), DryRun: ctx.Bool("dry-run"), MinAgeSeconds: int64(ctx.Duration("older-than") / time.Second),
	})
	if err != nil {
		return first(ctx.Context, err)
	}
	var gone cri.Pruned
	if err := json.Unmarshal(answer.GetJson(), &gone); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	what, sum := "removed", int64(0)
	if ctx.Bool("dry-run") {
		what = "would be removed"
	}
	for _, r := range gone.Removed {
		fmt.Fprintf(p.out, "%s %s\n", r.ID, oneLine(strings.Join(r.Names, " ")))
		sum += r.Size
	}
	fmt.Fprintf(p.err, "%d images with %s of blobs %s\n", len(gone.Removed), sizeText(uint64(max(sum, 0))), what)
	if gone.Error != "" {
		return errors.New(gone.Error)
	}
	return nil
}

func (p *program) imagesGCCommand() *cli.Command {
	return &cli.Command{
		Name:  "gc",
		Usage: "Remove content that no image uses, and account for all bytes",
		Description: "The daemon does so by itself after each change. Prints every part of the images folder,\n" +
			"who uses it, and the sum, which is that of du.\n\n" +
			"Examples:\n" +
			"  pausa images gc --dry-run\n" +
			"  pausa images gc --dry-run --orphans",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "remove nothing"},
			&cli.BoolFlag{Name: "orphans", Usage: "show only what nothing uses"},
			outputFlag("json", "yaml"),
		},
		Action: p.imagesGC,
	}
}

func (p *program) imagesGC(ctx *cli.Context) error {
	format, err := outputOf(ctx, "json", "yaml")
	if err != nil {
		return err
	}
	if ctx.Args().Present() {
		return badUsage(ctx, "unexpected argument %q", ctx.Args().First())
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	answer, err := c.AccountImages(ctx.Context, &pausav1.AccountImagesRequest{Collect: !ctx.Bool("dry-run")})
	if err != nil {
		return first(ctx.Context, err)
	}
	if format != "" {
		return p.printData(format, json.RawMessage(answer.GetJson()))
	}
	var items []images.Item
	if err := json.Unmarshal(answer.GetJson(), &items); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return p.printAccount(items, ctx.Bool("orphans"))
}

func (p *program) printAccount(items []images.Item, orphans bool) error {
	rows := [][]string{{"PATH", "KIND", "BYTES", "USED BY"}}
	var all, lost uint64
	for _, i := range items {
		all += i.Bytes
		by := strings.Join(i.UsedBy, ", ")
		if i.Orphan() {
			lost += i.Bytes
			by = "<orphan>"
		} else if orphans {
			continue
		}
		rows = append(rows, []string{i.Path, i.Kind, strconv.FormatUint(i.Bytes, 10), by})
	}
	if err := p.printRows(rows); err != nil {
		return err
	}
	fmt.Fprintf(p.out, "\n%d bytes, of which %d are orphans\n", all, lost)
	return nil
}
