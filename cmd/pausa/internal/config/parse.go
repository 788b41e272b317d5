package config

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/pausa-run/pausa/internal/nearest"
)

// file is a settings file, decoded.
type file struct {
	path string
	tree map[string]any
	line map[string]int // by key: where it is first written
}

func decode(path, data string) (file, []error) {
	f := file{path: path, line: keyLines(data)}
	if _, err := toml.Decode(data, &f.tree); err != nil {
		var bad toml.ParseError
		if errors.As(err, &bad) {
			return file{}, []error{fmt.Errorf("%s:%d: %s", path, bad.Position.Line, bad.Message)}
		}
		return file{}, []error{fmt.Errorf("%s: %w", path, err)}
	}
	return f, nil
}

// place puts the values of a file into values. Every unknown key and every
// value of a wrong type is an error with its line.
func (f file) place(all []setting, values map[string]Value) []error {
	known, sections, keys := map[string]setting{}, map[string]bool{}, make([]string, 0, len(all))
	for _, s := range all {
		known[s.key], keys = s, append(keys, s.key)
		for section, _ := s.split(); section != ""; section, _ = cutLast(section) {
			sections[section] = true
		}
	}
	var errs []error
	for _, leaf := range flatten("", f.tree, sections) {
		where := fmt.Sprintf("%s:%d", f.path, f.line[leaf.key])
		s, ok := known[leaf.key]
		if !ok {
			errs = append(errs, unknownKey(where, leaf.key, keys))
			continue
		}
		v, err := s.fromTOML(leaf.value)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", where, leaf.key, err))
			continue
		}
		values[leaf.key] = Value{leaf.key, v, where}
	}
	return errs
}

func unknownKey(where, key string, keys []string) error {
	if near := nearKey(key, keys); near != "" {
		return fmt.Errorf("%s: unknown setting %s: did you mean %s?", where, key, near)
	}
	return fmt.Errorf("%s: unknown setting %s: 'pausa config --default' prints all that there are", where, key)
}

// nearKey also finds a right name in a wrong section.
func nearKey(key string, keys []string) string {
	if near := nearest.Word(key, keys); near != "" {
		return near
	}
	_, last := cutLast(key)
	for _, k := range keys {
		if _, name := cutLast(k); nearest.Word(last, []string{name}) != "" {
			return k
		}
	}
	return ""
}

func cutLast(key string) (section, name string) {
	i := strings.LastIndexByte(key, '.')
	if i < 0 {
		return "", key
	}
	return key[:i], key[i+1:]
}

// fromTOML turns a decoded value into the form that environment variables have.
func (s setting) fromTOML(value any) (string, error) {
	switch v := value.(type) {
	case string:
		if s.shape == text {
			return v, nil
		}
	case int64:
		if s.shape == number {
			return strconv.FormatInt(v, 10), nil
		}
	case bool:
		if s.shape == truth {
			return strconv.FormatBool(v), nil
		}
	case []any:
		if s.shape == list {
			return joinStrings(v)
		}
	}
	return "", fmt.Errorf("must be %s", [...]string{text: "a text in quotes", number: "a number", truth: "true or false", list: "a list of texts in quotes"}[s.shape])
}

func joinStrings(items []any) (string, error) {
	out := make([]string, 0, len(items))
	for _, item := range items {
		text, ok := item.(string)
		if !ok {
			return "", errors.New("must be a list of texts in quotes")
		}
		if strings.Contains(text, ",") {
			return "", fmt.Errorf("has %q: no text of a list may have a comma in it", text)
		}
		out = append(out, text)
	}
	return strings.Join(out, ","), nil
}

type leaf struct {
	key   string
	value any
}

// flatten lists the keys under tree, sorted. A table that is no known section
// is one leaf: its name is the mistake, not those of its keys.
func flatten(prefix string, tree map[string]any, sections map[string]bool) []leaf {
	var out []leaf
	for name, value := range tree {
		key := prefix + name
		if sub, ok := value.(map[string]any); ok && sections[key] {
			out = append(out, flatten(key+".", sub, sections)...)
			continue
		}
		out = append(out, leaf{key, value})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].key < out[j].key })
	return out
}

// keyLines tells in which line each key, and each table, is first written. The
// file is known to be TOML; the parser does not keep positions of values.
func keyLines(data string) map[string]int {
	lines, section := map[string]int{}, ""
	for i, line := range strings.Split(data, "\n") {
		key, at := lineKey(strings.TrimSpace(line), section)
		section = at
		for ; key != ""; key, _ = cutLast(key) {
			if _, ok := lines[key]; !ok {
				lines[key] = i + 1
			}
		}
	}
	return lines
}

// lineKey is the full key that a line begins, "" for none, and the section that
// the lines after it are in.
func lineKey(line, section string) (key, next string) {
	clean := func(s string) string {
		parts := strings.Split(s, ".")
		for i := range parts {
			parts[i] = strings.Trim(strings.TrimSpace(parts[i]), `"'`)
		}
		return strings.Join(parts, ".")
	}
	if strings.HasPrefix(line, "[") {
		name, _, ok := strings.Cut(strings.TrimLeft(line, "["), "]")
		if ok && !strings.ContainsAny(name, ",=") && !strings.HasPrefix(name, `"`) {
			return clean(name), clean(name)
		}
		return "", section
	}
	name, _, ok := strings.Cut(line, "=")
	if !ok || strings.HasPrefix(line, "#") || strings.HasPrefix(name, "\"") {
		return "", section
	}
	if name = clean(name); section != "" {
		name = section + "." + name
	}
	return name, section
}
