// Command mkimage writes a container image of Debian's static busybox, without
// a registry and without root. The same options give the same bytes.
//
//	go run ./integration/mkimage -o busybox.tar
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

type options struct {
	out, name, format, busybox, user, cmd string
	layers, layerSize                     int
	plain                                 bool
	labels, files, env                    list
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	s, err := o.spec()
	if err != nil {
		return err
	}
	return o.write(s)
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	f.StringVar(&o.out, "o", "", "`file` to write; - is standard output")
	f.StringVar(&o.name, "name", "localhost/busybox:latest", "`reference` of the image")
	f.StringVar(&o.format, "format", image.FormatOCI, "archive format: oci or docker")
	f.StringVar(&o.busybox, "busybox", image.BusyboxPath, "static busybox `program`")
	f.StringVar(&o.user, "user", "", "`user[:group]` of the image")
	f.StringVar(&o.cmd, "cmd", "sh", "`command` of the image, split at spaces")
	f.IntVar(&o.layers, "layers", 1, "`number` of layers; those after the first hold one file each")
	f.IntVar(&o.layerSize, "layer-size", 1024, "`bytes` of the file in each further layer")
	f.BoolVar(&o.plain, "plain", false, "do not compress the layers")
	f.Var(&o.labels, "label", "`key=value`, may be repeated")
	f.Var(&o.env, "env", "`KEY=value`, may be repeated")
	f.Var(&o.files, "file", "`HOST-FILE:/path/in/image`, may be repeated; keeps the permission bits")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.out == "" || f.NArg() > 0 {
		return o, errors.New("say where the image goes: mkimage -o FILE")
	}
	return o, nil
}

func (o options) spec() (image.Spec, error) {
	s, err := image.Busybox(o.busybox)
	if err != nil {
		return s, err
	}
	s.Name, s.Format, s.Uncompressed = o.name, o.format, o.plain
	s.Config.User = o.user
	s.Config.Cmd = strings.Fields(o.cmd)
	s.Config.Env = append(s.Config.Env, o.env...)
	for _, l := range o.labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return s, fmt.Errorf("label %q has no value: write key=value", l)
		}
		if s.Config.Labels == nil {
			s.Config.Labels = map[string]string{}
		}
		s.Config.Labels[k] = v
	}
	for _, f := range o.files {
		file, err := load(f)
		if err != nil {
			return s, err
		}
		s.Layers[0] = append(s.Layers[0], file)
	}
	for n := 1; n < o.layers; n++ {
		s.Layers = append(s.Layers, image.Filler(n, o.layerSize))
	}
	return s, nil
}

// load reads "HOST-FILE:/path/in/image".
func load(arg string) (image.File, error) {
	from, to, ok := strings.Cut(arg, ":")
	if !ok {
		return image.File{}, fmt.Errorf("file %q has no path in the image: write HOST-FILE:/path/in/image", arg)
	}
	info, err := os.Stat(from)
	if err != nil {
		return image.File{}, fmt.Errorf("read extra file: %w", err)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return image.File{}, fmt.Errorf("read extra file: %w", err)
	}
	return image.File{Path: strings.TrimPrefix(to, "/"), Mode: int64(info.Mode().Perm()), Data: data}, nil
}

// write puts the image into a file beside the wanted one and renames it, so
// that nobody ever reads half an image.
func (o options) write(s image.Spec) (err error) {
	if o.out == "-" {
		return image.Write(os.Stdout, s)
	}
	tmp, err := os.CreateTemp(filepath.Dir(o.out), ".mkimage-*")
	if err != nil {
		return fmt.Errorf("create image file: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	if err := errors.Join(image.Write(io.Writer(tmp), s), tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), o.out)
}
