package manifest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// value checks the node n against the Go type t and returns it as encoding/json
// would see it (map[string]any, []any, string, …). What is wrong is reported and
// comes back as nil.
func (d *decoder) value(n *yaml.Node, t reflect.Type, path string, depth int) any {
	n = follow(n)
	if !d.count(n) {
		return nil
	}
	if depth > maxDepth {
		d.fail(n.Line, "%s: nested deeper than %d levels", d.at(path), maxDepth)
		return nil
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if isNull(n) {
		return nil
	}
	if leaf, ok := d.leaf(n, t, path); ok {
		return leaf
	}
	switch t.Kind() {
	case reflect.Struct:
		return d.structure(n, t, path, depth)
	case reflect.Map:
		return d.mapping(n, t, path, depth)
	case reflect.Slice:
		return d.sequence(n, t, path, depth)
	case reflect.String:
		return d.text(n, path)
	case reflect.Bool:
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
			return d.mismatch(n, path, "true or false", "")
		}
		return strings.EqualFold(n.Value, "true")
	case reflect.Int32, reflect.Int64:
		return d.integer(n, path, t.Bits())
	}
	return d.mismatch(n, path, "something else", "")
}

func (d *decoder) mismatch(n *yaml.Node, path, want, cure string) any {
	d.fail(n.Line, "%s: want %s, got %s%s", d.at(path), want, describe(n), cure)
	return nil
}

// leaf reads the types that have a JSON form of their own.
func (d *decoder) leaf(n *yaml.Node, t reflect.Type, path string) (v any, ok bool) {
	switch t {
	case reflect.TypeFor[resource.Quantity]():
		return d.quantity(n, path), true
	case reflect.TypeFor[intstr.IntOrString]():
		if n.Kind == yaml.ScalarNode && n.Tag == "!!int" {
			return d.integer(n, path, 32), true
		}
		return d.text(n, path), true
	case reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime]():
		if _, err := time.Parse(time.RFC3339, n.Value); n.Kind != yaml.ScalarNode || err != nil {
			return d.mismatch(n, path, "a time like 2026-01-02T15:04:05Z", ""), true
		}
		return n.Value, true
	case reflect.TypeFor[[]byte]():
		if n.Kind != yaml.ScalarNode {
			return d.mismatch(n, path, "base64 text", ""), true
		}
		if _, err := base64.StdEncoding.DecodeString(n.Value); err != nil {
			d.fail(n.Line, "%s: not base64; plain text belongs in stringData (of a Secret) or data (of a ConfigMap)", d.at(path))
			return nil, true
		}
		return n.Value, true
	}
	return nil, false
}

func (d *decoder) quantity(n *yaml.Node, path string) any {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!bool" {
		return d.mismatch(n, path, `a quantity like "500m" or "64Mi"`, "")
	}
	// resource.ParseQuantity takes time that grows with the exponent.
	q, ok := resource.Quantity{}, false
	if len(n.Value) <= 64 {
		var err error
		q, err = resource.ParseQuantity(n.Value)
		ok = err == nil
	}
	if !ok {
		d.fail(n.Line, "%s: %s is not a quantity; write one like \"500m\", \"2\" or \"64Mi\"", d.at(path), describe(n))
		return nil
	}
	return q.String()
}

func (d *decoder) text(n *yaml.Node, path string) any {
	if n.Kind != yaml.ScalarNode {
		return d.mismatch(n, path, "a string", "")
	}
	switch n.Tag {
	case "!!str", "!!timestamp":
		return n.Value
	case "!!int", "!!float", "!!bool":
		return d.mismatch(n, path, "a string", fmt.Sprintf("; write it in quotes: %q", n.Value))
	}
	return d.mismatch(n, path, "a string", "")
}

