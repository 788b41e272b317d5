package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"
)

func outputFlag(formats ...string) cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FORMAT` of the output: " + strings.Join(formats, ", ")}
}

// outputOf is the asked format, "" for the plain table.
func outputOf(ctx *cli.Context, formats ...string) (string, error) {
	format := ctx.String("output")
	if format != "" && !slices.Contains(formats, format) {
		return "", badUsage(ctx, "unknown output format %q: there are %s", format, strings.Join(formats, ", "))
	}
	return format, nil
}

// printObjects prints objects that were grouped by kind. one tells that exactly
// one object was asked for: it is printed as itself, anything else as a List.
func (p *program) printObjects(ctx *cli.Context, groups [][]object, format string, one bool) error {
	all := slices.Concat(groups...)
	switch format {
	case "name":
		for _, o := range all {
			fmt.Fprintf(p.out, "%s/%s\n", o.kind.typed(), o.meta.Name)
		}
		return nil
	case "json", "yaml":
		if one {
			return p.printData(format, json.RawMessage(all[0].raw))
		}
		items := make([]json.RawMessage, 0, len(all))
		for _, o := range all {
			items = append(items, o.raw)
		}
		return p.printData(format, list{"v1", items, "List", map[string]string{"resourceVersion": ""}})
	}
	if len(all) == 0 {
		where := " in " + ctx.String("namespace") + " namespace"
		if ctx.Bool("all-namespaces") {
			where = ""
		}
		fmt.Fprintf(p.err, "No resources found%s.\n", where)
		return nil
	}
	return p.printTables(groups, tableOptions{
		wide: format == "wide", namespace: ctx.Bool("all-namespaces"), typed: len(groups) > 1,
		labels: ctx.Bool("show-labels"), noHeaders: ctx.Bool("no-headers"), now: p.now(),
	})
}

// list is several objects as one.
type list struct {
	APIVersion string            `json:"apiVersion"`
	Items      []json.RawMessage `json:"items"`
	Kind       string            `json:"kind"`
	Metadata   map[string]string `json:"metadata"`
}

// printData prints v as "json" or "yaml".
func (p *program) printData(format string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", format, err)
	}
	if format == "yaml" {
		if data, err = yaml.JSONToYAML(data); err != nil {
			return fmt.Errorf("write %s: %w", format, err)
		}
		_, err = p.out.Write(data)
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "    "); err != nil {
		return fmt.Errorf("write %s: %w", format, err)
	}
	b.WriteByte('\n')
	_, err = p.out.Write(b.Bytes())
	return err
}

// printRows prints a table with columns three spaces apart.
func (p *program) printRows(rows [][]string) error {
	w := tabwriter.NewWriter(p.out, 6, 4, 3, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			row[i] = oneLine(cell)
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// oneLine keeps a value from breaking its table or steering the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
