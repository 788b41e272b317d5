package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of one input: bytes read, YAML nodes after aliases are followed, nesting.
const (
	maxBytes = 8 << 20
	maxNodes = 200_000
	maxDepth = 64
)

// Error is one thing wrong with a manifest.
type Error struct {
	Source Source
	Msg    string
}

// Error is "hello.yaml:14: unknown field …".
func (e *Error) Error() string { return e.Source.String() + ": " + e.Msg }

// Decode reads every object of a YAML stream or of JSON texts, strictly, and
// checks each (Validate). name stands for the input in errors; if it already ends
// in a line ("hello.yaml:3"), errors say just that. Every error of the input is
// in the returned one (errors.Join); the objects without errors are returned too.
func Decode(r io.Reader, name string) ([]Object, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	d := newDecoder(name)
	if len(data) > maxBytes {
		d.fail(0, "input is larger than %d bytes", maxBytes)
		return nil, errors.Join(d.errs...)
	}
	for _, n := range d.parse(data) {
		d.object(n, 0)
	}
	d.duplicates()
	slices.SortStableFunc(d.errs, func(a, b error) int { return lineOf(a) - lineOf(b) })
	return d.objects, errors.Join(d.errs...)
}

type decoder struct {
	name     string
	fixed    bool // name has a line already
	rules    map[reflect.Type]map[string]rule
	nodes    int
	exceeded bool
	errs     []error
	objects  []Object

	kind  string         // of the object that is being read
	lines map[string]int // likewise
}

func newDecoder(name string) *decoder {
	return &decoder{name: name, fixed: regexp.MustCompile(`:\d+$`).MatchString(name), rules: rules()}
}

func (d *decoder) source(line int) Source {
	if d.fixed {
		line = 0
	}
	return Source{d.name, line}
}

func (d *decoder) fail(line int, format string, args ...any) {
	d.errs = append(d.errs, &Error{d.source(line), fmt.Sprintf(format, args...)})
}

// object reads one document or one item of a List.
func (d *decoder) object(n *yaml.Node, depth int) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode || depth > maxDepth {
		d.fail(n.Line, "want an object with apiVersion and kind, got %s", describe(n))
		return
	}
	d.kind, d.lines = "object", map[string]int{}
	apiVersion, name := d.head(n)
	k, ok := kindNamed(name)
	switch {
	case name == "":
		d.fail(n.Line, "object has no kind")
	case strings.HasSuffix(name, "List") && name != "EndpointsList":
		d.list(n, depth)
	case !ok:
		d.unknownKind(n, name)
	case apiVersion == "":
		d.fail(d.line(n, "kind"), "%s has no apiVersion; want %q", name, k.apiVersion())
	case apiVersion != k.apiVersion():
		d.fail(d.line(n, "apiVersion"), "%s has apiVersion %q; want %q", name, apiVersion, k.apiVersion())
	default:
		d.typed(n, k)
	}
}

// head finds apiVersion and kind.
func (d *decoder) head(n *yaml.Node) (apiVersion, kind string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if v := n.Content[i+1]; v.Kind == yaml.ScalarNode && !isNull(v) {
			switch n.Content[i].Value {
			case "apiVersion":
				apiVersion = v.Value
			case "kind":
				kind = v.Value
			}
		}
	}
	return apiVersion, kind
}

// line is where a key of the mapping n stands.
func (d *decoder) line(n *yaml.Node, key string) int {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i].Line
		}
	}
	return n.Line
}

func (d *decoder) unknownKind(n *yaml.Node, name string) {
	line := d.line(n, "kind")
	if slices.Contains(foreignKinds(), name) {
		d.fail(line, "kind %s is not supported yet", name)
		return
	}
	d.fail(line, "unknown kind %q%s", name, hint(name, slices.Concat(Kinds(), []string{"List"}, foreignKinds())))
}

// list reads the items of a List (or PodList, …).
func (d *decoder) list(n *yaml.Node, depth int) {
	for _, p := range d.pairs(n, "") {
		switch p.key.Value {
		case "apiVersion", "kind", "metadata":
		case "items":
			items := follow(p.value)
			if items.Kind != yaml.SequenceNode {
				d.fail(p.key.Line, "List.items: want a list, got %s", describe(items))
				continue
			}
			for _, item := range items.Content {
				if !d.count(item) {
					return
				}
				d.object(item, depth+1)
			}
		default:
			d.fail(p.key.Line, "unknown field %q in List%s", p.key.Value, hint(p.key.Value, []string{"items"}))
		}
	}
}

