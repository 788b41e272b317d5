package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/cri/pausav1"
)

func (p *program) imagesCommand() *cli.Command {
	return &cli.Command{
		Name:    "images",
		Aliases: []string{"image"},
		Usage:   "Pull, push, import, export, list and remove images",
		Description: "Examples:\n" +
			"  pausa images import busybox.tar\n" +
			"  pausa images pull busybox\n" +
			"  pausa images list\n" +
			"  pausa images rm localhost/busybox:latest",
		Subcommands: []*cli.Command{
			p.imagesListCommand(), p.imagesInspectCommand(), p.imagesPullCommand(), p.imagesPushCommand(),
			p.imagesImportCommand(), p.imagesExportCommand(), p.imagesTagCommand(), p.imagesRmCommand(),
			p.imagesPruneCommand(), p.imagesGCCommand(), p.imagesExplainCommand(), p.imagesMountCommand(), p.imagesUnmountCommand(),
		},
	}
}

func (p *program) imagesListCommand() *cli.Command {
	return &cli.Command{
		Name:      "list",
		Aliases:   []string{"ls"},
		Usage:     "List the images on this host",
		ArgsUsage: "[REF...]",
		Description: "Examples:\n" +
			"  pausa images list\n" +
			"  pausa images list -o json\n" +
			"  pausa images list localhost/busybox",
		Flags:  []cli.Flag{outputFlag("wide", "yaml", "json", "name")},
		Action: p.imagesList,
	}
}

// imageInfo is an image as -o json prints it.
type imageInfo struct {
	ID          string   `json:"id"`
	RepoTags    []string `json:"repoTags"`
	RepoDigests []string `json:"repoDigests"`
	Size        uint64   `json:"size"` // bytes
	User        string   `json:"user,omitempty"`
	Pinned      bool     `json:"pinned"`
}

func (p *program) imagesList(ctx *cli.Context) error {
	format, err := outputOf(ctx, "wide", "yaml", "json", "name")
	if err != nil {
		return err
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	found, missing := c.findImages(ctx, ctx.Args().Slice())
	if len(found) == 0 && missing != nil {
		return missing
	}
	switch format {
	case "json", "yaml":
		out := make([]imageInfo, 0, len(found))
		for _, i := range found {
			out = append(out, imageInfo{
				i.GetId(), append([]string{}, i.GetRepoTags()...), append([]string{}, i.GetRepoDigests()...),
				i.GetSize(), userOf(i), i.GetPinned(),
			})
		}
		err = p.printData(format, out)
	case "name":
		for _, i := range found {
			fmt.Fprintln(p.out, imageNames(i)[0])
		}
	default:
		err = p.printRows(imageRows(found, format == "wide"))
	}
	return errors.Join(err, missing)
}

// findImages lists the images of refs, or all when there are none.
func (c *client) findImages(ctx *cli.Context, refs []string) ([]*criv1.Image, error) {
	if len(refs) == 0 {
		answer, err := c.images.ListImages(ctx.Context, &criv1.ListImagesRequest{})
		return answer.GetImages(), first(ctx.Context, err)
	}
	var out []*criv1.Image
	var errs []error
	for _, ref := range refs {
		i, err := c.image(ctx, ref)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, i)
	}
	return out, errors.Join(errs...)
}

// image finds one image, or says `image "x" not found`.
func (c *client) image(ctx *cli.Context, ref string) (*criv1.Image, error) {
	answer, err := c.images.ImageStatus(ctx.Context, &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: ref}})
	if err != nil && !isNotFound(err) {
		return nil, first(ctx.Context, err)
	}
	if answer.GetImage() == nil {
		return nil, fmt.Errorf("image %q not found: see 'pausa images list'", ref)
	}
	return answer.GetImage(), nil
}

func userOf(i *criv1.Image) string {
	if i.GetUid() != nil {
		return fmt.Sprint(i.GetUid().GetValue())
	}
	return i.GetUsername()
}

// imageNames are an image's names: its tags, else its digests, else its id.
func imageNames(i *criv1.Image) []string {
	switch {
	case len(i.GetRepoTags()) > 0:
		return i.GetRepoTags()
	case len(i.GetRepoDigests()) > 0:
		return i.GetRepoDigests()
	default:
		return []string{i.GetId()}
	}
}

func imageRows(found []*criv1.Image, wide bool) [][]string {
	rows := [][]string{{"IMAGE", "TAG", "IMAGE ID", "SIZE"}}
	if wide {
		rows[0] = append(rows[0], "DIGEST", "USER")
	}
	for _, i := range found {
		for _, name := range imageNames(i) {
			repo, tag := splitTag(name)
			id := strings.TrimPrefix(i.GetId(), "sha256:")
			row := []string{repo, tag, id[:min(12, len(id))], sizeText(i.GetSize())}
			if wide {
				digest := ""
				if d := i.GetRepoDigests(); len(d) > 0 {
					_, digest, _ = strings.Cut(d[0], "@")
				}
				row = append(row, orNone(digest), orNone(userOf(i)))
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// splitTag splits "host:5000/name:tag"; without a tag it is "<none>".
func splitTag(name string) (repo, tag string) {
	name, _, digested := strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') && !digested && !strings.HasPrefix(name, "sha256:") {
		return name[:i], name[i+1:]
	}
	if strings.HasPrefix(name, "sha256:") {
		return "<none>", "<none>"
	}
	return name, "<none>"
}

// sizeText is n bytes in decimal units, as registries count.
func sizeText(n uint64) string {
	value, unit := float64(n), 0
	for value >= 999.5 && unit < 4 {
		value /= 1000
		unit++
	}
	name := []string{"B", "kB", "MB", "GB", "TB"}[unit]
	if unit == 0 || value >= 99.5 {
		return fmt.Sprintf("%.0f%s", value, name)
	}
	return fmt.Sprintf("%.3g%s", value, name)
}

func (p *program) imagesRmCommand() *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Aliases:   []string{"remove"},
		Usage:     "Remove images",
		ArgsUsage: "REF...",
		Description: "A name takes that name away, and the image with its last one. An id takes all names.\nAn image in use by a container stays.\n\n" +
			"Examples:\n" +
			"  pausa images rm localhost/busybox:latest\n" +
			"  pausa images rm 3f57d9401f8d",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "ignore-not-found", Usage: "what does not exist is no error"}},
		Action: func(ctx *cli.Context) error {
			return p.eachImage(ctx, func(c *client, ref string) error {
				if _, err := c.image(ctx, ref); err != nil {
					if ctx.Bool("ignore-not-found") && strings.Contains(err.Error(), "not found") {
						return nil
					}
					return err
				}
				_, err := c.UntagImage(ctx.Context, &pausav1.ImageRequest{Ref: ref})
				if err == nil {
					fmt.Fprintf(p.out, "image %q removed\n", ref)
				}
				return err
			})
		},
	}
}

func (p *program) eachImage(ctx *cli.Context, do func(c *client, ref string) error) error {
	if ctx.NArg() == 0 {
		return badUsage(ctx, "name an image, see 'pausa images list'")
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	var errs []error
	for _, ref := range ctx.Args().Slice() {
		errs = append(errs, first(ctx.Context, do(c, ref)))
	}
	return errors.Join(errs...)
}
