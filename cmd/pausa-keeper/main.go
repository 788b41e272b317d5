//go:build cgo

// Command pausa-keeper is the parent of a node's pauses and containers. The
// daemon starts it; it outlives the daemon. Containers' inits are this program,
// too: libcontainer runs it with the argument "init".
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	goruntime "runtime"
	"strings"

	_ "github.com/opencontainers/cgroups/devices" // or no device rule can be set
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // a C constructor that makes namespaces for inits
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/starter"
	"github.com/pausa-run/pausa/runtime/keeper"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "dev"

// init is the entry of a container's init. For the keeper itself it keeps the
// main thread to the main goroutine: libcontainer leaves threads behind in
// containers' namespaces, and /proc/self would be wrong for good if it were this one.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
	goruntime.LockOSThread()
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "pausa-keeper:", err)
		os.Exit(1)
	}
}

type options struct {
	run, log string
	readyFD  int
	heldFD   int
	version  bool
}

func parse() options {
	var o options
	flag.StringVar(&o.run, "run", "/run/pausa", "run directory of the daemon; the keeper uses the folder keeper in it")
	flag.StringVar(&o.log, "log", "", "file to append the log to (default: standard error)")
	flag.IntVar(&o.readyFD, "ready-fd", 0, "descriptor to write \"ok\" or an error to, once it is known")
	flag.IntVar(&o.heldFD, "held-fd", 0, "socket that gives what was held for the containers of an earlier keeper")
	flag.BoolVar(&o.version, "version", false, "print the version and exit")
	flag.Parse()
	return o
}

func run() (err error) {
	if len(os.Args) > 1 && os.Args[1] == keeper.CompileCommand {
		return keeper.CompileFilter(os.Stdin)
	}
	o := parse()
	if o.version {
		fmt.Println("pausa-keeper", version, keeper.BuildID())
		return nil
	}
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: only flags are taken, see -help", flag.Arg(0))
	}
	starter.Forget(o.readyFD, o.heldFD)
	defer func() { tellReady(o.readyFD, err) }()
	logs, err := openLog(o.log)
	if err != nil {
		return err
	}
	var held keeper.Held
	if o.heldFD > 2 {
		if held, err = keeper.ReceiveHeld(o.heldFD); err != nil {
			return err
		}
	}
	k, err := keeper.Open(keeper.Options{
		RunDir: o.run, Version: version, BuildID: keeper.BuildID(),
		Log: slog.New(slog.NewTextHandler(logs, nil)), Held: held,
	})
	if err != nil {
		return err
	}
	listener, err := k.Listen()
	if err != nil {
		return err
	}
	tellReady(o.readyFD, nil)
	o.readyFD = 0
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	// Caught, not ignored: containers would inherit that, and their shells could not trap it.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	return k.Serve(ctx, listener)
}

func openLog(path string) (io.Writer, error) {
	if path == "" {
		return os.Stderr, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

func tellReady(fd int, err error) {
	if fd <= 2 {
		return
	}
	text := "ok"
	if err != nil {
		text = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	f := os.NewFile(uintptr(fd), "ready")
	_, _ = f.WriteString(text)
	_ = f.Close()
}