// typed reads an object of a known kind and keeps it if nothing is wrong with it.
func (d *decoder) typed(n *yaml.Node, k kind) {
	before := len(d.errs)
	d.kind = k.name
	v := k.make()
	tree := d.value(n, reflect.TypeOf(v).Elem(), "", 0)
	if len(d.errs) > before {
		return
	}
	data, err := json.Marshal(tree)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		d.fail(n.Line, "%s: %v", k.name, err)
		return
	}
	o := Object{Source: d.source(n.Line), value: v, lines: d.lines}
	if d.fixed {
		o.lines = nil
	}
	if err := Validate(o); err != nil {
		d.errs = append(d.errs, unjoin(err)...)
		return
	}
	d.objects = append(d.objects, o)
}

// duplicates refuses a second object of the same name.
func (d *decoder) duplicates() {
	seen := map[Ref]Source{}
	for _, o := range d.objects {
		ref := o.Ref()
		if ref.Namespace == "" && Namespaced(ref.Kind) {
			ref.Namespace = "default"
		}
		if first, ok := seen[ref]; ok {
			d.fail(o.Source.Line, "%s is declared twice, first at %s", ref, first)
			continue
		}
		seen[ref] = o.Source
	}
}

// count takes one node from the budget.
func (d *decoder) count(n *yaml.Node) bool {
	if d.nodes++; d.nodes <= maxNodes {
		return true
	}
	if !d.exceeded {
		d.exceeded = true
		d.fail(n.Line, "input has more than %d values, aliases counted as often as they are used", maxNodes)
	}
	return false
}

// pair is one entry of a mapping.
type pair struct{ key, value *yaml.Node }

// pairs lists a mapping's entries, with "<<" merged in, and reports duplicate keys.
func (d *decoder) pairs(n *yaml.Node, path string) []pair {
	var out, merged []pair
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Tag == "!!merge" {
			merged = append(merged, mergePairs(follow(value))...)
			continue
		}
		if key.Kind != yaml.ScalarNode {
			d.fail(key.Line, "%s: want a plain key, got %s", d.at(path), describe(key))
			continue
		}
		if first, ok := seen[key.Value]; ok {
			d.fail(key.Line, "duplicate key %q in %s, first at line %d", key.Value, d.at(path), first)
			continue
		}
		seen[key.Value] = key.Line
		out = append(out, pair{key, value})
	}
	for _, p := range merged {
		if _, ok := seen[p.key.Value]; !ok && p.key.Kind == yaml.ScalarNode {
			seen[p.key.Value] = p.key.Line
			out = append(out, p)
		}
	}
	return out
}

// mergePairs are the entries that a "<<" brings: of one mapping or a list of them, one level deep.
func mergePairs(n *yaml.Node) []pair {
	var out []pair
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			out = append(out, pair{n.Content[i], n.Content[i+1]})
		}
	case yaml.SequenceNode:
		for _, c := range n.Content {
			if m := follow(c); m.Kind == yaml.MappingNode {
				out = append(out, mergePairs(m)...)
			}
		}
	}
	return out
}

func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n.Kind == 0 || (n.Kind == yaml.ScalarNode && n.Tag == "!!null")
}

// at is the path of a field for people: "Pod.spec.containers[0]".
func (d *decoder) at(path string) string {
	if path == "" {
		return d.kind
	}
	return d.kind + "." + path
}

// describe says what a node is: `the number 80`, "a list".
func describe(n *yaml.Node) string {
	switch {
	case isNull(n):
		return "nothing"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!int", n.Tag == "!!float":
		return "the number " + n.Value
	case n.Tag == "!!bool":
		return "the boolean " + n.Value
	}
	if len(n.Value) > 60 {
		return fmt.Sprintf("%q…", n.Value[:60])
	}
	return fmt.Sprintf("%q", n.Value)
}

func lineOf(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Source.Line
	}
	return 0
}

// unjoin is the list that errors.Join was given.
func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}
