package apparmor

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// host is a made-up host: what its kernel says, and a parser with an exit status, "" for none.
func host(t *testing.T, enabled, loaded, parser string) *Host {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	h := &Host{enabled: write("enabled", enabled, 0o600), profiles: write("profiles", loaded, 0o600)}
	if parser != "" {
		h.parsers = []string{write("parser", "#!/bin/sh\ncat > "+dir+"/policy\necho wrong\nexit "+parser+"\n", 0o700)}
	}
	h.load(t.Context())
	return h
}

func TestResolve(t *testing.T) {
	const own, both = "mine (enforce)\n", "mine (enforce)\npausa-default (enforce)\n"
	for name, c := range map[string]struct {
		host       *Host
		want, have string
		err        error
	}{
		"default":                {host(t, "Y\n", both, "0"), RuntimeDefault, Profile, nil},
		"nothing asked":          {host(t, "Y\n", both, "0"), "", Profile, nil},
		"own":                    {host(t, "Y\n", both, "0"), "localhost/mine", "mine", nil},
		"prefix of a loaded one": {host(t, "Y\n", both, "0"), "localhost/min", "", ErrNotLoaded},
		"missing":                {host(t, "Y\n", both, "0"), "localhost/other", "", ErrNotLoaded},
		"unconfined":             {host(t, "Y\n", both, "0"), Unconfined, Unconfined, nil},
		"no parser, but loaded":  {host(t, "Y\n", both, ""), RuntimeDefault, Profile, nil},
		"no parser":              {host(t, "Y\n", own, ""), RuntimeDefault, "", ErrNotLoaded},
		"no parser, not asked":   {host(t, "Y\n", own, ""), "", "", nil},
		"no parser, own":         {host(t, "Y\n", own, ""), "localhost/mine", "mine", nil},
		"parser fails":           {host(t, "Y\n", own, "1"), RuntimeDefault, "", ErrNotLoaded},
		"off":                    {host(t, "N\n", "", "0"), RuntimeDefault, "", nil},
		"off, unconfined":        {host(t, "N\n", "", "0"), Unconfined, "", nil},
		"off, own":               {host(t, "N\n", "", "0"), "localhost/mine", "", ErrOff},
	} {
		have, err := c.host.Resolve(c.want)
		if have != c.have || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s: %q, %v; want %q, %v", name, have, err, c.have, c.err)
		}
	}
}

func TestState(t *testing.T) {
	for _, c := range []struct{ enabled, parser, want string }{
		{"Y\n", "0", "on"},
		{"N\n", "0", "off"},
		{"Y\n", "", "apparmor_parser is missing: install"},
		{"Y\n", "1", "wrong"},
	} {
		h := host(t, c.enabled, "", c.parser)
		if got := h.State(); !strings.Contains(got, c.want) {
			t.Errorf("enabled %q, parser %q: %q, want %q", c.enabled, c.parser, got, c.want)
		}
		if broken := len(c.want) > 3; broken != (h.Problem() != nil) {
			t.Errorf("enabled %q, parser %q: problem %v", c.enabled, c.parser, h.Problem())
		}
	}
}

// A host's own parser must take the profile; without one, the VM's tests do this.
func TestProfileCompiles(t *testing.T) {
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Skip("apparmor_parser is not installed here; tests in the VM load the profile")
	}
	cmd := exec.Command(parser, "--skip-kernel-load", "--skip-cache")
	cmd.Stdin = strings.NewReader(profile)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
