package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime/wire"
)

// LaunchOptions say which keeper to start.
type LaunchOptions struct {
	Binary  string // path of pausa-keeper
	RunDir  string
	LogFile string // "" throws the keeper's log away
	Log     *slog.Logger
	// Hold, if set, keeps the containers' files beyond a keeper's death, and gives them to the next one.
	Hold *Holder
}

// Launch connects to the keeper of RunDir, and starts it when none answers. The
// keeper is in a session of its own and outlives the caller.
func Launch(ctx context.Context, o LaunchOptions) (*Client, error) {
	client, err := connectOrStart(ctx, o)
	if err == nil && o.Hold != nil {
		if err = o.Hold.follow(client); err != nil {
			err = errors.Join(err, client.Close())
		}
	}
	if err != nil {
		return nil, err
	}
	return client, nil
}

// heldPatience bounds the wait for a keeper that has the lock and does not answer:
// one that an earlier daemon has just started, or one that is about to end.
const heldPatience = 10 * time.Second

func connectOrStart(ctx context.Context, o LaunchOptions) (*Client, error) {
	for end := time.Now().Add(heldPatience); ; {
		client, err := Connect(ctx, SocketPath(o.RunDir))
		if !errors.Is(err, ErrKeeperGone) {
			return client, err
		}
		switch err = start(ctx, o); {
		case err == nil:
			if o.Log != nil {
				o.Log.Info("started keeper", "binary", o.Binary, "run", o.RunDir)
			}
			return Connect(ctx, SocketPath(o.RunDir))
		case !errors.Is(err, ErrKeeperHeld) || time.Now().After(end):
			return nil, fmt.Errorf("start keeper: %w", err)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("start keeper: %w", ctx.Err())
		}
	}
}

func start(ctx context.Context, o LaunchOptions) error {
	if st, err := os.Stat(o.Binary); err != nil || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not a program: build it with `make build`, or name another one: %w", o.Binary, errors.Join(err, unix.EACCES))
	}
	if err := os.MkdirAll(o.RunDir, 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make ready pipe: %w", err)
	}
	defer ready.Close()
	args := []string{"-run", o.RunDir, "-ready-fd", "3"}
	if o.LogFile != "" {
		args = append(args, "-log", o.LogFile)
	}
	cmd := exec.Command(o.Binary, args...)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	defer theirs.Close()
	passOn := func() {}
	if o.Hold != nil {
		held, send, err := o.Hold.passOn()
		if err != nil {
			return err
		}
		passOn = send
		cmd.ExtraFiles = append(cmd.ExtraFiles, held)
		cmd.Args = append(cmd.Args, "-held-fd", "4")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	wire.CloseAll(cmd.ExtraFiles) // or the ends of the pipe and the socket would not be seen
	go passOn()                   // with nobody to take it, it ends at once
	if err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // it must not stay a zombie if it ends before us
	return readReady(ctx, ready)
}

// readReady waits for "ok"; anything else is the keeper's error.
func readReady(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.Close() })
	defer stop()
	said, err := io.ReadAll(ready)
	switch text := strings.TrimSpace(string(said)); {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	case text == "ok":
		return nil
	case text == "":
		return errors.New("it ended before it was ready")
	case strings.HasPrefix(text, ErrKeeperHeld.Error()):
		return fmt.Errorf("%w%s", ErrKeeperHeld, strings.TrimPrefix(text, ErrKeeperHeld.Error()))
	default:
		return errors.New(text)
	}
}
