package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/pod"
)

func TestLockFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "state")
	lock, err := lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", st.Mode(), err)
	}
	_, err = lockFolder(dir)
	if err == nil || !strings.Contains(err.Error(), "pid "+strconv.Itoa(os.Getpid())+",") || !strings.Contains(err.Error(), "--state and --run") {
		t.Errorf("second daemon: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	lock, err = lockFolder(dir)
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	_ = lock.Close()
}

// TestLockIsNotInherited: the keeper outlives the daemon and must not hold its locks.
func TestLockIsNotInherited(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Skipf("no sleep on this host: %v", err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	_ = lock.Close()
	if lock, err = lockFolder(dir); err != nil {
		t.Fatalf("a child holds the lock: %v", err)
	}
	_ = lock.Close()
}

func TestSecondDaemon(t *testing.T) {
	state := t.TempDir()
	lock, err := lockFolder(state)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	r := runLine(t, "", "serve", "--state", state, "--run", t.TempDir(), "--config", write(t, "c.toml", ""))
	r.want(t, 1, "", "error: folder "+state+" is in use: another daemon, pid "+strconv.Itoa(os.Getpid()))
}

func TestFindCgroups(t *testing.T) {
	g, err := findCgroups(cgroupRoot)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case g.mode == "v2" && len(g.dirs) == 1 && g.dirs[0] == cgroupRoot:
	case (g.mode == "v1" || g.mode == "hybrid") && len(g.dirs) > 0:
	default:
		t.Errorf("cgroups: %+v", g)
	}
	if _, err := findCgroups(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no cgroup hierarchy") {
		t.Errorf("empty folder: %v", err)
	}
	if _, err := findCgroups("/no/such"); err == nil {
		t.Error("a missing folder is no error")
	}
}

func TestCgroupDriver(t *testing.T) {
	runs, missing := t.TempDir(), filepath.Join(t.TempDir(), "missing")
	for _, c := range []struct{ driver, runs, want string }{
		{"auto", runs, pod.Systemd},
		{"auto", missing, pod.Cgroupfs},
		{pod.Cgroupfs, runs, pod.Cgroupfs},
		{pod.Systemd, runs, pod.Systemd},
		{pod.Systemd, missing, ""},
	} {
		got, err := cgroupDriver(c.driver, c.runs)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", c.driver, got, err, c.want)
		}
	}
}

func TestOpenCgroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("control groups can be made by root alone")
	}
	parent := "/pausa-cmd-test-" + strconv.Itoa(os.Getpid())
	g, err := openCgroup(parent, pod.Cgroupfs)
	if errors.Is(err, unix.EROFS) {
		t.Skipf("control groups are read-only here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	busy := filepath.Join(g.dirs[0], "pod")
	if err := os.Mkdir(busy, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := g.close(); err != nil {
		t.Errorf("close with a pod: %v", err)
	}
	if _, err := os.Stat(busy); err != nil {
		t.Errorf("close removed a pod's group: %v", err)
	}
	if err := unix.Rmdir(busy); err != nil {
		t.Fatal(err)
	}
	if err := g.close(); err != nil {
		t.Errorf("close: %v", err)
	}
	for _, dir := range g.dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

func TestCapabilities(t *testing.T) {
	if got := capabilities("Name:\tx\nCapInh:\tff\nCapEff:\t000000000000000a\n"); got != 10 {
		t.Errorf("capabilities: %d", got)
	}
	if got := capabilities("nothing"); got != 0 {
		t.Errorf("capabilities: %d", got)
	}
}

func TestNodeIPs(t *testing.T) {
	for _, a := range nodeIPs("none")() {
		if a.IsLoopback() || a.IsLinkLocalUnicast() || a == (netip.Addr{}) {
			t.Errorf("%s is no address of a node", a)
		}
	}
}

func TestAnnounce(t *testing.T) {
	dir := t.TempDir()
	address, socket := filepath.Join(dir, "notify"), filepath.Join(dir, "s")
	manager, err := net.ListenPacket("unixgram", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	p := &program{env: func(name string) (string, bool) { return address, name == "NOTIFY_SOCKET" }}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.announce(ctx, socket) }()
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		buf := make([]byte, 64)
		_ = manager.SetReadDeadline(time.Now().Add(time.Minute))
		n, _, err := manager.ReadFrom(buf)
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("message %q, %v, want %q", buf[:n], err, want)
		}
		cancel()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	silent := &program{env: func(string) (string, bool) { return "", false }}
	if err := silent.announce(context.Background(), socket); err != nil {
		t.Errorf("without a manager: %v", err)
	}
}

func TestLaunchOptions(t *testing.T) {
	p := &program{err: os.Stderr}
	c := &config.Config{State: t.TempDir(), Run: "/r"}
	o, err := p.launchOptions(c, nil)
	if err != nil || filepath.Base(o.Binary) != "pausa-keeper" || !filepath.IsAbs(o.Binary) || o.RunDir != "/r" {
		t.Errorf("%+v, %v", o, err)
	}
	c.KeeperBinary = "/x/keeper"
	if o, err = p.launchOptions(c, nil); err != nil || o.Binary != "/x/keeper" {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestClosers(t *testing.T) {
	var order []int
	var c closers
	for i := range 3 {
		c.add(func() error {
			order = append(order, i)
			if i > 0 {
				return errors.New(strconv.Itoa(i))
			}
			return nil
		})
	}
	if err := c.close(); err == nil || err.Error() != "2\n1" || len(order) != 3 || order[0] != 2 {
		t.Errorf("%v, %v", err, order)
	}
}
