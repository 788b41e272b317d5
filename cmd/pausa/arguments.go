package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/internal/nearest"
)

// usageError says that the command line itself is wrong.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// badUsage makes a usageError of the command that ctx is about.
func badUsage(ctx *cli.Context, format string, args ...any) error {
	name := "pausa"
	if ctx.Command != nil && ctx.Command.HelpName != "" {
		name = ctx.Command.HelpName
	}
	return &usageError{name, fmt.Errorf(format, args...)}
}

// usage turns an error of the flag parser into ours, with the nearest flag.
func usage(ctx *cli.Context, err error, _ bool) error {
	flag, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !unknown {
		return badUsage(ctx, "%w", err)
	}
	var known []string
	for _, f := range slices.Concat(ctx.Command.Flags, ctx.App.Flags) {
		known = append(known, f.Names()...)
	}
	flag = strings.TrimLeft(flag, "-")
	if near := nearest.Word(flag, known); near != "" {
		return badUsage(ctx, "unknown flag %s: did you mean %s?", dashed(flag), dashed(near))
	}
	if takesCommand(ctx.Command.Name) > 0 {
		return badUsage(ctx, "unknown flag %s: if it belongs to the command in the container, put -- before that", dashed(flag))
	}
	return badUsage(ctx, "unknown flag %s", dashed(flag))
}

func dashed(flag string) string {
	if len(flag) == 1 {
		return "-" + flag
	}
	return "--" + flag
}

// group is the action of a command that only has subcommands.
func group(ctx *cli.Context) error {
	commands := ctx.App.Commands
	if ctx.Command != nil && len(ctx.Command.Subcommands) > 0 {
		commands = ctx.Command.Subcommands
	}
	if !ctx.Args().Present() {
		return cli.ShowSubcommandHelp(ctx)
	}
	var names []string
	for _, c := range commands {
		names = append(names, c.Names()...)
	}
	word := ctx.Args().First()
	if near := nearest.Word(word, names); near != "" {
		return badUsage(ctx, "unknown command %q: did you mean %q?", word, near)
	}
	return badUsage(ctx, "unknown command %q", word)
}

// takesCommand tells how many plain words a command reads before everything
// else belongs to the command line of a container; 0: it takes none.
func takesCommand(name string) int {
	if name == "exec" || name == "run" {
		return 2
	}
	return 0
}

// arrange puts flags before arguments, as the flag parser wants them, so that
// they may be written anywhere before "--". Combined short flags are taken
// apart (-it), and values may be glued on (-ojson). Global flags may follow the
// command.
func arrange(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	a := arranger{global: app.Flags, commands: app.Commands}
	rest := args[1:]
	for len(rest) > 0 && !a.done {
		rest = a.take(rest)
	}
	out := slices.Concat(args[:1], a.globals, a.words)
	if len(a.plain)+len(rest) > 0 {
		out = append(out, "--")
	}
	return slices.Concat(out, a.plain, rest)
}

type arranger struct {
	global   []cli.Flag
	commands []*cli.Command // that may come next
	command  *cli.Command   // the one found last
	globals  []string       // global flags
	words    []string       // commands and their flags
	plain    []string       // arguments
	done     bool           // the rest is arguments
}

// take handles the first of args and returns what is left.
func (a *arranger) take(args []string) []string {
	word, rest := args[0], args[1:]
	switch {
	case word == "--":
		a.done = true
	case strings.HasPrefix(word, "-") && len(word) > 1:
		return a.flag(word, rest)
	default:
		for _, c := range a.commands {
			if c.HasName(word) && len(a.plain) == 0 {
				a.command, a.commands = c, c.Subcommands
				a.words = append(a.words, word)
				return rest
			}
		}
		a.plain = append(a.plain, word)
		a.done = a.command != nil && len(a.plain) == takesCommand(a.command.Name)
	}
	return rest
}

// flag handles one word that begins with a dash, and its value.
func (a *arranger) flag(word string, rest []string) []string {
	name, _, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
	known, global := a.lookup(name)
	if known == nil {
		if parts, ok := a.split(word); ok {
			return append(parts, rest...)
		}
		a.words = append(a.words, word) // the parser complains
		return rest
	}
	out := &a.words
	if global {
		out = &a.globals
	}
	*out = append(*out, word)
	if _, isBool := known.(*cli.BoolFlag); !isBool && !hasValue && len(rest) > 0 {
		*out = append(*out, rest[0])
		return rest[1:]
	}
	return rest
}

// split takes combined short flags apart.
func (a *arranger) split(word string) ([]string, bool) {
	if strings.HasPrefix(word, "--") {
		return nil, false
	}
	var out []string
	for i := 1; i < len(word); i++ {
		known, _ := a.lookup(word[i : i+1])
		switch known.(type) {
		case nil:
			return nil, false
		case *cli.BoolFlag:
			out = append(out, "-"+word[i:i+1])
		default:
			if i+1 < len(word) {
				return append(out, "-"+word[i:i+1]+"="+strings.TrimPrefix(word[i+1:], "=")), true
			}
			out = append(out, "-"+word[i:i+1])
		}
	}
	return out, true
}

func (a *arranger) lookup(name string) (flag cli.Flag, global bool) {
	if a.command != nil {
		for _, f := range a.command.Flags {
			if slices.Contains(f.Names(), name) {
				return f, false
			}
		}
	}
	for _, f := range a.global {
		if slices.Contains(f.Names(), name) {
			return f, true
		}
	}
	return nil, false
}

// first gives ctx's error when it has ended, else err: what was cut short by
// the user is not that command's fault.
func first(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.DeadlineExceeded) {
		return ctx.Err()
	}
	return err
}
