package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
	if _, err := held.WriteString(strconv.Itoa(zombie(t))); err != nil {
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

// A folder that is not the daemon's own is not closed to others.
func TestFoldersOfOthers(t *testing.T) {
	for name, c := range map[string]struct {
		entry string
		mode  os.FileMode
		taken bool
	}{
		"empty":        {"", 0o755, true},
		"a disk's":     {"lost+found", 0o755, true},
		"closed":       {"file", 0o700, true},
		"the daemon's": {lockName, 0o711, true},
		"of others":    {"file", 0o755, false},
		"of all":       {"file", 0o1777, false},
	} {
		dir := t.TempDir()
		if c.entry != "" {
			if err := os.WriteFile(filepath.Join(dir, c.entry), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		lock, err := lockFolder(dir)
		st, statErr := os.Stat(dir)
		if statErr != nil {
			t.Fatal(statErr)
		}
		if c.taken {
			if err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("%s: %v, mode %o", name, err, st.Mode().Perm())
				continue
			}
			lock.Close()
		} else if err == nil || !strings.Contains(err.Error(), dir+"/pausa") || st.Mode().Perm() != c.mode.Perm() {
			t.Errorf("%s: %v, mode %o", name, err, st.Mode().Perm())
		}
	}
}
