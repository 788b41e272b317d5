package host

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// start makes a host for a test that needs no daemon.
func start(t *testing.T, name string) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making namespaces needs root")
	}
	h, err := Start(name, "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestHostIsAlone(t *testing.T) {
	h := start(t, "alone")
	links, err := h.Output("ip", "-o", "link")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(links) {
		if name := strings.Fields(line)[1]; name != "lo:" && strings.Contains(line, "UP") {
			t.Errorf("a new host has the link %s", line)
		}
	}
	if name, err := h.Output("uname", "-n"); err != nil || strings.TrimSpace(name) != "alone" {
		t.Errorf("host name %q, %v", name, err)
	}
	procs, err := h.Processes()
	if err != nil || len(procs) != 0 {
		t.Errorf("a new host runs %v, %v", procs, err)
	}
	if _, err := h.Output("ip", "route", "get", "192.0.2.1"); err == nil {
		t.Error("a new host has a route out")
	}
}

// Each thing that may leak must be seen, or the leak check proves nothing.
func TestLeaksAreSeen(t *testing.T) {
	h := start(t, "leaks")
	if err := os.MkdirAll(h.StateDir, 0o755); err != nil {
		t.Fatal(err)
	}
	base, err := h.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	none := func(string) bool { return false }
	if left, err := h.Leaks(base, 0, none); err != nil || len(left) != 0 {
		t.Fatalf("before anything was done: %v, %v", left, err)
	}
	for _, c := range [][]string{
		{"sh", "-c", "sleep 1000 >/dev/null 2>&1 &"},
		{"mkdir", "-p", RunDir + "/mnt"},
		{"mount", "-t", "tmpfs", "left", RunDir + "/mnt"},
		{"ip", "link", "add", "left0", "type", "bridge"},
		{"ip", "addr", "add", "10.1.2.3/24", "dev", "left0"},
		{"nft", "add table inet pausa; add set inet pausa s { type inet_service; }; add element inet pausa s { 80 }"},
		{"touch", h.StateDir + "/left"},
	} {
		if _, err := h.Output(c...); err != nil {
			t.Fatal(err)
		}
	}
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if os.Mkdir(root+h.CgroupParent, 0o755) == nil {
			break
		}
	}
	left, err := h.Leaks(base, 0, none)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"process sleep sleep 1000", "mount " + RunDir + "/mnt", "link left0", "address left0 10.1.2.3",
		"nft element inet pausa s 80", "file " + h.StateDir + "/left",
	} {
		if !slices.Contains(left, want) {
			t.Errorf("%q is not seen in %q", want, left)
		}
	}
	if !slices.ContainsFunc(left, func(l string) bool { return strings.HasPrefix(l, "cgroup ") }) {
		t.Errorf("the cgroup is not seen in %q", left)
	}
}

func TestLeaksWaits(t *testing.T) {
	h := start(t, "waits")
	base, err := h.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Output("sh", "-c", "sleep 0.2 >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	left, err := h.Leaks(base, 20*time.Second, func(string) bool { return false })
	if err != nil || len(left) != 0 {
		t.Errorf("after the process ended: %v, %v", left, err)
	}
}

func TestJoin(t *testing.T) {
	a, b := start(t, "a"), start(t, "b")
	if err := Join(a, b, 7); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"10.253.7.2", "fd53:7::2"} {
		if _, err := a.Output("busybox", "ping", "-c", "1", "-W", "5", addr); err != nil {
			t.Error(err)
		}
	}
}
