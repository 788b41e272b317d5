package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// program writes a script that answers "features" and "exec --help".
func program(t *testing.T, features, help string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	text := "#!/bin/sh\ncase $1 in\nfeatures) cat <<E\n" + features + "\nE\n;;\nexec) echo '" + help + "';;\nesac\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func handlers(t *testing.T, standard string, programs ...Handler) *Handlers {
	t.Helper()
	h, err := NewHandlers(standard, []string{"plain"}, programs...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestFeatures(t *testing.T) {
	all := `{"mountOptions": ["ro", "rro"], "linux": {"namespaces": ["user"], "mountExtensions": {"idmap": {"enabled": true}}, "seccomp": {"enabled": false}}}`
	for name, c := range map[string]struct {
		features, help string
		want           Features
		groups         ExecGroups
	}{
		"all":     {all, "--cgroup value  Format is [<controller>:]<cgroup>.", Features{true, true, true, true}, AnyExecGroups},
		"little":  {`{"mountOptions": ["ro"]}`, "--cgroup=PATH", Features{}, UnifiedExecGroups},
		"nothing": {"", "", Features{}, NoExecGroups},
		"garbage": {"not json", "", Features{}, NoExecGroups},
	} {
		t.Run(name, func(t *testing.T) {
			h := handlers(t, "", Handler{Name: "x", Program: &Program{Name: "x", Path: program(t, c.features, c.help)}})
			got, err := h.Find("x")
			if err != nil || got.Features != c.want || got.Program.ExecGroups != c.groups {
				t.Errorf("%+v, %v, %v", got.Features, got.Program, err)
			}
		})
	}
}

func TestHandlersFind(t *testing.T) {
	path := program(t, "", "")
	h := handlers(t, "fast", Handler{Name: "crun", Aliases: []string{"fast"}, Program: &Program{Name: "crun", Path: path}})
	for name, want := range map[string]string{"": "crun", "fast": "crun", "crun": "crun", "pausa": BuiltIn, "plain": BuiltIn} {
		if got, err := h.Find(name); err != nil || got.Name != want {
			t.Errorf("%q: %s, %v", name, got.Name, err)
		}
	}
	if _, err := h.Find("kata"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "pausa, plain, crun, fast") {
		t.Errorf("unknown: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Find("crun"); err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), path) {
		t.Errorf("without its program: %v", err)
	}
	again := program(t, `{"mountOptions": ["rro"]}`, "")
	if err := os.Rename(again, path); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Find("crun"); err != nil || !got.Features.RecursiveReadOnly {
		t.Errorf("with another program: %+v, %v", got, err)
	}
	all, standard := h.List()
	if len(all) != 2 || all[0].Name != BuiltIn || standard != "fast" {
		t.Errorf("list %+v, default %s", all, standard)
	}
}

func TestNewHandlersRefuses(t *testing.T) {
	good := func(name string, aliases ...string) Handler {
		return Handler{Name: name, Aliases: aliases, Program: &Program{Name: name, Path: "/x"}}
	}
	for want, all := range map[string][]Handler{
		"are both called a":     {good("a"), good("b", "a")},
		"are both called pausa": {good("pausa")},
		"absolute one":          {{Name: "a", Program: &Program{Name: "a", Path: "x"}}},
		"root":                  {{Name: "a", Program: &Program{Name: "a", Path: "/x", Root: "x"}}},
		"argument is empty":     {{Name: "a", Program: &Program{Name: "a", Path: "/x", Args: []string{""}}}},
		"a name is made":        {{Name: "a/b", Program: &Program{Name: "a/b", Path: "/x"}}},
	} {
		if _, err := NewHandlers("", nil, all...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := NewHandlers("none", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown default: %v", err)
	}
	if !reflect.DeepEqual(ownFeatures(), Features{true, true, true, false}) {
		t.Errorf("of the built-in one on a kernel of today: %+v", ownFeatures())
	}
}
