package config

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// builtIn is the handler whose containers the keeper makes itself.
const builtIn = "pausa"

// Runtimes are the runtime handlers that pods may ask for.
type Runtimes struct {
	Default string // for pods that name none; "" is the built-in one
	Aliases []string
	// Handlers are OCI runtimes, by name, in the order of their names.
	Handlers []Runtime
}

// Runtime is the program of one handler.
type Runtime struct {
	Name    string
	Path    string
	Aliases []string
	Root    string // "": a folder of the keeper's
	Args    []string
}

func handlerSettings() []setting {
	return []setting{
		{
			key: "runtimes.default", shape: text, initial: "",
			doc: "Runtime handler of pods that name none; empty is the built-in one, which is called pausa.",
			set: func(c *Config, v string) error { return setHandlerName(&c.Runtimes.Default, v) },
		},
		{
			key: "cdi.spec_dirs", shape: list, initial: "/etc/cdi,/var/run/cdi",
			doc: "Folders of the specs of CDI devices; those of a later one count first.",
			set: func(c *Config, v string) error {
				c.CDIDirs = splitList(v)
				for _, dir := range c.CDIDirs {
					if err := setPath(new(string), dir); err != nil {
						return err
					}
				}
				return nil
			},
		},
	}
}

// runtimeExample ends the default file: what it shows is no default.
const runtimeExample = `
# Each further OCI runtime is a table of its own, as these would be. Without
# root its state is in a folder of the keeper's; args come before each command.
# [runtimes.crun]
# path = "/usr/bin/crun"
# aliases = ["test-handler"]
# [runtimes.gvisor]
# path = "/usr/bin/runsc"
# args = ["--network=host"]
# root = "/run/gvisor"
`

// runtimeSettings are those of the handlers that a file names, as tables of
// runtimes. No environment variable sets them.
func runtimeSettings(tree map[string]any) []setting {
	section, _ := tree["runtimes"].(map[string]any)
	var out []setting
	for _, name := range slices.Sorted(maps.Keys(section)) {
		if _, table := section[name].(map[string]any); table {
			out = append(out, runtimeOf(name)...)
		}
	}
	return out
}

func runtimeOf(name string) []setting {
	key := "runtimes." + name + "."
	set := func(change func(r *Runtime, v string) error) func(*Config, string) error {
		return func(c *Config, v string) error {
			all := &c.Runtimes.Handlers
			if n := len(*all); n == 0 || (*all)[n-1].Name != name {
				*all = append(*all, Runtime{Name: name})
			}
			return change(&(*all)[len(*all)-1], v)
		}
	}
	if name == builtIn {
		return []setting{{key: key + "aliases", shape: list, set: func(c *Config, v string) error { return setHandlerNames(&c.Runtimes.Aliases, v) }}}
	}
	return []setting{
		{key: key + "path", shape: text, set: set(func(r *Runtime, v string) error {
			if err := setHandlerName(new(string), name); err != nil {
				return err
			}
			if v == "" {
				return errors.New("is missing: name the runtime's program")
			}
			return setPath(&r.Path, v)
		})},
		{key: key + "aliases", shape: list, set: set(func(r *Runtime, v string) error { return setHandlerNames(&r.Aliases, v) })},
		{key: key + "root", shape: text, set: set(func(r *Runtime, v string) error {
			if v == "" {
				return nil
			}
			return setPath(&r.Root, v)
		})},
		{key: key + "args", shape: list, set: set(func(r *Runtime, v string) error { r.Args = splitList(v); return nil })},
	}
}

func setHandlerNames(to *[]string, v string) error {
	*to = splitList(v)
	for _, name := range *to {
		if err := setHandlerName(new(string), name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// setHandlerName takes what Kubernetes lets a RuntimeClass name.
func setHandlerName(to *string, v string) error {
	if v != "" && (len(v) > 63 || !regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`).MatchString(v)) {
		return errors.New("is not a handler's name: lower-case letters, digits and dashes, at most 63")
	}
	*to = strings.TrimSpace(v)
	return nil
}
