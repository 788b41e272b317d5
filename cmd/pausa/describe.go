package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/urfave/cli/v2"
)

func (p *program) describeCommand() *cli.Command {
	return &cli.Command{
		Name:      "describe",
		Usage:     "Tell all about objects, in words",
		ArgsUsage: "KIND [NAME...] | KIND/NAME...",
		Description: "The first lines say how the object is, then follow its status and what was declared.\n" +
			"The values of secrets are not shown.\n\n" +
			"Examples:\n" +
			"  pausa describe pod hello\n" +
			"  pausa describe svc/hello deploy/hello\n" +
			"  pausa describe pods -l app=hello",
		Flags:  append(namespaceFlags(), selectorFlag()),
		Action: p.describe,
	}
}

func (p *program) describe(ctx *cli.Context) error {
	targets, err := parseTargets(ctx.Args().Slice())
	if err != nil {
		return badUsage(ctx, "%w", err)
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	groups, missing := p.collect(ctx, c, targets)
	if len(groups) == 0 && missing == nil {
		fmt.Fprintln(p.err, "No resources found.")
	}
	count := 0
	for _, group := range groups {
		for _, o := range group {
			if count++; count > 1 {
				fmt.Fprint(p.out, "\n\n")
			}
			err := p.describeOne(o)
			if err == nil && o.kind.name == "Service" {
				err = p.describeEndpoints(ctx, c, o)
			}
			if err == nil && slices.Contains([]string{"Pod", "Service", "Deployment"}, o.kind.name) {
				err = p.describeEvents(ctx, c, o)
			}
			if err != nil {
				return errors.Join(err, missing)
			}
		}
	}
	return missing
}

func (p *program) describeOne(o object) error {
	var tree map[string]any
	if err := json.Unmarshal(o.raw, &tree); err != nil {
		return fmt.Errorf("read %s %q of the daemon: %w", o.kind.name, o.meta.Name, err)
	}
	if o.kind.name == "Secret" {
		tree["data"] = hideValues(tree["data"])
	}
	columns, wideColumns := columnsOf(o.kind)
	cells, wide, err := rowOf(o, p.now())
	if err != nil {
		return err
	}
	rows := [][]string{{"Kind:", o.kind.name}, {"Name:", o.meta.Name}}
	if !o.kind.global {
		rows = append(rows, []string{"Namespace:", o.meta.Namespace})
	}
	for i, name := range append(columns, wideColumns...) {
		rows = append(rows, []string{heading(name), append(cells, wide...)[i]})
	}
	rows = append(rows, []string{"Labels:", orNone(mapText(o.meta.Labels))}, []string{"Annotations:", orNone(mapText(o.meta.Annotations))})
	if !o.meta.CreationTimestamp.IsZero() {
		rows = append(rows, []string{"Created:", o.meta.CreationTimestamp.UTC().Format("2006-01-02 15:04:05 UTC")})
	}
	if err := p.printRows(rows); err != nil {
		return err
	}
	for _, part := range []string{"status", "spec", "data", "binaryData", "subsets"} {
		value, ok := tree[part]
		if m, isMap := value.(map[string]any); ok && (!isMap || len(m) > 0) {
			fmt.Fprintf(p.out, "%s:\n", heading(part)[:len(part)])
			p.printTree(value, "  ")
		}
	}
	return nil
}

// heading is "Cluster-Ip:" of "CLUSTER-IP", in the usual spelling.
func heading(column string) string {
	switch column {
	case "IP", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)":
		return map[string]string{"IP": "IP", "CLUSTER-IP": "Cluster IP", "EXTERNAL-IP": "External IP", "PORT(S)": "Ports"}[column] + ":"
	}
	lower := column
	if column == strings.ToUpper(column) {
		lower = strings.ToLower(column)
	}
	return strings.ToUpper(lower[:1]) + lower[1:] + ":"
}

// printTree prints a JSON value as indented lines, one per leaf.
func (p *program) printTree(value any, indent string) {
	switch v := value.(type) {
	case map[string]any:
		keys := make([]string, 0, len(v))
		for key := range v {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		for _, key := range keys {
			if v[key] != nil {
				p.printField(key+":", v[key], indent)
			}
		}
	case []any:
		for _, item := range v {
			p.printItem(item, indent)
		}
	default:
		fmt.Fprintf(p.out, "%s%s\n", indent, leafText(v, indent))
	}
}

func (p *program) printField(name string, value any, indent string) {
	if isLeaf(value) {
		fmt.Fprintf(p.out, "%s%s %s\n", indent, name, leafText(value, indent+"  "))
		return
	}
	fmt.Fprintf(p.out, "%s%s\n", indent, name)
	p.printTree(value, indent+"  ")
}

// printItem prints one item of a list; one with a name is headed by it.
func (p *program) printItem(item any, indent string) {
	m, ok := item.(map[string]any)
	if !ok {
		p.printField("-", item, indent)
		return
	}
	for _, key := range []string{"name", "type", "ip"} {
		if head, ok := m[key].(string); ok {
			rest := map[string]any{}
			for k, v := range m {
				if k != key {
					rest[k] = v
				}
			}
			if len(rest) == 0 {
				fmt.Fprintf(p.out, "%s- %s\n", indent, oneLine(head))
				return
			}
			fmt.Fprintf(p.out, "%s%s:\n", indent, oneLine(head))
			p.printTree(rest, indent+"  ")
			return
		}
	}
	p.printField("-", m, indent)
}

func isLeaf(value any) bool {
	switch v := value.(type) {
	case map[string]any:
		return len(v) == 0
	case []any:
		if len(v) == 0 {
			return true
		}
		for _, item := range v {
			if _, ok := item.(string); !ok {
				return false
			}
		}
		return true
	default:
		return true
	}
}

// leafText is a value on one line; a text of several lines follows indented.
func leafText(value any, indent string) string {
	switch v := value.(type) {
	case nil:
		return "<none>"
	case string:
		lines := strings.Split(strings.TrimSuffix(v, "\n"), "\n")
		for i := range lines {
			lines[i] = oneLine(lines[i])
		}
		if len(lines) > 1 {
			return "\n" + indent + "  " + strings.Join(lines, "\n"+indent+"  ")
		}
		return lines[0]
	case float64:
		data, _ := json.Marshal(v) // a number always has a text
		return string(data)
	case map[string]any:
		return "{}"
	case []any:
		var out []string
		for _, item := range v {
			out = append(out, oneLine(fmt.Sprint(item)))
		}
		return orNone(strings.Join(out, ", "))
	default:
		return fmt.Sprint(v)
	}
}

// hideValues puts a length in the place of each value of a Secret.
func hideValues(data any) any {
	m, _ := data.(map[string]any)
	out := map[string]any{}
	for key, value := range m {
		text, _ := value.(string)
		padding := strings.Count(text, "=")
		out[key] = fmt.Sprintf("%d bytes", len(text)/4*3-padding)
	}
	return out
}
