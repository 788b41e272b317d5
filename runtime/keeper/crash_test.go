//go:build cgo

package keeper_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

func TestKeeperIsKilledAndContainersGoOn(t *testing.T) {
	h := newHost(t)
	pod := h.pod()
	writer := h.container(pod, sh("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; read x; exit 11"), input(false))
	parked := h.container(pod, sh("exit 12"))
	state := h.start(writer)
	for range 3 {
		h.kill()
		if _, err := h.client.Pods(ctx(t)); !errors.Is(err, runtime.ErrKeeperGone) {
			t.Errorf("call without a keeper: %v", err)
		}
		h.launch()
	}
	now, err := h.client.Container(ctx(t), writer)
	if err != nil || now.Status != runtime.Running || now.Pid != state.Pid {
		t.Fatalf("adopted container: %+v, %v", now, err)
	}
	h.eventually("all lines are logged", func() bool { return strings.Contains(h.output(writer, "stdout"), "line 2999\n") })
	h.checkLines(writer, 3000)
	if out, _, code := h.exec(writer, "", "echo", "still"); out != "still\n" || code != 0 {
		t.Errorf("exec in adopted container: %q, %d", out, code)
	}
	h.start(parked)
	if exit := h.wait(parked); exit.Code != 12 {
		t.Errorf("container that was parked by a dead keeper: %+v", exit)
	}
	go func() { _ = h.client.Attach(ctx(t), writer, runtime.Stdio{Stdin: strings.NewReader("x\n")}) }()
	if exit := h.wait(writer); exit.Code != 11 && !exit.Unknown {
		t.Errorf("adopted container: %+v", exit)
	}
}

// What ended before its keeper did is removed by the next one.
func TestEndedContainersAreRemovedByTheNextKeeper(t *testing.T) {
	h := newHost(t)
	ended := h.container(h.pod(), sh("exit 3"))
	h.start(ended)
	h.wait(ended)
	h.kill()
	h.launch()
	if now, err := h.client.Container(ctx(t), ended); err != nil || now.Exit == nil || now.Exit.Code != 3 {
		t.Fatalf("adopted container: %+v, %v", now, err)
	}
	for range 2 {
		if err := h.client.RemoveContainer(ctx(t), ended); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := h.client.Container(ctx(t), ended); err == nil {
		t.Errorf("it is still known: %+v", now)
	}
}

// checkLines wants "line 0" to "line n-1", each once.
func (h *host) checkLines(id string, n int) {
	h.t.Helper()
	next := 0
	for line := range strings.Lines(h.output(id, "stdout")) {
		var i int
		if _, err := fmt.Sscanf(line, "line %d\n", &i); err != nil {
			h.t.Fatalf("line %q", line)
		}
		if i != next {
			h.t.Fatalf("line %d follows line %d", i, next-1)
		}
		next++
	}
	if next != n {
		h.t.Errorf("%d lines of %d", next, n)
	}
}

func TestSecondKeeperIsRefused(t *testing.T) {
	h := newHost(t)
	out, err := exec.Command(built.binary, "-run", h.run).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another keeper") {
		t.Errorf("second keeper: %v, %s", err, out)
	}
}

// A keeper that has the lock and does not answer yet, or is about to end, is waited for.
func TestLaunchWaitsForTheHolder(t *testing.T) {
	h := newHost(t)
	h.kill()
	lock, err := os.OpenFile(filepath.Join(h.run, "keeper", "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, func() { _ = lock.Close() })
	h.launch()
	if _, err := h.client.Pods(ctx(t)); err != nil {
		t.Error(err)
	}
}

func TestLaunchNamesTheCure(t *testing.T) {
	_, err := runtime.Launch(ctx(t), runtime.LaunchOptions{Binary: "/nope/pausa-keeper", RunDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("missing binary: %v", err)
	}
}

func TestDamagedRecordsAreSetAside(t *testing.T) {
	h := newHost(t)
	pod := h.pod()
	h.kill()
	bad := filepath.Join(h.run, "keeper", "pods", "bad.json")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.launch()
	pods, err := h.client.Pods(ctx(t))
	if err != nil || len(pods) != 1 || pods[0].ID != pod.ID || pods[0].Exited {
		t.Errorf("pods %+v, %v", pods, err)
	}
	if err := os.Remove(bad + ".bad"); err != nil {
		t.Error(err)
	}
}

func TestDeadPauseIsSeen(t *testing.T) {
	h := newHost(t)
	pod := h.pod()
	if err := unix.Kill(pod.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.eventually("pod is exited", func() bool {
		pods, err := h.client.Pods(ctx(t))
		return err == nil && len(pods) == 1 && pods[0].Exited
	})
}

// A container that ended under an earlier keeper is removed as any other.
func TestRemoveWhatEndedUnderAnEarlierKeeper(t *testing.T) {
	h := newHost(t)
	id, _ := h.runOnce(h.pod(), []string{"true"})
	h.kill()
	h.launch()
	if err := h.client.RemoveContainer(ctx(t), id); err != nil {
		t.Fatal(err)
	}
	if list, err := h.client.Containers(ctx(t)); err != nil || len(list) > 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}
