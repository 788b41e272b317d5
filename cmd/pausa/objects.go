package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/pausa-run/pausa/cri/pausav1"
)

const defaultNamespace = "default"

// object is one object of the daemon's.
type object struct {
	kind kind
	meta metav1.ObjectMeta
	raw  []byte // the whole as JSON
}

// decode reads the whole into one of k8s.io/api's types.
func (o object) decode(into any) error {
	if err := json.Unmarshal(o.raw, into); err != nil {
		return fmt.Errorf("read %s %q of the daemon: %w", o.kind.name, o.meta.Name, err)
	}
	return nil
}

func parseObject(raw []byte) (object, error) {
	var head struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ObjectMeta `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return object{}, fmt.Errorf("read an object of the daemon: %w", err)
	}
	return object{kindOf(head.Kind), head.Metadata, raw}, nil
}

// fetch asks for objects; kind "" is every kind, namespace "" every namespace,
// name "" every name.
func (c *client) fetch(ctx *cli.Context, req *pausav1.GetRequest) ([]object, error) {
	answer, err := c.Get(ctx.Context, req)
	if err != nil {
		return nil, first(ctx.Context, err)
	}
	out := make([]object, 0, len(answer.GetObjects()))
	for _, raw := range answer.GetObjects() {
		o, err := parseObject(raw)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// fetchOne gets the named object, or an error as `pods "x" not found`.
func (c *client) fetchOne(ctx *cli.Context, k kind, namespace, name string) (object, error) {
	if k.global {
		namespace = ""
	}
	found, err := c.fetch(ctx, &pausav1.GetRequest{Kind: k.name, Namespace: namespace, Name: name})
	if isNotFound(err) || err == nil && len(found) == 0 {
		return object{}, notFound(k, name)
	}
	if err != nil {
		return object{}, err
	}
	return found[0], nil
}

// podError says it plainly when err of a request about a pod means that the pod
// does not exist, and not its container.
func (c *client) podError(ctx *cli.Context, namespace, name string, err error) error {
	if !isNotFound(err) {
		return err
	}
	var gone *missingError
	if _, look := c.fetchOne(ctx, kindOf("Pod"), namespace, name); errors.As(look, &gone) {
		return gone
	}
	return err
}

// missingError says that an object does not exist.
type missingError struct {
	kind kind
	name string
}

func (e *missingError) Error() string {
	return fmt.Sprintf("%s %q not found", e.kind.resource(), e.name)
}

// resource is the kind as kubectl names it in errors: "pods", "deployments.apps".
func (k kind) resource() string {
	if k.group == "" {
		return k.plural
	}
	return k.plural + "." + k.group
}

func notFound(k kind, name string) error { return &missingError{k, name} }

// namespaceFlags choose where a command looks.
func namespaceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "namespace", Aliases: []string{"n"}, Usage: "`NAMESPACE` of the objects", Value: defaultNamespace},
		&cli.BoolFlag{Name: "all-namespaces", Aliases: []string{"A"}, Usage: "objects of every namespace"},
	}
}

func namespaceFlag() cli.Flag { return namespaceFlags()[0] }

func selectorFlag() cli.Flag {
	return &cli.StringFlag{Name: "selector", Aliases: []string{"l"}, Usage: "only objects whose labels match `SELECTOR` (app=web,tier!=db)"}
}

// namespaceOf is the namespace to ask for, "" for every one.
func namespaceOf(ctx *cli.Context) string {
	if ctx.Bool("all-namespaces") {
		return ""
	}
	return ctx.String("namespace")
}

func selectorOf(ctx *cli.Context) (string, error) {
	text := ctx.String("selector")
	if _, err := labels.Parse(text); err != nil {
		return "", badUsage(ctx, "selector %q: %w", text, err)
	}
	return text, nil
}
