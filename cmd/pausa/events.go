package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/pausa-run/pausa/cmd/pausa/internal/doctor"
	"github.com/pausa-run/pausa/cri/pausav1"
)

func (p *program) eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "List what has happened to pods, Services and the host's network",
		Description: "Images pulled, containers started, killed and restarted, probes that fail; Services\n" +
			"without an endpoint; and what somebody changed of the network that was made again:\n" +
			"rules, bridges, links, addresses, routes. The latest is the last. The same that happens\n" +
			"again is counted. The last 1,500 events of pods and 500 of all else are kept across\n" +
			"restarts of the daemon, until the host is rebooted. Those of the host, whose kind is\n" +
			"node, are in the namespace default.\n\n" +
			"Examples:\n" +
			"  pausa events -A\n" +
			"  pausa events --for pod/web-1 --watch\n" +
			"  pausa events --types Warning -o wide",
		Flags: append(namespaceFlags(),
			&cli.StringFlag{Name: "for", Usage: "only events of the object `KIND/NAME`, as pod/web-1 or node/HOST"},
			&cli.StringFlag{Name: "types", Usage: "only events of these `TYPES`: Normal, Warning"},
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "then print each event as it happens"},
			&cli.BoolFlag{Name: "no-headers", Usage: "tables without their first line"},
			outputFlag("wide", "json", "yaml")),
		Action: p.events,
	}
}

func (p *program) events(ctx *cli.Context) error {
	format, err := outputOf(ctx, "wide", "json", "yaml")
	if err != nil {
		return err
	}
	if ctx.Args().Present() {
		return badUsage(ctx, "unexpected argument %q: for the events of one object write --for %s", ctx.Args().First(), ctx.Args().First())
	}
	req, err := eventsRequest(ctx)
	if err != nil {
		return err
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	stream, err := c.Events(ctx.Context, req)
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		answer, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		}
		if err := p.printEvents(ctx, format, answer.GetEvents(), first); err != nil {
			return err
		}
	}
}

func eventsRequest(ctx *cli.Context) (*pausav1.EventsRequest, error) {
	req := &pausav1.EventsRequest{Namespace: namespaceOf(ctx), Watch: ctx.Bool("watch")}
	if object := ctx.String("for"); object != "" {
		word, name, ok := strings.Cut(object, "/")
		if !ok || word == "" || name == "" {
			return nil, badUsage(ctx, "--for %s: write KIND/NAME, as in pod/web-1", object)
		}
		req.Kind, req.Name = "Node", name
		if word = strings.ToLower(word); word != "node" && word != "nodes" && word != "no" {
			k, err := parseKind(word)
			if err != nil {
				return nil, badUsage(ctx, "--for %s: %w", object, err)
			}
			req.Kind = k.name
		}
	}
	if types := ctx.String("types"); types != "" {
		for word := range strings.SplitSeq(types, ",") {
			known := []string{corev1.EventTypeNormal, corev1.EventTypeWarning}
			i := slices.IndexFunc(known, func(t string) bool { return strings.EqualFold(t, strings.TrimSpace(word)) })
			if i < 0 {
				return nil, badUsage(ctx, "--types %s: there are %s", types, strings.Join(known, " and "))
			}
			req.Types = append(req.Types, known[i])
		}
	}
	return req, nil
}

// printEvents prints the first answer as a list, and what follows one by one.
func (p *program) printEvents(ctx *cli.Context, format string, raw [][]byte, first bool) error {
	watch := ctx.Bool("watch")
	switch {
	case (format == "json" || format == "yaml") && !watch:
		items := make([]json.RawMessage, 0, len(raw))
		for _, r := range raw {
			items = append(items, r)
		}
		return p.printData(format, list{"v1", items, "List", map[string]string{"resourceVersion": ""}})
	case format == "json" || format == "yaml":
		for _, r := range raw {
			if format == "yaml" {
				fmt.Fprintln(p.out, "---")
			}
			if err := p.printData(format, json.RawMessage(r)); err != nil {
				return err
			}
		}
		return nil
	case len(raw) == 0 && !watch:
		where := " in " + ctx.String("namespace") + " namespace"
		if ctx.Bool("all-namespaces") {
			where = ""
		}
		fmt.Fprintf(p.err, "No events found%s.\n", where)
		return nil
	}
	rows, err := p.eventRows(raw, ctx.Bool("all-namespaces"), format == "wide")
	if err != nil {
		return err
	}
	if !first || ctx.Bool("no-headers") || len(raw) == 0 {
		rows = rows[1:]
	}
	return p.printRows(rows)
}

