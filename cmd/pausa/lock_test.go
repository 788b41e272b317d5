package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A killed daemon may hold its lock a little longer than it seems to live.
func TestLockWaitsForTheDying(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, lockName)
	held, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(held.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := writeAt(held, strconv.Itoa(zombie(t))); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(50 * time.Millisecond)
		_ = held.Close()
	}()
	lock, err := lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDying(t *testing.T) {
	path := filepath.Join(t.TempDir(), lockName)
	for name, c := range map[string]struct {
		text string
		want bool
	}{
		"alive":            {strconv.Itoa(os.Getpid()) + "\n", false},
		"zombie":           {strconv.Itoa(zombie(t)) + "\n", true},
		"gone":             {"4194304\n", true}, // above the highest pid
		"not written yet":  {"", false},
		"a line of spaces": {"  \n", false},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := dying(path); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// zombie is the pid of a process that has ended and that nobody waits for until the test's end.
func zombie(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}
