package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// wait and run look again soon at first, then less often.
const (
	pollFirst = 5 * time.Millisecond
	pollLast  = 100 * time.Millisecond
)

// longer is the pause after one of d.
func longer(d time.Duration) time.Duration { return min(d*3/2, pollLast) }

func (p *program) waitCommand() *cli.Command {
	return &cli.Command{
		Name:      "wait",
		Usage:     "Wait until objects meet a condition",
		ArgsUsage: "--for=condition=NAME|delete KIND/NAME... | KIND NAME... | KIND -l SELECTOR",
		Description: "A condition is one of the object's status.conditions, with =false for its opposite.\n\n" +
			"Examples:\n" +
			"  pausa wait --for=condition=Ready pod/hello\n" +
			"  pausa wait --for=condition=Available deployment/hello --timeout 1m\n" +
			"  pausa wait --for=delete pod/hello\n" +
			"  pausa wait --for=condition=Ready pods -l app=hello",
		Flags: append(namespaceFlags(), selectorFlag(),
			&cli.StringFlag{Name: "for", Usage: "`WHAT` to wait for: condition=NAME, condition=NAME=false, or delete"},
			&cli.BoolFlag{Name: "all", Usage: "all objects of the kind"},
			&cli.DurationFlag{Name: "timeout", Usage: "`DURATION` after which it fails; 0 looks once", Value: 30 * time.Second}),
		Action: p.wait,
	}
}

// goal is what an object is waited for.
type goal struct {
	deleted   bool
	condition string
	status    string // "True", "False", "Unknown"
}

func (g goal) String() string {
	if g.deleted {
		return "delete"
	}
	return "condition " + g.condition + "=" + g.status
}

func parseGoal(text string) (goal, error) {
	what, rest, _ := strings.Cut(text, "=")
	switch {
	case text == "delete":
		return goal{deleted: true}, nil
	case what == "condition" && rest != "":
		name, status, ok := strings.Cut(rest, "=")
		if !ok {
			status = "true"
		}
		for _, known := range []string{"True", "False", "Unknown"} {
			if strings.EqualFold(status, known) && name != "" {
				return goal{condition: name, status: known}, nil
			}
		}
		return goal{}, fmt.Errorf("--for=%s: a condition is true, false or unknown", text)
	case text == "":
		return goal{}, errors.New("say what to wait for: --for=condition=Ready or --for=delete")
	default:
		return goal{}, fmt.Errorf("--for=%s: must be condition=NAME or delete", text)
	}
}

// met tells whether o is as the goal says.
func (g goal) met(o object) (bool, error) {
	var status struct {
		Status struct {
			Conditions []struct{ Type, Status string } `json:"conditions"`
		} `json:"status"`
	}
	if err := json.Unmarshal(o.raw, &status); err != nil {
		return false, fmt.Errorf("read status of %s/%s: %w", o.kind.typed(), o.meta.Name, err)
	}
	for _, c := range status.Status.Conditions {
		if strings.EqualFold(c.Type, g.condition) {
			return c.Status == g.status, nil
		}
	}
	return false, nil
}

func (p *program) wait(ctx *cli.Context) error {
	g, err := parseGoal(ctx.String("for"))
	if err != nil {
		return badUsage(ctx, "%w", err)
	}
	targets, err := parseTargets(ctx.Args().Slice())
	if err != nil {
		return badUsage(ctx, "%w", err)
	}
	if targets[0].name == "" && !ctx.Bool("all") && ctx.String("selector") == "" {
		return badUsage(ctx, "name objects, or choose them with -l or --all")
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	if targets, err = c.named(ctx, targets); err != nil {
		return err
	}
	if len(targets) == 0 && !g.deleted {
		return errors.New("no objects match: nothing to wait for")
	}
	deadline, cancel := context.WithTimeout(ctx.Context, ctx.Duration("timeout"))
	defer cancel()
	var errs []error
	for _, t := range targets {
		errs = append(errs, p.waitFor(ctx, deadline, c, t, g))
	}
	return errors.Join(errs...)
}

// named puts the objects that exist now in the place of targets without a name.
func (c *client) named(ctx *cli.Context, targets []target) ([]target, error) {
	selector, err := selectorOf(ctx)
	if err != nil {
		return nil, err
	}
	var out []target
	for _, t := range targets {
		if t.name != "" {
			out = append(out, t)
			continue
		}
		found, err := c.fetch(ctx, &pausav1.GetRequest{Kind: t.kind.name, Namespace: namespaceOf(ctx), LabelSelector: selector})
		if err != nil {
			return nil, err
		}
		for _, o := range found {
			out = append(out, target{t.kind, o.meta.Name})
		}
	}
	return out, nil
}

func (p *program) waitFor(ctx *cli.Context, deadline context.Context, c *client, t target, g goal) error {
	for pause := pollFirst; ; pause = longer(pause) {
		o, err := c.fetchOne(ctx, t.kind, ctx.String("namespace"), t.name)
		var gone *missingError
		switch {
		case errors.As(err, &gone) && g.deleted:
			fmt.Fprintf(p.out, "%s/%s deleted\n", t.kind.typed(), t.name)
			return nil
		case err != nil:
			return err
		case !g.deleted:
			if met, err := g.met(o); err != nil {
				return err
			} else if met {
				fmt.Fprintf(p.out, "%s/%s condition met\n", t.kind.typed(), t.name)
				return nil
			}
		}
		if !sleep(deadline, pause) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("timed out after %s waiting for %s on %s/%s: see 'pausa describe %s %s'",
				ctx.Duration("timeout"), g, t.kind.plural, t.name, strings.ToLower(t.kind.name), t.name)
		}
	}
}

// sleep waits, and tells whether ctx is still alive after it.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
