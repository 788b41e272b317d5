package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is the file in RUN and STATE that a daemon holds locked while it lives.
const lockName = "daemon.lock"

// lockFolder makes dir (0700) and locks it for this process until the file is
// closed or the process ends, however it ends.
func lockFolder(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder %s: %w", dir, err)
	}
	if err := checkOwn(dir); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("close folder %s to others: %w", dir, err)
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = flock(f, path)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(heldError(dir, path), f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	// The pid is there to be read by people: a full disk is no reason not to start.
	pid := strconv.Itoa(os.Getpid()) + "\n"
	if _, err := f.WriteAt([]byte(pid), 0); err == nil {
		_ = f.Truncate(int64(len(pid)))
	}
	return f, nil
}

// checkOwn keeps the daemon from closing a folder to others that is not its own, as /srv or /tmp.
func checkOwn(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at folder %s: %w", dir, err)
	}
	if st.Mode().Perm()&0o007 == 0 {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(dir, lockName)); err == nil {
		return nil
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look at folder %s: %w", dir, err)
	}
	for _, e := range list {
		if !slices.Contains([]string{"lost+found", "images", "logs", "objects", "pods"}, e.Name()) { // a disk of its own may be mounted there
			return fmt.Errorf("folder %s has files already (%s) and is open to other users: use an empty or new one, as %s/pausa, or close it with chmod 700", dir, e.Name(), strings.TrimSuffix(dir, "/"))
		}
	}
	return nil
}

// dyingLimit bounds the wait for a killed daemon to end: its last threads may
// still be inside the kernel, and hold the lock, when it is a zombie already.
const dyingLimit = 5 * time.Second

// flock locks f. It waits for a holder that is about to end, and for no other.
func flock(f *os.File, path string) error {
	for end := time.Now().Add(dyingLimit); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) || !dying(path) {
			return err
		}
	}
}

// dying tells whether the process that path names as its holder is gone, a
// zombie, or has a SIGKILL waiting for it.
func dying(path string) bool {
	pid, err := os.ReadFile(path)
	if err != nil || len(strings.TrimSpace(string(pid))) == 0 {
		return false // somebody has just taken it and not written yet
	}
	status, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "status"))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "State":
			if strings.ContainsAny(strings.TrimSpace(value)[:1], "ZX") {
				return true
			}
		case "SigPnd", "ShdPnd":
			if set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err == nil && set&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}

func heldError(dir, path string) error {
	holder := "another daemon"
	if data, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(data))) > 0 {
		holder += ", pid " + strings.TrimSpace(string(data)) + ","
	}
	return fmt.Errorf("folder %s is in use: %s works there: stop it, or give this one folders of its own with --state and --run", dir, holder)
}
