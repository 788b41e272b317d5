//go:build cgo

package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// newHoldingHost is a host whose test holds what a daemon does.
func newHoldingHost(t *testing.T) *host {
	h := newHost(t)
	h.holder = runtime.NewHolder()
	t.Cleanup(h.holder.Close)
	h.launch()
	return h
}

// startHeld starts a container and waits until its files are held.
func (h *host) startHeld(id string) runtime.ContainerState {
	h.t.Helper()
	state := h.start(id)
	h.eventually("files are held", func() bool { return h.holder.Holds(id) })
	return state
}

// signpost is a file that test and container both see.
func (h *host) signpost(id string) (make func(), wait string) {
	name := filepath.Join(built.rootfs, "tmp", id)
	h.t.Cleanup(func() { _ = os.Remove(name) })
	return func() {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			h.t.Fatal(err)
		}
	}, fmt.Sprintf("until [ -e /tmp/%s ]; do sleep 0.01; done; ", id)
}

func TestTerminalOutlivesTheKeeper(t *testing.T) {
	h := newHoldingHost(t)
	id := h.container(h.pod(), sh(`trap "echo hung up" HUP; while read x; do echo got $x; [ $x = end ] && exit 13; done`),
		func(c *runtime.ContainerConfig, s *runtime.ContainerSpec) { c.Terminal, s.Stdin = true, true })
	h.startHeld(id)
	for i, word := range []string{"one", "two", "three"} {
		if i > 0 {
			h.kill()
			h.launch()
		}
		h.say(id, word)
	}
	go func() { _ = h.client.Attach(ctx(t), id, runtime.Stdio{Stdin: strings.NewReader("end\n")}) }()
	if exit := h.wait(id); exit.Code != 13 || exit.Unknown {
		t.Errorf("exit %+v", exit)
	}
	if out := h.output(id, "stdout"); strings.Contains(out, "hung up") || !strings.Contains(out, "got end") {
		t.Errorf("terminal's log: %q", out)
	}
}

// say writes a word to a container that answers, and waits for the answer.
func (h *host) say(id, word string) {
	h.t.Helper()
	var screen recorder
	in, keys := io.Pipe()
	c, cancel := context.WithCancel(ctx(h.t))
	done := make(chan error)
	go func() { done <- h.client.Attach(c, id, runtime.Stdio{Stdin: in, Stdout: &screen}) }()
	if _, err := io.WriteString(keys, word+"\n"); err != nil {
		h.t.Fatal(err)
	}
	h.eventually("answer to "+word, func() bool { return strings.Contains(screen.String(), "got "+word) })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		h.t.Errorf("attach: %v", err)
	}
}

func TestEndWithoutAKeeper(t *testing.T) {
	h := newHoldingHost(t)
	proceed, wait := h.signpost("proceed")
	id := h.container(h.pod(), sh(wait+"i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo bad >&2; exit 14"))
	state := h.startHeld(id)
	h.kill()
	proceed()
	h.eventually("container has ended", func() bool { return errors.Is(unix.Kill(state.Pid, 0), unix.ESRCH) })
	h.launch()
	if exit := h.wait(id); exit.Code != 14 || exit.Unknown {
		t.Errorf("exit %+v", exit)
	}
	if lines := strings.Count(h.output(id, "stdout"), "\n"); lines != 3000 {
		t.Errorf("%d of 3000 lines", lines)
	}
	if errs := h.output(id, "stderr"); errs != "bad\n" {
		t.Errorf("stderr %q", errs)
	}
	h.eventually("nothing is held any more", func() bool { return !h.holder.Holds(id) })
}

func TestInputDoesNotEndWithTheKeeper(t *testing.T) {
	h := newHoldingHost(t)
	id := h.container(h.pod(), sh("cat; exit 15"), input(true))
	h.startHeld(id)
	h.kill()
	h.launch()
	if err := h.client.Attach(ctx(t), id, runtime.Stdio{Stdin: strings.NewReader("late\n")}); err != nil {
		t.Error(err)
	}
	if exit := h.wait(id); exit.Code != 15 {
		t.Errorf("exit %+v", exit)
	}
	if out := h.output(id, "stdout"); out != "late\n" {
		t.Errorf("output %q", out)
	}
}

func TestHeldByANewDaemon(t *testing.T) {
	h := newHoldingHost(t)
	id := h.sleeper()
	h.eventually("files are held", func() bool { return h.holder.Holds(id) })
	h.holder.Close()
	if h.holder.Holds(id) {
		t.Error("held after Close")
	}
	h.holder = runtime.NewHolder()
	defer h.holder.Close()
	h.launch()
	if !h.holder.Holds(id) {
		t.Error("not held by a new daemon")
	}
}
