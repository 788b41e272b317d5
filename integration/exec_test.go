//go:build integration

package integration

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
)

func TestExec(t *testing.T) {
	n := newNode(t, "exec")
	n.apply(shellPod("sh", "echo up; while :; do sleep 1000; done"))
	n.waitReady("app=sh", 1)
	if out := n.ok("exec", "sh", "--", "sh", "-c", "echo out; echo err >&2"); out != "out\n" {
		t.Errorf("standard output %q", out)
	}
	if _, stderr, _ := n.CLI("", "exec", "sh", "--", "sh", "-c", "echo err >&2"); stderr != "err\n" {
		t.Errorf("standard error %q", stderr)
	}
	if out := n.okStdin("through the pipe\n", "exec", "-i", "sh", "--", "cat"); out != "through the pipe\n" {
		t.Errorf("cat gave %q", out)
	}
	for _, code := range []int{1, 7, 126, 255} {
		n.fails("", code, nil, "exec", "sh", "--", "sh", "-c", "exit "+strconv.Itoa(code))
	}
	n.fails("", 137, nil, "exec", "sh", "--", "sh", "-c", "kill -9 $$")
	n.fails("", 1, []string{"no-such-container"}, "exec", "sh", "-c", "no-such-container", "--", "true")
	n.fails("", 1, []string{"not found"}, "exec", "nobody", "--", "true")
	if _, stderr, code := n.CLI("", "exec", "sh", "--", "/no/such/command"); code == 0 || !strings.Contains(stderr, "/no/such/command") {
		t.Errorf("a command that is not there: exit status %d, %q", code, stderr)
	}
}

// A terminal all the way: echo, the size of the window, Ctrl-C, the exit code.
func TestExecTerminal(t *testing.T) {
	n := newNode(t, "tty")
	n.apply(shellPod("sh", "while :; do sleep 1000; done"))
	n.waitReady("app=sh", 1)
	pty, slave, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	if err := pty.Resize(console.WinSize{Width: 97, Height: 31}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	term, err := os.OpenFile(slave, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.CLICommand(ctx, "exec", "-it", "sh", "--", "sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term, term, term
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term.Close() // only the client has it now: its end ends the dialogue
	talk := newDialogue(t, pty)
	talk.expect("# ")
	talk.send("stty size\n")
	talk.expect("31 97")
	talk.send("tty; sleep 1000\n")
	talk.expect("/dev/pts/")
	talk.send("\x03")
	talk.send("echo in\"\"terrupted\n")
	talk.expect("interrupted")
	talk.send("exit 5\n")
	for talk.next() {
		continue
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("exec -it ended with %v, want exit status 5; it said:\n%s", err, talk.said.String())
	}
}

// dialogue talks with what sits at a terminal.
type dialogue struct {
	t     *testing.T
	w     io.Writer
	parts chan string // what it says; closed at the end
	said  strings.Builder
	unhad string // said and not yet expected
}

func newDialogue(t *testing.T, rw io.ReadWriter) *dialogue {
	d := &dialogue{t: t, w: rw, parts: make(chan string, 1024)}
	go func() {
		defer close(d.parts)
		buf := make([]byte, 4096)
		for {
			k, err := rw.Read(buf)
			d.parts <- string(buf[:k])
			if err != nil { // EIO is the end
				return
			}
		}
	}()
	return d
}

func (d *dialogue) send(s string) {
	d.t.Helper()
	if _, err := io.WriteString(d.w, s); err != nil {
		d.t.Fatal(err)
	}
}

// next waits for more; it is false at the end, or when nothing came for long.
func (d *dialogue) next() bool {
	select {
	case part, ok := <-d.parts:
		d.said.WriteString(part)
		d.unhad += part
		return ok
	case <-time.After(30 * time.Second):
		return false
	}
}

func (d *dialogue) expect(what string) {
	d.t.Helper()
	for {
		if i := strings.Index(d.unhad, what); i >= 0 {
			d.unhad = d.unhad[i+len(what):]
			return
		}
		if !d.next() {
			d.t.Fatalf("%q did not come; it said:\n%q", what, d.said.String())
		}
	}
}

// The client goes, its process goes: nothing keeps running unseen.
func TestExecClientGone(t *testing.T) {
	n := newNode(t, "gone")
	n.apply(shellPod("sh", "while :; do sleep 1000; done"))
	n.waitReady("app=sh", 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := n.CLICommand(ctx, "exec", "-i", "sh", "--", "sleep", "4242")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	runs := func(word string) int {
		procs, err := n.Processes()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range procs {
			if p.Cmdline == word || strings.HasSuffix(p.Comm, "pausa") && strings.Contains(p.Cmdline, word) {
				return p.OuterPid
			}
		}
		return 0
	}
	n.eventually("the command runs", func() error {
		if runs("sleep 4242") == 0 {
			return errors.New("it does not")
		}
		return nil
	})
	if err := syscall.Kill(runs("exec -i sh"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	n.eventually("the command is gone", func() error {
		if pid := runs("sleep 4242"); pid != 0 {
			return errors.New("it still runs")
		}
		return nil
	})
}
