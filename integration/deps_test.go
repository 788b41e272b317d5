package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/pausa-run/pausa/"

// mayImport says which of our packages each part may import: a folder stands
// for all packages in and below it, and a part may always import itself. The
// longest matching folder decides.
var mayImport = map[string][]string{
	"cmd/pausa":        {"cri", "images", "internal", "network", "pod", "runtime"},
	"cmd/pausa-keeper": {"internal", "runtime/keeper"},
	"cri":              {"images", "internal", "network", "pod", "runtime"},
	"cri/pausav1":      {},
	"images":           {"internal"},
	"internal":         {},
	"network":          {"internal"},
	"pod":              {"images", "internal", "network", "runtime"},
	"pod/manifest":     {"internal"},
	"pod/probe":        {"internal"},
	"runtime":          {"internal"},
	"runtime/keeper":   {"internal", "runtime"},
	"runtime/pause":    {},
	"runtime/restore":  {"runtime"},
	"integration":      {"cmd", "cri", "images", "internal", "network", "pod", "runtime"},
}

// never are imports that no other rule may allow.
var never = map[string][]string{
	"cmd/pausa": {"runtime/keeper", "runtime/pause"},
	"cri":       {"runtime/keeper", "runtime/pause", "network/bridge"},
	"pod":       {"runtime/keeper", "runtime/pause", "network/bridge"},
	"runtime":   {"runtime/keeper"},
	// What strangers have written is not read in the parent of all containers.
	"runtime/keeper": {"runtime/restore"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

// goList runs go list and decodes its JSON.
func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	var pkgs []goPackage
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// within tells if a package is a folder or below it.
func within(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

// part is the longest folder of mayImport that holds the package.
func part(pkg string) string {
	best := ""
	for f := range mayImport {
		if within(pkg, f) && len(f) > len(best) {
			best = f
		}
	}
	return best
}

// allowed tells if from may import to.
func allowed(from, to string) bool {
	p := part(from)
	if slices.ContainsFunc(never[p], func(f string) bool { return within(to, f) && !within(from, f) }) {
		return false
	}
	return within(to, p) || slices.ContainsFunc(mayImport[p], func(f string) bool { return within(to, f) })
}

func TestImportRules(t *testing.T) {
	for _, p := range goList(t, "./...") {
		from := strings.TrimPrefix(p.ImportPath, module)
		if part(from) == "" {
			t.Errorf("%s is in no part of the house: add its folder to the rules", from)
			continue
		}
		for _, i := range p.Imports {
			if to, ours := strings.CutPrefix(i, module); ours && !allowed(from, to) {
				t.Errorf("%s imports %s: %q may import only %v, never %v", from, to, part(from), mayImport[part(from)], never[part(from)])
			}
		}
	}
}

func TestAllowed(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"pod", "runtime", true},
		{"pod", "runtime/keeper", false},
		{"pod", "runtime/restore", true},
		{"pod/reconcile", "network/service", true},
		{"pod/reconcile", "pod/manifest", true},
		{"pod/manifest", "pod", false},
		{"runtime", "pod", false},
		{"runtime", "network", false},
		{"runtime/keeper", "runtime", true},
		{"runtime/keeper", "runtime/pause", true},
		{"network", "images", false},
		{"network", "network/bridge", true},
		{"images", "internal/lock", true},
		{"internal/lock", "images", false},
		{"cmd/pausa", "runtime/keeper", false},
		{"cmd/pausa", "cmd/pausa/internal/config", true},
		{"cmd/pausa-keeper", "runtime/keeper", true},
		{"cmd/pausa-keeper", "pod", false},
	} {
		if got := allowed(c.from, c.to); got != c.want {
			t.Errorf("%s importing %s: allowed %v, want %v", c.from, c.to, got, c.want)
		}
	}
}

// libcontainer puts a C constructor into every program that links it.
func TestLibcontainerOnlyInTheKeeper(t *testing.T) {
	const runc = "github.com/opencontainers/runc"
	for _, p := range goList(t, "-deps", "./cmd/pausa") {
		if within(p.ImportPath, runc) {
			t.Errorf("cmd/pausa links %s", p.ImportPath)
		}
	}
	for _, p := range goList(t, "./...") {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, i := range p.Imports {
			if within(i, runc) && !within(from, "runtime/keeper") && !within(from, "cmd/pausa-keeper") {
				t.Errorf("%s imports %s: only the keeper may", from, i)
			}
		}
	}
}

func TestPausaBuildsWithoutCgo(t *testing.T) {
	cmd := exec.Command("go", "build", "-o", filepath.Join(t.TempDir(), "pausa"), "./cmd/pausa")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
}
