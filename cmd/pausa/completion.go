package main

import (
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cri/pausav1"
)

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "Print a script that completes command lines",
		ArgsUsage: "bash|zsh|fish",
		Description: "Completes commands, flags, kinds and the names of objects.\n\n" +
			"Examples:\n" +
			"  source <(pausa completion bash)\n" +
			"  pausa completion zsh > \"${fpath[1]}/_pausa\"\n" +
			"  pausa completion fish > ~/.config/fish/completions/pausa.fish",
		Action: func(ctx *cli.Context) error {
			script, ok := completionScripts()[ctx.Args().First()]
			if !ok || ctx.NArg() != 1 {
				return badUsage(ctx, "name a shell: bash, zsh or fish")
			}
			_, err := io.WriteString(p.out, script)
			return err
		},
	}
}

// completionScripts all ask `pausa __complete WORD...`, whose last word is the
// one under the cursor.
func completionScripts() map[string]string {
	return map[string]string{
		"bash": `_pausa() {
    local IFS=$'\n'
    local words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    COMPREPLY=($("${COMP_WORDS[0]}" __complete -- "${words[@]}" 2>/dev/null))
    if [ ${#COMPREPLY[@]} -eq 0 ]; then
        COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
    fi
}
complete -F _pausa pausa
`,
		"zsh": `#compdef pausa
_pausa() {
    local -a found
    found=("${(@f)$("${words[1]}" __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then
        compadd -a found
    else
        _files
    fi
}
if [[ "${funcstack[1]}" = "_pausa" ]]; then
    _pausa "$@"
else
    compdef _pausa pausa
fi
`,
		"fish": `function __pausa_complete
    set -l words (commandline -opc)
    $words[1] __complete -- $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c pausa -a '(__pausa_complete)'
`,
	}
}

func (p *program) completeCommand() *cli.Command {
	return &cli.Command{
		Name: "__complete", Hidden: true, SkipFlagParsing: true,
		Usage: "Print what may stand for the last of the words",
		Action: func(ctx *cli.Context) error {
			words := ctx.Args().Slice()
			if len(words) > 0 && words[0] == "--" {
				words = words[1:]
			}
			if len(words) == 0 {
				words = []string{""}
			}
			for _, word := range p.complete(ctx, words) {
				fmt.Fprintln(p.out, word)
			}
			return nil
		},
	}
}

// complete lists what may stand for the last of words, sorted.
func (p *program) complete(ctx *cli.Context, words []string) []string {
	a := arranger{global: ctx.App.Flags, commands: ctx.App.Commands}
	last, rest := words[len(words)-1], words[:len(words)-1]
	var value cli.Flag // whose value the last word is
	for len(rest) > 0 && !a.done {
		value = a.needsValue(rest)
		rest = a.take(rest)
	}
	var known []string
	switch {
	case a.done:
	case value != nil:
		known = p.flagValues(ctx, value)
	case strings.HasPrefix(last, "-"):
		known = flagNames(a.command, ctx.App)
	case a.commands != nil && len(a.plain) == 0:
		for _, c := range a.commands {
			if !c.Hidden {
				known = append(known, c.Name)
			}
		}
	case a.command != nil:
		known = p.argumentsFor(ctx, a.command.HelpName, a.plain)
	}
	known = slices.DeleteFunc(known, func(s string) bool { return !strings.HasPrefix(s, last) })
	sort.Strings(known)
	return slices.Compact(known)
}

// needsValue is the flag whose value comes after the only word left in args.
func (a *arranger) needsValue(args []string) cli.Flag {
	if len(args) != 1 || !strings.HasPrefix(args[0], "-") || strings.Contains(args[0], "=") {
		return nil
	}
	f, _ := a.lookup(strings.TrimLeft(args[0], "-"))
	if _, isBool := f.(*cli.BoolFlag); isBool {
		return nil
	}
	return f
}

func flagNames(command *cli.Command, app *cli.App) []string {
	flags := app.Flags
	if command != nil {
		flags = slices.Concat(command.Flags, app.Flags)
	}
	out := []string{"--help"}
	for _, f := range flags {
		if v, ok := f.(cli.VisibleFlag); ok && v.IsVisible() {
			out = append(out, "--"+f.Names()[0])
		}
	}
	return out
}

func (p *program) flagValues(ctx *cli.Context, f cli.Flag) []string {
	switch f.Names()[0] {
	case "namespace":
		return p.objectNames(ctx, "Namespace")
	case "output":
		return []string{"wide", "yaml", "json", "name"}
	case "restart":
		return []string{"Always", "OnFailure", "Never"}
	case "for":
		return []string{"condition=Ready", "condition=Available", "delete"}
	default:
		return nil // the shell offers files
	}
}

func (p *program) argumentsFor(ctx *cli.Context, command string, before []string) []string {
	switch command {
	case "pausa get", "pausa describe", "pausa delete", "pausa wait":
		if len(before) == 0 {
			return append(allPlurals(), "all")
		}
		if k, err := parseKind(before[0]); err == nil {
			return p.objectNames(ctx, k.name)
		}
	case "pausa logs", "pausa exec", "pausa attach":
		if len(before) == 0 {
			return p.objectNames(ctx, "Pod")
		}
	case "pausa trace":
		if len(before) == 0 {
			return append(p.objectNames(ctx, "Pod"), "host")
		}
		var out []string
		for _, name := range p.objectNames(ctx, "Service") {
			out = append(out, "svc/"+name+":")
		}
		return append(out, p.objectNames(ctx, "Pod")...)
	case "pausa run", "pausa images rm", "pausa images list", "pausa images inspect", "pausa images tag",
		"pausa images export", "pausa images push", "pausa images mount", "pausa images unmount":
		return p.imageRefs(ctx)
	case "pausa completion":
		return []string{"bash", "fish", "zsh"}
	}
	return nil
}

// objectNames are those of every namespace; without a daemon there are none.
func (p *program) objectNames(ctx *cli.Context, kind string) []string {
	c, err := dial(ctx)
	if err != nil {
		return nil
	}
	defer c.close()
	found, err := c.fetch(ctx, &pausav1.GetRequest{Kind: kind})
	if err != nil {
		return nil
	}
	var out []string
	for _, o := range found {
		out = append(out, o.meta.Name)
	}
	return out
}

func (p *program) imageRefs(ctx *cli.Context) []string {
	c, err := dial(ctx)
	if err != nil {
		return nil
	}
	defer c.close()
	found, err := c.findImages(ctx, nil)
	if err != nil {
		return nil
	}
	var out []string
	for _, i := range found {
		out = append(out, imageNames(i)...)
	}
	return out
}
