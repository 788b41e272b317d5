// Command servicebench measures what Services cost when there are many: loading
// all of them, changing one, connecting through one, and memory. It measures the
// table in the kernel alone, the whole daemon, and with -kube-proxy the same of
// that program (in front of an API server that serves nothing else), side by side.
// All of it happens in network namespaces made for it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/pausa-run/pausa/integration/host"
)

type options struct {
	bin, proxy, modes, subject string
	services, endpoints        int
	rounds, connects           int
	timeout                    time.Duration
}

// figures are what one subject costs; times in seconds, zero where it does not apply.
type figures struct {
	Subject        string
	Load           float64 // until all can be reached, or are written
	LoadMany       float64 // the same for 100,000 endpoints
	AddOne         float64 // median until it can be reached, or is written
	RemoveOne      float64
	ChangeEndpoint float64
	ChangeTyped    float64 // the same with the start of a command line
	Direct         float64 // median connect to the endpoint itself
	ConnectFew     float64 // through one of ten Services
	ConnectAll     float64 // through the last of all
	KernelMB       float64 // of the loaded rules
	RSSMB          float64 // of the program that keeps them
}

func main() {
	host.Main()
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "`folder` of pausa and pausa-keeper; empty leaves the daemon out")
	flag.StringVar(&o.proxy, "kube-proxy", "", "`path` of kube-proxy, to be measured as well")
	flag.StringVar(&o.modes, "modes", "nftables,iptables", "`modes` of kube-proxy, separated by commas")
	flag.StringVar(&o.subject, "subject", "", "measure this one alone, in the namespaces of this process: table, kube-proxy:MODE")
	flag.IntVar(&o.services, "services", 10000, "Services")
	flag.IntVar(&o.endpoints, "endpoints", 4, "endpoints of each")
	flag.IntVar(&o.rounds, "rounds", 30, "changes of each kind")
	flag.IntVar(&o.connects, "connects", 2000, "connects of each kind")
	flag.DurationVar(&o.timeout, "timeout", 5*time.Minute, "limit for each subject")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "servicebench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.subject != "" {
		f, err := measure(ctx, o)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(f)
	}
	subjects := []string{"table"}
	if o.bin != "" {
		subjects = append(subjects, "daemon")
	}
	if o.proxy != "" {
		for mode := range strings.SplitSeq(o.modes, ",") {
			subjects = append(subjects, "kube-proxy:"+mode)
		}
	}
	var all []figures
	var errs []error
	for _, s := range subjects {
		fmt.Fprintln(os.Stderr, "measuring", s)
		one := inNamespaces
		if s == "daemon" {
			one = func(_ context.Context, o options) (figures, error) { return daemon(o) }
		}
		o.subject = s
		f, err := one(ctx, o)
		if err != nil { // the others are worth something without it
			errs = append(errs, fmt.Errorf("measure %s: %w", s, err))
			continue
		}
		all = append(all, f)
	}
	fmt.Print(report(o, all))
	return errors.Join(errs...)
}

// inNamespaces measures one subject in a process of its own.
func inNamespaces(ctx context.Context, o options) (figures, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-subject", o.subject, "-kube-proxy", o.proxy,
		"-services", fmt.Sprint(o.services), "-endpoints", fmt.Sprint(o.endpoints),
		"-rounds", fmt.Sprint(o.rounds), "-connects", fmt.Sprint(o.connects))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		return figures{}, err
	}
	var f figures
	return f, json.Unmarshal(out, &f)
}

func measure(ctx context.Context, o options) (f figures, err error) {
	m, err := newKernelMemory()
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	if o.subject == "table" {
		return table(ctx, o, m)
	}
	mode, ok := strings.CutPrefix(o.subject, "kube-proxy:")
	if !ok {
		return f, fmt.Errorf("subject %q is unknown", o.subject)
	}
	return kubeProxy(ctx, o, mode, m)
}

// report is a table in Markdown.
func report(o options, all []figures) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d Services with %d endpoints each\n\n|", o.services, o.endpoints)
	for _, f := range all {
		b.WriteString(" | " + f.Subject)
	}
	b.WriteString(" |\n|---" + strings.Repeat("|---", len(all)) + "|\n")
	row := func(name, unit string, scale float64, of func(figures) float64) {
		b.WriteString("| " + name)
		for _, f := range all {
			if v := of(f); v != 0 {
				fmt.Fprintf(&b, " | %.3g %s", v*scale, unit)
			} else {
				b.WriteString(" | ")
			}
		}
		b.WriteString(" |\n")
	}
	row("load all", "s", 1, func(f figures) float64 { return f.Load })
	row("load 100,000 endpoints", "s", 1, func(f figures) float64 { return f.LoadMany })
	row("add one", "ms", 1e3, func(f figures) float64 { return f.AddOne })
	row("remove one", "ms", 1e3, func(f figures) float64 { return f.RemoveOne })
	row("change one endpoint", "ms", 1e3, func(f figures) float64 { return f.ChangeEndpoint })
	row("the same, by the command line", "ms", 1e3, func(f figures) float64 { return f.ChangeTyped })
	row("connect, direct", "µs", 1e6, func(f figures) float64 { return f.Direct })
	row("connect, 10 Services", "µs", 1e6, func(f figures) float64 { return f.ConnectFew })
	row("connect, all Services", "µs", 1e6, func(f figures) float64 { return f.ConnectAll })
	row("kernel memory", "MB", 1, func(f figures) float64 { return f.KernelMB })
	row("memory of the program", "MB", 1, func(f figures) float64 { return f.RSSMB })
	return b.String()
}
