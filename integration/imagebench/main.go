// Command imagebench measures how long a runtime takes to pull and to import an
// image of ten layers, made from Debian packages, and how much memory its daemon
// takes for that: Pausa's, and, with the -peer flags, another one's in turn with
// it. Each measurement has a daemon, a registry and folders of its own, on a host
// made of namespaces. Only figures of one run can be compared.
//
//	imagebench -peer containerd -peer-daemon containerd \
//	  -peer-serve 'exec containerd --root $DIR/root --state $RUN/state --address $RUN/c.sock' \
//	  -peer-ready 'ctr -a $RUN/c.sock images list' \
//	  -peer-pull 'ctr -a $RUN/c.sock images pull --plain-http $REF' \
//	  -peer-import 'ctr -a $RUN/c.sock images import $ARCHIVE'
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/pausa-run/pausa/integration/host"
)

type options struct {
	image, only, json string
	rounds, at        int
	rate              int64
	registry          string
	pausa, peer       runtime
}

func main() {
	host.Main()
	o := options{pausa: runtime{Name: "pausa", daemon: "pausa"}}
	flag.StringVar(&o.pausa.bin, "bin", "bin", "`folder` of the built programs")
	flag.StringVar(&o.image, "image", filepath.Join(cacheDir(), "imagebench"), "`folder` of the image; made from Debian packages when it is not there")
	flag.IntVar(&o.rounds, "rounds", 3, "measurements of each kind")
	flag.IntVar(&o.at, "at-once", 10, "pulls of the same image at once, in the measurement of that")
	flag.Int64Var(&o.rate, "rate", 0, "`bytes` a second that the registry sends on one connection; 0 is as fast as it can")
	flag.StringVar(&o.only, "only", "pull,pulls,import", "`kinds` of measurements")
	flag.StringVar(&o.json, "json", "", "`file` that gets all figures")
	flag.StringVar(&o.peer.Name, "peer", "", "`name` of another runtime that is measured, too")
	flag.StringVar(&o.peer.daemon, "peer-daemon", "", "`name` of its daemon's process, for its memory")
	flag.StringVar(&o.peer.serve, "peer-serve", "", "shell `command` that is its daemon; $DIR and $RUN are empty folders")
	flag.StringVar(&o.peer.ready, "peer-ready", "", "shell `command` that succeeds when its daemon answers")
	flag.StringVar(&o.peer.pull, "peer-pull", "", "shell `command` that pulls $REF from a registry without TLS")
	flag.StringVar(&o.peer.load, "peer-import", "", "shell `command` that imports $ARCHIVE")
	flag.StringVar(&o.registry, "serve-registry", "", "be the registry, with this control `socket`; used by the program itself")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "imagebench:", err)
		os.Exit(1)
	}
}

func cacheDir() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "pausa")
}

func run(ctx context.Context, o options) error {
	dir, err := filepath.Abs(o.image)
	if err != nil {
		return fmt.Errorf("find %s: %w", o.image, err)
	}
	l, err := openLayout(ctx, dir)
	if err != nil {
		return err
	}
	if o.registry != "" {
		return serveRegistry(l, o.rate, o.registry)
	}
	bin, err := filepath.Abs(o.pausa.bin)
	if err != nil {
		return fmt.Errorf("find %s: %w", o.pausa.bin, err)
	}
	o.pausa.fill(bin)
	runtimes := []runtime{o.pausa}
	if o.peer.Name != "" {
		o.peer.bin = bin
		runtimes = append(runtimes, o.peer)
	}
	fmt.Printf("image of %.0f MB in %d layers, %d rounds\n", float64(l.bytes)/1e6, strings.Count(strings.TrimSpace(packages), "\n")+1, o.rounds)
	all := &figures{}
	for _, k := range strings.Split(o.only, ",") {
		if !slices.Contains([]string{kindPull, kindPulls, kindImport}, k) {
			return fmt.Errorf("-only has no kind %q: write pull, pulls, import", k)
		}
		for round := range o.rounds {
			for i := range runtimes { // turn about, so that a slow minute hits all
				r := runtimes[(i+round)%len(runtimes)]
				m, err := measure(ctx, &r, l, o, k)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", r.Name, k, err)
				}
				all.add(m)
			}
		}
	}
	all.print(os.Stdout)
	return all.save(o.json)
}
