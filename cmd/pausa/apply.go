package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/pod/manifest"
)

func filesFlag(usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: "filename", Aliases: []string{"f"}, Usage: usage}
}

func recursiveFlag() cli.Flag {
	return &cli.BoolFlag{Name: "recursive", Aliases: []string{"R"}, Usage: "also the folders inside a folder"}
}

func (p *program) applyCommand() *cli.Command {
	return &cli.Command{
		Name:      "apply",
		Usage:     "Declare the objects of manifests",
		ArgsUsage: "-f FILE|DIR|-",
		Description: "All objects are checked before the first is stored; the daemon then makes the\n" +
			"host as they say. A folder stands for its *.yaml, *.yml and *.json files.\n\n" +
			"Examples:\n" +
			"  pausa apply -f hello.yaml\n" +
			"  pausa apply -f base/ -f site.yaml -R\n" +
			"  cat hello.yaml | pausa apply -f -\n" +
			"  pausa apply --dry-run -f hello.yaml",
		Flags: []cli.Flag{
			filesFlag("`FILE` or folder with manifests, - for standard input; may be repeated"), recursiveFlag(),
			&cli.StringFlag{Name: "namespace", Aliases: []string{"n"}, Usage: "`NAMESPACE` of objects that name none"},
			&cli.BoolFlag{Name: "dry-run", Usage: "check and tell, but change nothing"},
			outputFlag("name"),
		},
		Action: p.apply,
	}
}

func (p *program) apply(ctx *cli.Context) error {
	format, err := outputOf(ctx, "name")
	if err != nil {
		return err
	}
	if ctx.Args().Present() {
		return badUsage(ctx, "unexpected argument %q: name files with -f", ctx.Args().First())
	}
	objects, err := p.readObjects(ctx)
	if err != nil {
		return err
	}
	req := &pausav1.ApplyRequest{DryRun: ctx.Bool("dry-run")}
	for _, o := range objects {
		data, err := json.Marshal(o)
		if err != nil {
			return err
		}
		req.Objects = append(req.Objects, &pausav1.Object{Json: data, Source: o.Source.String()})
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	answer, err := c.Apply(ctx.Context, req)
	if err != nil {
		return first(ctx.Context, err)
	}
	return p.printOutcomes(answer.GetResults(), format, req.GetDryRun())
}

func (p *program) printOutcomes(results []*pausav1.ApplyResult, format string, dry bool) error {
	var errs []error
	for _, r := range results {
		name := kindOf(r.GetKind()).typed() + "/" + r.GetName()
		switch {
		case r.GetError() != "":
			errs = append(errs, fmt.Errorf("%s: %s", name, r.GetError()))
		case format == "name":
			fmt.Fprintln(p.out, name)
		case dry:
			fmt.Fprintf(p.out, "%s %s (dry run)\n", name, r.GetOutcome())
		default:
			fmt.Fprintf(p.out, "%s %s\n", name, r.GetOutcome())
		}
	}
	return errors.Join(errs...)
}

// readObjects reads the manifests of every -f.
func (p *program) readObjects(ctx *cli.Context) ([]manifest.Object, error) {
	names := ctx.StringSlice("filename")
	if len(names) == 0 {
		return nil, badUsage(ctx, "name a manifest with -f FILE, or -f - for standard input")
	}
	var out []manifest.Object
	var errs []error
	for _, name := range names {
		files, err := manifestFiles(name, ctx.Bool("recursive"))
		errs = append(errs, err)
		for _, file := range files {
			objects, err := p.readManifest(file)
			errs = append(errs, err)
			out = append(out, objects...)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no objects in %v: the manifests are empty", names)
	}
	return out, placeObjects(out, ctx.String("namespace"), ctx.IsSet("namespace"))
}

// placeObjects puts objects without a namespace into the one of -n.
func placeObjects(objects []manifest.Object, namespace string, asked bool) error {
	for _, o := range objects {
		switch {
		case !manifest.Namespaced(o.Kind()):
		case o.Namespace() == "" && asked:
			o.Meta().Namespace = namespace
		case o.Namespace() == "":
			o.Meta().Namespace = defaultNamespace
		case asked && o.Namespace() != namespace:
			return fmt.Errorf("%s: %s is in namespace %q, not %q: leave -n out, or change the manifest", o.Source, o.Ref(), o.Namespace(), namespace)
		}
	}
	return nil
}

// readManifest reads one file, "-" is standard input.
func (p *program) readManifest(name string) (objects []manifest.Object, err error) {
	if name == "-" {
		return manifest.Decode(p.in, "stdin")
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return manifest.Decode(io.Reader(f), name)
}

// manifestFiles lists the files that name stands for, sorted.
func manifestFiles(name string, recursive bool) ([]string, error) {
	if name == "-" {
		return []string{name}, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	var out []string
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != name && !recursive:
			return fs.SkipDir
		case !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read manifests of %s: %w", name, err)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no manifests in %s: a folder stands for its *.yaml, *.yml and *.json files, with -R also those of its folders", name)
	}
	return out, nil
}
