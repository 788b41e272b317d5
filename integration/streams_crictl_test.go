//go:build integration

package integration

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
)

// crictl is a command of the host's that lives as long as the test at most.
func (p *streamPod) crictl(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	tool := filepath.Join(p.n.Bin, "tools", "crictl")
	return p.n.Command(ctx, append([]string{tool, "--runtime-endpoint", "unix:///run/pausa/pausa.sock", "--timeout", "30s"}, args...)...)
}

// checkCrictl uses the streams as an administrator does.
func (p *streamPod) checkCrictl(t *testing.T) {
	if _, err := os.Stat(filepath.Join(p.n.Bin, "tools", "crictl")); err != nil {
		t.Fatalf("%v: run 'make bin/tools/crictl' first", err)
	}
	for _, transport := range []string{"spdy", "websocket"} {
		run := p.crictl(t, "exec", "--transport", transport, "-i", p.main, "sh", "-c", "cat; echo out; exit 7")
		run.Stdin = strings.NewReader("in\n")
		out, err := run.Output()
		var exit *exec.ExitError
		if string(out) != "in\nout\n" || !errors.As(err, &exit) || !strings.Contains(string(exit.Stderr), "exit code 7") {
			t.Errorf("crictl exec over %s gave %q, %v", transport, out, err)
		}
	}
	p.crictlTerminal(t)
	attach := p.crictl(t, "attach", "-i", p.talker)
	in, err := attach.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	heard, err := attach.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	talk := newDialogue(t, struct {
		io.Reader
		io.Writer
	}{heard, in})
	talk.send("crictl\n")
	talk.expect("heard crictl\n")
	if err := p.n.KillAll("crictl", syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = attach.Wait() // it was killed
	p.crictlForward(t)
}

func (p *streamPod) crictlTerminal(t *testing.T) {
	pty, slave, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	if err := pty.Resize(console.WinSize{Width: 97, Height: 31}); err != nil {
		t.Fatal(err)
	}
	term, err := os.OpenFile(slave, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := p.crictl(t, "exec", "-it", p.main, "sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term, term, term
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term.Close()
	talk := newDialogue(t, pty)
	talk.expect("# ")
	talk.send("until [ \"$(stty size)\" = '31 97' ]; do sleep 0.1; done; echo si\"\"zed\n")
	talk.expect("sized")
	talk.send("exit 5\n")
	for talk.next() {
		continue
	}
	_ = cmd.Wait() // says what the terminal shows
	if !strings.Contains(talk.said.String(), "exit code 5") {
		t.Errorf("crictl exec -it said:\n%s", talk.said.String())
	}
}

func (p *streamPod) crictlForward(t *testing.T) {
	cmd := p.crictl(t, "port-forward", p.sandbox, "18081:8081")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.n.eventually("crictl forwards", func() error {
		conn, err := p.n.DialContext(p.ctx, "tcp", "127.0.0.1:18081")
		if err != nil {
			return err
		}
		defer conn.Close()
		return echoes(conn, "through crictl")
	})
	if err := p.n.KillAll("crictl", syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // it was killed
}
