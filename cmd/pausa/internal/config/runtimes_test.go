package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestRuntimes(t *testing.T) {
	c, values, file, err := load(t, `
[runtimes]
default = "crun"
[runtimes.pausa]
aliases = ["test-handler"]
[runtimes.crun]
path = "/usr/bin/crun"
aliases = ["fast", "small"]
[runtimes.gvisor]
path = "/usr/bin/runsc"
root = "/run/gvisor"
args = ["--network=host", "--debug"]
[cdi]
spec_dirs = ["/a"]
`, map[string]string{"PAUSA_RUNTIMES_CRUN_PATH": "/from/env"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Runtimes{Default: "crun", Aliases: []string{"test-handler"}, Handlers: []Runtime{
		{Name: "crun", Path: "/usr/bin/crun", Aliases: []string{"fast", "small"}},
		{Name: "gvisor", Path: "/usr/bin/runsc", Root: "/run/gvisor", Args: []string{"--network=host", "--debug"}},
	}}
	if !reflect.DeepEqual(c.Runtimes, want) || len(c.CDIDirs) != 1 {
		t.Errorf("got %+v and CDI specs in %q", c.Runtimes, c.CDIDirs)
	}
	if v := values["runtimes.crun.path"]; v.Value != "/usr/bin/crun" || v.Source != file+":7" {
		t.Errorf("path: %+v", v)
	}
}

func TestRuntimeErrors(t *testing.T) {
	for text, want := range map[string]string{
		"[runtimes.crun]\npth = \"/c\"\n":                       ":2: unknown setting runtimes.crun.pth: did you mean runtimes.crun.path?",
		"[runtimes.crun]\naliases = [\"x\"]\n":                  "runtimes.crun.path = \"\": is missing",
		"[runtimes.crun]\npath = \"crun\"\n":                    ":2: runtimes.crun.path = \"crun\": is not an absolute path",
		"[runtimes.CRUN]\npath = \"/crun\"\n":                   "is not a handler's name",
		"[runtimes.crun]\npath = \"/c\"\naliases = [\"a_b\"]\n": "a_b: is not a handler's name",
		"[runtimes.crun]\npath = \"/c\"\nargs = [\"a,b\"]\n":    "no text of a list may have a comma",
		"[runtimes]\ndefault = \"A\"\n":                         "is not a handler's name",
		"[runtimes.pausa]\npath = \"/x\"\n":                     "unknown setting runtimes.pausa.path",
		"[runtimes]\ncrun = \"/usr/bin/crun\"\n":                ":2: unknown setting runtimes.crun",
		"[runtimes.crun]\npath = \"/c\"\nroot = \"c\"\n":        "is not an absolute path",
		"[cdi]\nspec_dirs = [\"cdi\"]\n":                        "is not an absolute path",
	} {
		if _, _, _, err := load(t, text, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
