//go:build integration

package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

var (
	seed  = flag.Uint64("seed", 1, "of the moments at which the daemon is killed")
	kills = flag.Int("kills", 12, "how often the daemon is killed during apply and delete")
)

// restart starts the daemon again and waits until it answers.
func (n *node) restart() {
	n.t.Helper()
	if err := n.Serve(); err != nil {
		n.t.Fatal(err)
	}
}

// The daemon dies at seeded moments of apply and of delete. The next start
// finishes or undoes; in the end nothing is left.
func TestKillDaemonDuringApplyAndDelete(t *testing.T) {
	n := newNode(t, "killd")
	rnd := rand.New(rand.NewPCG(*seed, 0))
	for i := range *kills {
		wait := time.Duration(rnd.IntN(300)) * time.Millisecond
		during := []string{"apply", "-f", "-"}
		if i%2 == 1 {
			during = []string{"delete", "--all", "-A"}
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.CLI(web, during...) // it may fail: its daemon is killed
		}()
		time.Sleep(wait)
		if err := n.KillDaemon(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-done
		t.Logf("kill %d: %s after %s", i, during[0], wait)
		n.restart()
		if i%2 == 0 {
			n.apply(web) // done or not, now it is
			n.waitReady("app=web", 2)
		} else {
			n.ok("delete", "--all", "-A")
			if left := n.pods(""); len(left) != 0 {
				t.Fatalf("kill %d: pods after delete --all: %v", i, left)
			}
		}
	}
}

// No container notices the death of the daemon, and no byte of a log is lost.
func TestContainersOutliveTheDaemon(t *testing.T) {
	n := newNode(t, "outlive")
	const lines = 100000
	n.apply(shellPod("writer", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; echo end; while :; do sleep 1000; done", lines)))
	n.apply(web)
	pods := n.waitReady("app=web", 2)
	before := n.containerProcesses()
	for range 5 {
		if err := n.KillDaemon(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // the writer writes while nobody serves
		n.restart()
	}
	n.eventually("the writer is done", func() error {
		if out := n.ok("logs", "writer", "--tail", "1"); out != "end\n" {
			return fmt.Errorf("last line %q", out)
		}
		return nil
	})
	checkLines(t, n.ok("logs", "writer"), lines)
	if after := n.containerProcesses(); !maps.Equal(before, after) {
		t.Errorf("containers before %v, after %v", before, after)
	}
	svc := n.service("web")
	n.answers("the host after restarts", pods, n.wget("http://"+svc.Spec.ClusterIP+"/cgi-bin/name"))
}

// checkLines expects "line 0" to "line N-1" and "end", none lost, none twice.
func checkLines(t *testing.T, log string, count int) {
	t.Helper()
	next := 0
	for line := range strings.Lines(log) {
		if next == count && line == "end\n" {
			next++
			continue
		}
		if want := fmt.Sprintf("line %d\n", next); line != want {
			t.Fatalf("log: %q where %q should be", line, want)
		}
		next++
	}
	if next != count+1 {
		t.Fatalf("log ends after %d lines of %d", next, count+1)
	}
}

// containerProcesses are the host's processes but for the daemon's and commands that come and go.
func (n *node) containerProcesses() map[int]string {
	all := n.processTable()
	maps.DeleteFunc(all, func(_ int, comm string) bool { return comm == "pausa" || comm == "sleep" || comm == "wget" })
	return all
}

// A container that ends while no daemon runs has its exit code all the same.
func TestExitWhileDaemonIsDown(t *testing.T) {
	n := newNode(t, "exitdown")
	n.apply(strings.Replace(shellPod("brief", "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 23"), "spec:", "spec:\n  restartPolicy: Never", 1))
	n.waitReady("app=brief", 1)
	n.ok("exec", "brief", "--", "sh", "-c", "(sleep 0.5; touch /tmp/go) >/dev/null 2>&1 &")
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.eventually("the container has ended", func() error {
		for _, comm := range n.processTable() {
			if comm == "sh" {
				return errors.New("it runs")
			}
		}
		return nil
	})
	n.restart()
	p := n.waitPhase("brief", corev1.PodFailed)
	if term := p.Status.ContainerStatuses[0].State.Terminated; term == nil || term.ExitCode != 23 {
		t.Errorf("state %+v, want exit code 23", p.Status.ContainerStatuses[0].State)
	}
}

// The keeper dies: no container dies with it, and the daemon gets a new one.
func TestKillKeeper(t *testing.T) {
	n := newNode(t, "killk")
	n.apply(web)
	pods := n.waitReady("app=web", 2)
	if err := n.KillKeeper(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	svc := n.service("web")
	n.answers("the host without a keeper", pods, n.wget("http://"+svc.Spec.ClusterIP+"/cgi-bin/name"))
	n.eventually("exec works with the new keeper", func() error {
		if _, stderr, code := n.CLI("", "exec", n.pods("app=web")[0].Name, "-c", "back", "--", "true"); code != 0 {
			return fmt.Errorf("exit status %d: %s", code, stderr)
		}
		return nil
	})
	n.waitReady("app=web", 2)
}

// A firewall reload flushes the rules: they come back by themselves.
func TestFlushedRulesetComesBack(t *testing.T) {
	n := newNode(t, "flush")
	n.apply(web)
	pods := n.waitReady("app=web", 2)
	if _, err := n.Output("nft", "flush", "ruleset"); err != nil {
		t.Fatal(err)
	}
	svc := n.service("web")
	n.answers("the host after a flush", pods, n.wget("http://"+svc.Spec.ClusterIP+"/cgi-bin/name"))
}

// logs -f goes on where the daemon's death broke it off, as the reader asks anew; while it lives it follows.
func TestLogsFollow(t *testing.T) {
	n := newNode(t, "follow")
	n.apply(shellPod("talk", "i=0; while :; do echo word $i; i=$((i+1)); sleep 0.05; done"))
	n.waitReady("app=talk", 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := n.CLICommand(ctx, "logs", "-f", "talk")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	for i := 0; i < 20; i++ {
		if !sc.Scan() || sc.Text() != fmt.Sprintf("word %d", i) {
			t.Fatalf("line %d is %q, %v", i, sc.Text(), sc.Err())
		}
	}
	n.ok("delete", "pod", "talk")
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("logs -f of a pod that was deleted: %v", err)
	}
}

// Everything that status says is worked out of facts, so a restarted daemon says the same.
func TestStatusSurvivesRestart(t *testing.T) {
	n := newNode(t, "status")
	n.apply(web)
	before := n.waitReady("app=web", 2)
	if err := n.KillDaemon(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.restart()
	after := n.waitReady("app=web", 2)
	for i := range before {
		for _, p := range []*corev1.Pod{&before[i], &after[i]} {
			p.ResourceVersion, p.ManagedFields = "", nil
		}
		a, _ := json.Marshal(before[i])
		b, _ := json.Marshal(after[i])
		if string(a) != string(b) {
			t.Errorf("before the restart\n%s\nafter\n%s", a, b)
		}
	}
}