// eventRows is a table, its first row the header.
func (p *program) eventRows(raw [][]byte, namespaces, wide bool) ([][]string, error) {
	row := func(namespace, last, kind, reason, object, field, source, message, first, count, name string) []string {
		out := []string{last, kind, reason, object, message}
		if wide {
			out = []string{last, kind, reason, object, field, source, message, first, count, name}
		}
		if namespaces {
			out = append([]string{namespace}, out...)
		}
		return out
	}
	rows := [][]string{row("NAMESPACE", "LAST SEEN", "TYPE", "REASON", "OBJECT", "SUBOBJECT", "SOURCE", "MESSAGE", "FIRST SEEN", "COUNT", "NAME")}
	for _, r := range raw {
		var e corev1.Event
		if err := json.Unmarshal(r, &e); err != nil {
			return nil, fmt.Errorf("read an event of the daemon: %w", err)
		}
		o := e.InvolvedObject
		rows = append(rows, row(e.Namespace, p.lastSeen(&e), e.Type, e.Reason, strings.ToLower(o.Kind)+"/"+o.Name, o.FieldPath,
			e.Source.Component+", "+e.Source.Host, e.Message, p.ago(e.FirstTimestamp), strconv.Itoa(int(e.Count)), e.Name))
	}
	return rows, nil
}

func (p *program) ago(t metav1.Time) string {
	return duration.HumanDuration(max(p.now().Sub(t.Time), 0))
}

// lastSeen is "5s", or "5s (x3 over 2m)".
func (p *program) lastSeen(e *corev1.Event) string {
	if e.Count <= 1 {
		return p.ago(e.LastTimestamp)
	}
	return fmt.Sprintf("%s (x%d over %s)", p.ago(e.LastTimestamp), e.Count, p.ago(e.FirstTimestamp))
}

// pastEvents are the events of an object, or of all of a kind ("": of every kind).
func (c *client) pastEvents(ctx *cli.Context, req *pausav1.EventsRequest) ([]corev1.Event, error) {
	stream, err := c.Events(ctx.Context, req)
	if err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	out := make([]corev1.Event, len(answer.GetEvents()))
	for i, raw := range answer.GetEvents() {
		if err := json.Unmarshal(raw, &out[i]); err != nil {
			return nil, fmt.Errorf("read an event of the daemon: %w", err)
		}
	}
	return out, nil
}

// describeEvents lists the events of an object, as kubectl does at the end.
func (p *program) describeEvents(ctx *cli.Context, c *client, o object) error {
	found, err := c.pastEvents(ctx, &pausav1.EventsRequest{Namespace: o.meta.Namespace, Kind: o.kind.name, Name: o.meta.Name})
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(e corev1.Event) bool { return e.InvolvedObject.UID != o.meta.UID }) // of a former one
	if len(found) == 0 {
		fmt.Fprintln(p.out, "Events: <none>")
		return nil
	}
	fmt.Fprintln(p.out, "Events:")
	rows := [][]string{{"  TYPE", "REASON", "AGE", "MESSAGE"}}
	for i := range found {
		e := &found[i]
		rows = append(rows, []string{"  " + e.Type, e.Reason, p.lastSeen(e), e.Message})
	}
	return p.printRows(rows)
}

// recent is how far back doctor looks.
const recent = time.Hour

// networkEvents are what was changed of the host's network, and made again, of late.
func (p *program) networkEvents(ctx *cli.Context, c *client) ([]doctor.Healed, error) {
	now := p.now()
	found, err := c.pastEvents(ctx, &pausav1.EventsRequest{Kind: "Node", Types: []string{corev1.EventTypeWarning}})
	if err != nil {
		return nil, err
	}
	var out []doctor.Healed
	for i := range found {
		if e := &found[i]; now.Sub(e.LastTimestamp.Time) < recent {
			perHour := float64(e.Count) * recent.Hours() / max(now.Sub(e.FirstTimestamp.Time), recent).Hours()
			out = append(out, doctor.Healed{What: fmt.Sprintf("%s ago %s", p.lastSeen(e), e.Message), PerHour: perHour})
		}
	}
	return out, nil
}
