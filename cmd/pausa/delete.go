package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/pausa-run/pausa/cri/pausav1"
)

func (p *program) deleteCommand() *cli.Command {
	return &cli.Command{
		Name:      "delete",
		Usage:     "Delete objects, and wait until they are gone",
		ArgsUsage: "-f FILE|DIR|- | KIND NAME... | KIND/NAME... | [KIND] --all",
		Description: "What does not exist is an error (exit status 1), unless --ignore-not-found is given.\n\n" +
			"Examples:\n" +
			"  pausa delete -f hello.yaml\n" +
			"  pausa delete pod web db --grace-period 1\n" +
			"  pausa delete deployments -l app=hello\n" +
			"  pausa delete pods --all -n shop\n" +
			"  pausa delete --all -A              everything on this host",
		Flags: append(namespaceFlags(), selectorFlag(),
			filesFlag("the objects of `FILE` or folder, - for standard input; may be repeated"), recursiveFlag(),
			&cli.BoolFlag{Name: "all", Usage: "all objects of the kind, or of every kind"},
			&cli.BoolFlag{Name: "ignore-not-found", Usage: "what does not exist is no error"},
			&cli.Int64Flag{Name: "grace-period", Usage: "`SECONDS` that containers get to end by themselves; -1: as the pod says", Value: -1},
			&cli.BoolFlag{Name: "force", Usage: "kill at once (--grace-period 0)"},
			&cli.BoolFlag{Name: "wait", Usage: "return only when all is gone", Value: true},
			outputFlag("name")),
		Action: p.delete,
	}
}

func (p *program) delete(ctx *cli.Context) error {
	if _, err := outputOf(ctx, "name"); err != nil {
		return err
	}
	phases, err := p.deletions(ctx)
	if err != nil {
		return err
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	var errs []error
	for _, reqs := range phases {
		errs = append(errs, p.deleteTogether(ctx, c, reqs))
	}
	return errors.Join(errs...)
}

// deletions reads the command line: requests that may run side by side, in the
// order in which they must follow each other.
func (p *program) deletions(ctx *cli.Context) ([][]*pausav1.DeleteRequest, error) {
	files, args := ctx.IsSet("filename"), ctx.Args().Present()
	selector, err := selectorOf(ctx)
	if err != nil {
		return nil, err
	}
	many := ctx.Bool("all") || selector != ""
	switch {
	case ctx.Bool("all") && selector != "":
		return nil, badUsage(ctx, "--all and --selector exclude each other")
	case files && (args || many):
		return nil, badUsage(ctx, "-f cannot be combined with a kind, --all or --selector")
	case ctx.Bool("force") && ctx.Int64("grace-period") > 0:
		return nil, badUsage(ctx, "--force is a grace period of 0: leave one of the two out")
	case ctx.Int64("grace-period") < -1:
		return nil, badUsage(ctx, "--grace-period %d: must be 0 or more", ctx.Int64("grace-period"))
	case files:
		return p.fileDeletions(ctx)
	case !args && !ctx.Bool("all"):
		return nil, badUsage(ctx, "name what to delete: -f FILE, KIND NAME, or --all")
	case !args:
		return [][]*pausav1.DeleteRequest{{p.deletion(ctx, kind{}, namespaceOf(ctx), "")}}, nil
	}
	targets, err := parseTargets(ctx.Args().Slice())
	if err != nil {
		return nil, badUsage(ctx, "%w", err)
	}
	var reqs []*pausav1.DeleteRequest
	for _, t := range targets {
		if t.name == "" && !many {
			return nil, badUsage(ctx, "name the %s to delete, or add --all", t.kind.plural)
		}
		if t.name != "" && (many || ctx.Bool("all-namespaces")) {
			return nil, badUsage(ctx, "a name cannot be combined with --all, --selector or --all-namespaces")
		}
		reqs = append(reqs, p.deletion(ctx, t.kind, namespaceOf(ctx), t.name))
	}
	return [][]*pausav1.DeleteRequest{reqs}, nil
}

// fileDeletions deletes what manifests declare; namespaces go last.
func (p *program) fileDeletions(ctx *cli.Context) ([][]*pausav1.DeleteRequest, error) {
	objects, err := p.readObjects(ctx)
	if err != nil {
		return nil, err
	}
	var inside, namespaces []*pausav1.DeleteRequest
	for _, o := range objects {
		req := p.deletion(ctx, kindOf(o.Kind()), o.Namespace(), o.Name())
		if o.Kind() == "Namespace" {
			namespaces = append(namespaces, req)
		} else {
			inside = append(inside, req)
		}
	}
	return [][]*pausav1.DeleteRequest{inside, namespaces}, nil
}

func (p *program) deletion(ctx *cli.Context, k kind, namespace, name string) *pausav1.DeleteRequest {
	req := &pausav1.DeleteRequest{Kind: k.name, Namespace: namespace, Name: name, Wait: ctx.Bool("wait")}
	if k.global {
		req.Namespace = ""
	}
	if name == "" {
		req.LabelSelector = ctx.String("selector")
		req.All = req.LabelSelector == ""
	}
	switch grace := ctx.Int64("grace-period"); {
	case ctx.Bool("force"):
		req.GraceSeconds = new(int64)
	case grace >= 0:
		req.GraceSeconds = &grace
	}
	return req
}

// deleteTogether sends all requests at once, so that the slowest grace period
// and not their sum is waited for; it prints in the order of the requests.
func (p *program) deleteTogether(ctx *cli.Context, c *client, reqs []*pausav1.DeleteRequest) error {
	answers, errs := make([]*pausav1.DeleteResponse, len(reqs)), make([]error, len(reqs))
	var group errgroup.Group
	group.SetLimit(32)
	for i, req := range reqs {
		group.Go(func() error {
			answers[i], errs[i] = c.Delete(ctx.Context, req)
			return nil
		})
	}
	_ = group.Wait() // every error is in errs
	for i, req := range reqs {
		if errs[i] == nil || isNotFound(errs[i]) {
			errs[i] = p.printDeleted(ctx, req, answers[i].GetDeleted())
		}
		errs[i] = first(ctx.Context, errs[i])
	}
	return errors.Join(errs...)
}

func (p *program) printDeleted(ctx *cli.Context, req *pausav1.DeleteRequest, deleted []*pausav1.ObjectRef) error {
	for _, ref := range deleted {
		switch {
		case ctx.String("output") == "name":
			fmt.Fprintf(p.out, "%s/%s\n", kindOf(ref.GetKind()).typed(), ref.GetName())
		case ctx.Bool("all-namespaces") && ref.GetNamespace() != "":
			fmt.Fprintf(p.out, "%s %q deleted from namespace %s\n", kindOf(ref.GetKind()).typed(), ref.GetName(), ref.GetNamespace())
		default:
			fmt.Fprintf(p.out, "%s %q deleted\n", kindOf(ref.GetKind()).typed(), ref.GetName())
		}
	}
	switch {
	case len(deleted) > 0:
		return nil
	case req.GetName() == "":
		fmt.Fprintln(p.err, "No resources found")
		return nil
	case ctx.Bool("ignore-not-found"):
		return nil
	default:
		return notFound(kindOf(req.GetKind()), req.GetName())
	}
}
