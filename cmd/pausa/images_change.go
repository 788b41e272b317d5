package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/pausa-run/pausa/cri/pausav1"
)

func (p *program) imagesTagCommand() *cli.Command {
	return &cli.Command{
		Name:      "tag",
		Usage:     "Give an image one more name",
		ArgsUsage: "REF NAME...",
		Description: "A name that another image has moves over.\n\n" +
			"Examples:\n" +
			"  pausa images tag localhost/web:dev registry.example.com/web:1.2",
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() < 2 {
				return badUsage(ctx, "name an image and its new name")
			}
			c, err := dial(ctx)
			if err != nil {
				return err
			}
			defer c.close()
			for _, name := range ctx.Args().Tail() {
				answer, err := c.TagImage(ctx.Context, &pausav1.TagImageRequest{Ref: ctx.Args().First(), Name: name})
				if err != nil {
					return first(ctx.Context, err)
				}
				fmt.Fprintln(p.out, answer.GetName())
			}
			return nil
		},
	}
}

func (p *program) imagesExportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export",
		Aliases:   []string{"save"},
		Usage:     "Write images to an archive",
		ArgsUsage: "REF...",
		Description: "The archive goes to standard output, or to the file of -f, which is there in full or\n" +
			"not at all. An id stands for all names of the image.\n\n" +
			"Examples:\n" +
			"  pausa images export localhost/web:dev -f web.tar\n" +
			"  pausa images export --format docker localhost/web:dev | docker load",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "`FILE` instead of standard output"},
			&cli.StringFlag{Name: "format", Value: "oci", Usage: "`FORMAT` of the archive: oci or docker"},
		},
		Action: p.imagesExport,
	}
}

func (p *program) imagesExport(ctx *cli.Context) (err error) {
	if ctx.NArg() == 0 {
		return badUsage(ctx, "name an image, see 'pausa images list'")
	}
	format := ctx.String("format")
	if format != "oci" && format != "docker" {
		return badUsage(ctx, "unknown archive format %q: there are oci and docker", format)
	}
	out, file := p.out, ctx.String("file")
	if f, ok := out.(*os.File); ok && file == "" && term.IsTerminal(int(f.Fd())) {
		return badUsage(ctx, "an archive on a terminal helps nobody: name a file with -f, or send the output on")
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	if file != "" && file != "-" {
		tmp, err := os.CreateTemp(filepath.Dir(file), ".export-*")
		if err != nil {
			return fmt.Errorf("export images: %w", err)
		}
		err = receive(ctx, c, format, tmp)
		if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err == nil {
			err = os.Rename(tmp.Name(), file)
		}
		if err != nil {
			return errors.Join(err, os.Remove(tmp.Name()))
		}
		return nil
	}
	return receive(ctx, c, format, out)
}

// receive writes the archive of the named images to w.
func receive(ctx *cli.Context, c *client, format string, w io.Writer) error {
	stream, err := c.ExportImage(ctx.Context, &pausav1.ExportImageRequest{Refs: ctx.Args().Slice(), Format: format})
	for err == nil {
		var m *pausav1.ExportImageResponse
		if m, err = stream.Recv(); err == nil {
			if _, err := w.Write(m.GetData()); err != nil {
				return fmt.Errorf("write archive: %w", err)
			}
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return first(ctx.Context, err)
}

func (p *program) imagesMountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "Mount images read-only on the host",
		ArgsUsage: "REF...",
		Description: "Prints where. The image cannot be removed until 'pausa images unmount'.\n\n" +
			"Examples:\n" +
			"  pausa images mount localhost/web:dev",
		Action: func(ctx *cli.Context) error {
			return p.eachImage(ctx, func(c *client, ref string) error {
				answer, err := c.MountImage(ctx.Context, &pausav1.ImageRequest{Ref: ref})
				if err == nil {
					fmt.Fprintln(p.out, answer.GetPath())
				}
				return err
			})
		},
	}
}

func (p *program) imagesUnmountCommand() *cli.Command {
	return &cli.Command{
		Name:      "unmount",
		Aliases:   []string{"umount"},
		Usage:     "Take back what 'pausa images mount' mounted",
		ArgsUsage: "REF...",
		Description: "An image that is not mounted is no error.\n\n" +
			"Examples:\n" +
			"  pausa images unmount localhost/web:dev",
		Action: func(ctx *cli.Context) error {
			return p.eachImage(ctx, func(c *client, ref string) error {
				_, err := c.UnmountImage(ctx.Context, &pausav1.ImageRequest{Ref: ref})
				return err
			})
		},
	}
}
