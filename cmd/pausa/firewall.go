package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/internal/nft"
	"github.com/pausa-run/pausa/internal/thread"
)

func (p *program) firewallCommand() *cli.Command {
	return &cli.Command{
		Name:  "firewall",
		Usage: "Print the rules of Services, host ports and masquerading",
		Description: "The text is what 'nft -f' reads: it makes the tables of Pausa, or replaces them, and touches no others.\n" +
			"With network.firewall = \"print\" the daemon does not write the rules itself: load them after each change,\n" +
			"or carry them over into your own. Needs the program nft, and root.\n\n" +
			"Examples:\n" +
			"  pausa firewall\n" +
			"  pausa firewall | nft -f -",
		Flags:  []cli.Flag{configFlag(), &cli.StringFlag{Name: "run", Usage: "`FOLDER` of the daemon, if it was given one"}},
		Action: p.firewall,
	}
}

func (p *program) firewall(ctx *cli.Context) error {
	if ctx.Args().Present() {
		return badUsage(ctx, "unexpected argument %q", ctx.Args().First())
	}
	c, _, err := p.settings(ctx)
	if err != nil {
		return err
	}
	nftPath, err := exec.LookPath("nft")
	if err != nil {
		return errors.New("the program nft prints the rules and is not here: install nftables")
	}
	for _, family := range []string{"inet", "bridge"} {
		table := family + " " + nft.TableName
		out, err := listTable(ctx, c, nftPath, family)
		if err != nil {
			return err
		}
		if len(out) > 0 {
			// A table that is deleted must be there.
			fmt.Fprintf(p.out, "table %s\ndelete table %s\n%s", table, table, loadable(string(out)))
		}
	}
	return nil
}

// listTable prints a table without its counters; nothing if it is not there.
func listTable(ctx *cli.Context, c *config.Config, nftPath, family string) (out []byte, err error) {
	// Names are looked for first: a table that is not there is no error.
	list := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx.Context, nftPath, args...)
		cmd.Stderr = os.Stderr
		return cmd.Output()
	}
	run := func() error {
		names, err := list("list", "tables", family)
		if err != nil || !containsLine(names, "table "+family+" "+nft.TableName) {
			return err
		}
		out, err = list("--stateless", "list", "table", family, nft.TableName)
		return err
	}
	if isNetNS(rulesNSPath(c.Run)) {
		err = inRulesNS(c.Run, run)
	} else {
		err = run()
	}
	if err != nil {
		return nil, fmt.Errorf("print the rules: %w", err)
	}
	return out, nil
}

// loadable is a listing that nft reads, too: it does not know the slots of
// endpoints again, random numbers, by the name of a type.
func loadable(listing string) string {
	text := strings.NewReplacer(
		"type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service",
		"typeof ip daddr . meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport",
		"type ipv6_addr . inet_proto . inet_service . mark : ipv6_addr . inet_service",
		"typeof ip6 daddr . meta l4proto . th dport . numgen random mod 2 : ip6 daddr . th dport",
		"type inet_proto . inet_service . mark : ipv4_addr . inet_service",
		"typeof meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport",
		"type inet_proto . inet_service . mark : ipv6_addr . inet_service",
		"typeof meta l4proto . th dport . numgen random mod 2 : ip6 daddr . th dport",
	).Replace(listing)
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, "@th,64,128") {
			// The address that a neighbour advertisement is about.
			line = "\t\t# nft has no words for this one, which the daemon writes with network.firewall = \"kernel\":\n\t\t# " + strings.TrimLeft(line, "\t")
		}
		b.WriteString(line)
	}
	return b.String()
}

func containsLine(text []byte, line string) bool {
	for l := range strings.Lines(string(text)) {
		if strings.TrimSpace(l) == line {
			return true
		}
	}
	return false
}

// rulesNamespace is where the daemon writes its rules; "": where it is itself.
func rulesNamespace(c *config.Config, log *slog.Logger) (string, error) {
	if c.Firewall != "print" {
		return "", removeRulesNS(c.Run)
	}
	log.Warn("rules are not written but left to somebody else: see 'pausa firewall'")
	return makeRulesNS(c.Run)
}

// rulesNSPath pins a network namespace that holds rules and nothing else.
func rulesNSPath(run string) string { return filepath.Join(run, "firewall.netns") }

// makeRulesNS makes the namespace, or takes that of an earlier run.
func makeRulesNS(run string) (string, error) {
	path := rulesNSPath(run)
	if isNetNS(path) {
		return path, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return "", fmt.Errorf("make a namespace for rules: %w", err)
	}
	if err := f.Close(); err != nil {
		return "", fmt.Errorf("make a namespace for rules: %w", err)
	}
	err = thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return "", fmt.Errorf("make a namespace for rules: %w", err)
	}
	return path, nil
}

// removeRulesNS gives the namespace of an earlier run back, if there is one.
func removeRulesNS(run string) error {
	path := rulesNSPath(run)
	if isNetNS(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("remove the namespace for rules: %w", err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the namespace for rules: %w", err)
	}
	return nil
}

func isNetNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// inRulesNS runs f, and what it starts, in the namespace.
func inRulesNS(run string, f func() error) error {
	return thread.InNetNSAt(rulesNSPath(run), f)
}
