//go:build integration

package integration

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"
)

var storm = flag.Int("storm", 12, "how many programs are killed in the crash storm")

// Daemon, keeper, pauses and containers are killed at seeded moments while pods
// come and go, also two at once. What is declared runs in the end, each pod
// once, and nothing else is left.
func TestCrashStorm(t *testing.T) {
	n := newNode(t, "storm")
	rnd := rand.New(rand.NewPCG(*seed, 1))
	n.apply(web)
	for i := range *storm {
		during := [][]string{{"apply", "-f", "-"}, {"delete", "pod", "--all", "-n", "default", "--wait=false"}, {"delete", "--all", "-A", "--wait=false"}}[rnd.IntN(3)]
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.CLI(web, during...) // it may fail: its daemon is killed
		}()
		time.Sleep(time.Duration(rnd.IntN(400)) * time.Millisecond)
		said := ""
		for range 1 + rnd.IntN(2) {
			said += n.killOne(rnd)
		}
		<-done
		t.Logf("kill %d, during %s:%s", i, during[0], said)
		if strings.Contains(said, " daemon") {
			n.restart()
		}
	}
	n.eventually("the pods are declared", func() error {
		if _, stderr, code := n.CLI(web, "apply", "-f", "-"); code != 0 {
			return errors.New(stderr)
		}
		return nil
	})
	n.waitReady("app=web", 2)
	n.eventually("as many pauses as pods run", func() error {
		procs, err := n.Processes()
		if err != nil {
			return err
		}
		pauses := 0
		for _, p := range procs {
			if strings.HasPrefix(p.Cmdline, "pause ") {
				pauses++
			}
		}
		if pods := len(n.pods("")); pauses != pods {
			return fmt.Errorf("%d pauses for %d pods", pauses, pods)
		}
		return nil
	})
}

// killOne kills one program of the host, and says which.
func (n *node) killOne(rnd *rand.Rand) string {
	n.t.Helper()
	which := rnd.IntN(4)
	switch which {
	case 0:
		if err := n.KillDaemon(syscall.SIGKILL); err != nil {
			n.t.Fatal(err)
		}
		return " daemon"
	case 1:
		if err := n.KillKeeper(syscall.SIGKILL); err != nil {
			n.t.Fatal(err)
		}
		return " keeper"
	}
	procs, err := n.Processes()
	if err != nil {
		n.t.Fatal(err)
	}
	var of []int
	for _, p := range procs {
		isPause := strings.HasPrefix(p.Cmdline, "pause ")
		if isPause == (which == 2) && !strings.HasPrefix(p.Comm, "pausa") && p.Comm != "nsenter" {
			of = append(of, p.OuterPid)
		}
	}
	if len(of) == 0 {
		return " nothing"
	}
	if err := syscall.Kill(of[rnd.IntN(len(of))], syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		n.t.Fatal(err)
	}
	return map[int]string{2: " pause", 3: " container"}[which]
}
