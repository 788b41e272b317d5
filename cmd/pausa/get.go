package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cri/pausav1"
)

func (p *program) getCommand() *cli.Command {
	return &cli.Command{
		Name:      "get",
		Usage:     "List objects with their status",
		ArgsUsage: "KIND[,KIND] [NAME...] | KIND/NAME...",
		Description: "KIND is pods (po), services (svc), deployments (deploy), configmaps (cm),\n" +
			"secrets, namespaces (ns), endpoints (ep), endpointslices or all (pods, services and\n" +
			"deployments).\n\n" +
			"Examples:\n" +
			"  pausa get pods\n" +
			"  pausa get po,svc -A -o wide\n" +
			"  pausa get deployment hello -o yaml\n" +
			"  pausa get pods -l app=hello -o name",
		Flags: append(namespaceFlags(), selectorFlag(), outputFlag("wide", "yaml", "json", "name"),
			&cli.BoolFlag{Name: "no-headers", Usage: "tables without their first line"},
			&cli.BoolFlag{Name: "show-labels", Usage: "tables with a column of labels"},
			&cli.BoolFlag{Name: "ignore-not-found", Usage: "a NAME that does not exist is no error"}),
		Action: p.get,
	}
}

func (p *program) get(ctx *cli.Context) error {
	format, err := outputOf(ctx, "wide", "yaml", "json", "name")
	if err != nil {
		return err
	}
	targets, err := parseTargets(ctx.Args().Slice())
	if err != nil {
		return badUsage(ctx, "%w", err)
	}
	if targets[0].name != "" && (ctx.Bool("all-namespaces") || ctx.String("selector") != "") {
		return badUsage(ctx, "a name cannot be combined with --all-namespaces or --selector")
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	groups, missing := p.collect(ctx, c, targets)
	if len(groups) == 0 && missing != nil {
		return missing
	}
	one := len(targets) == 1 && targets[0].name != ""
	if one && len(groups) == 0 && format != "" && format != "wide" {
		return nil // --ignore-not-found prints nothing
	}
	return errors.Join(p.printObjects(ctx, groups, format, one), missing)
}

// collect fetches the targets, grouped by kind, each group not empty. What
// could not be had is in the error.
func (p *program) collect(ctx *cli.Context, c *client, targets []target) ([][]object, error) {
	var groups [][]object
	var errs []error
	add := func(objects ...object) {
		last := len(groups) - 1
		if last >= 0 && len(objects) > 0 && groups[last][0].kind.name == objects[0].kind.name {
			groups[last] = append(groups[last], objects...)
		} else if len(objects) > 0 {
			groups = append(groups, objects)
		}
	}
	selector, err := selectorOf(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		if t.name != "" {
			o, err := c.fetchOne(ctx, t.kind, namespaceOf(ctx), t.name)
			var gone *missingError
			if errors.As(err, &gone) && ctx.Bool("ignore-not-found") {
				continue
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			add(o)
			continue
		}
		req := &pausav1.GetRequest{Kind: t.kind.name, Namespace: namespaceOf(ctx), LabelSelector: selector}
		if t.kind.global {
			req.Namespace = ""
		}
		found, err := c.fetch(ctx, req)
		if err != nil && !isNotFound(err) {
			errs = append(errs, fmt.Errorf("get %s: %w", t.kind.plural, err))
			continue
		}
		add(found...)
	}
	return groups, errors.Join(errs...)
}