func (d *decoder) integer(n *yaml.Node, path string, bits int) any {
	var v int64
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || n.Decode(&v) != nil {
		return d.mismatch(n, path, "a whole number", "")
	}
	if bits == 32 && int64(int32(v)) != v {
		d.fail(n.Line, "%s: %s is out of range", d.at(path), n.Value)
		return nil
	}
	return json.Number(strconv.FormatInt(v, 10))
}

func (d *decoder) sequence(n *yaml.Node, t reflect.Type, path string, depth int) any {
	if n.Kind != yaml.SequenceNode {
		return d.mismatch(n, path, "a list", "")
	}
	out := []any{}
	for i, c := range n.Content {
		p := path + "[" + strconv.Itoa(i) + "]"
		d.lines[p] = c.Line
		if isNull(follow(c)) {
			d.fail(c.Line, "%s: the item is empty", d.at(p))
			continue
		}
		out = append(out, d.value(c, t.Elem(), p, depth+1))
	}
	return out
}

func (d *decoder) mapping(n *yaml.Node, t reflect.Type, path string, depth int) any {
	if n.Kind != yaml.MappingNode {
		return d.mismatch(n, path, "a mapping", "")
	}
	out := map[string]any{}
	for _, p := range d.pairs(n, path) {
		at := path + "[" + p.key.Value + "]"
		d.lines[at] = p.key.Line
		if isNull(follow(p.value)) && t.Elem().Kind() == reflect.String {
			out[p.key.Value] = ""
			continue
		}
		if v := d.value(p.value, t.Elem(), at, depth+1); v != nil {
			out[p.key.Value] = v
		}
	}
	return out
}

// structure reads a mapping with the fields of a struct. A struct that is not in
// the table of support may have all of its own fields.
func (d *decoder) structure(n *yaml.Node, t reflect.Type, path string, depth int) any {
	if n.Kind != yaml.MappingNode {
		return d.mismatch(n, path, "a mapping", "")
	}
	fields := fieldsOf(t)
	allowed, listed := d.rules[t]
	out := map[string]any{}
	for _, p := range d.pairs(n, path) {
		name := p.key.Value
		at := strings.TrimPrefix(path+"."+name, ".")
		d.lines[at] = p.key.Line
		if path == "" && (name == "apiVersion" || name == "kind") {
			continue // New and MarshalJSON know them by the Go type
		}
		if at == "status" || at == "metadata.managedFields" {
			continue // belongs to whoever wrote the object before
		}
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if i < 0 {
			d.unknownField(p.key, fields, allowed, path)
			continue
		}
		r, ok := allowed[name]
		if listed && !ok {
			d.fail(p.key.Line, "%s is not supported yet", d.at(at))
			continue
		}
		if r.refused != "" {
			d.fail(p.key.Line, "%s is not supported: %s", d.at(at), r.refused)
			continue
		}
		v := d.value(p.value, fields[i].typ, at, depth+1)
		if v != nil {
			d.oneOf(p.value, v, r, at)
			out[name] = v
		}
	}
	return out
}

func (d *decoder) unknownField(key *yaml.Node, fields []field, allowed map[string]rule, path string) {
	var names []string
	for _, f := range fields {
		if r, ok := allowed[f.name]; (ok && r.refused == "") || allowed == nil {
			names = append(names, f.name)
		}
	}
	h := hint(key.Value, names)
	if h == "" {
		names = names[:0]
		for _, f := range fields {
			names = append(names, f.name)
		}
		h = hint(key.Value, names)
	}
	d.fail(key.Line, "unknown field %q in %s%s", key.Value, d.at(path), h)
}

// oneOf refuses a value that the table does not list for its field.
func (d *decoder) oneOf(n *yaml.Node, v any, r rule, path string) {
	got := fmt.Sprint(v)
	if len(r.values) == 0 || got == "" || slices.Contains(r.values, got) {
		return
	}
	h := hint(got, r.values)
	if h == "" {
		h = "; use " + strings.Join(r.values, ", ")
	}
	d.fail(n.Line, "%s: %q is not supported%s", d.at(path), got, h)
}
