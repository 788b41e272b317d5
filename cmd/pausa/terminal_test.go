package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// screen is what was written, and tells when a text has come.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		select {
		case s.more <- struct{}{}:
		default:
		}
	}()
	return s.text.Write(b)
}

func (s *screen) await(t *testing.T, text string) {
	t.Helper()
	for limit := time.After(time.Minute); ; {
		s.mu.Lock()
		have := s.text.String()
		s.mu.Unlock()
		if strings.Contains(have, text) {
			return
		}
		select {
		case <-s.more:
		case <-limit:
			t.Fatalf("no %q in %q", text, have)
		}
	}
}

// TestTerminal: the size goes along, its changes follow, and the terminal is
// as before when the process has ended.
func TestTerminal(t *testing.T) {
	master, path, err := console.NewPty()
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	defer func() { _ = master.Close() }()
	tty, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	if err := master.Resize(console.WinSize{Width: 80, Height: 24}); err != nil {
		t.Fatal(err)
	}
	before, err := term.GetState(int(tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f := startFake(t)
	f.runWith(t, podText("a", "localhost/busybox"), "apply", "-f", "-").want(t, 0, "created", "")
	out := &screen{more: make(chan struct{}, 1)}
	p := &program{
		in: tty, out: out, err: out, now: now,
		env: func(string) (string, bool) { return "", false }, environ: func() []string { return nil },
	}
	code := make(chan int, 1)
	go func() {
		code <- p.run(context.Background(), []string{"pausa", "--socket", f.socket, "exec", "-it", "a", "--", "size"})
	}()
	out.await(t, "80x24 tty true\r\n")
	if err := master.Resize(console.WinSize{Width: 100, Height: 30}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	out.await(t, "resized\r\n")
	if got := <-code; got != 0 {
		t.Errorf("exit %d", got)
	}
	after, err := term.GetState(int(tty.Fd()))
	if err != nil || *after != *before {
		t.Errorf("the terminal is left changed: %v", err)
	}
}
