package doctor

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
)

// host is a healthy host made of files, with some of them changed.
func host(t *testing.T, changed map[string]string) Host {
	t.Helper()
	h := Host{
		Proc: t.TempDir(), Cgroups: []string{t.TempDir()}, Version: "v1",
		Config: &config.Config{
			Bridge: "pausa0", State: t.TempDir(), Run: t.TempDir(),
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd88::/64")},
		},
	}
	files := map[string]string{
		"sys/kernel/osrelease": "6.18.0-test\n", "self/status": "Name:\tpausa\nCapEff:\t000001ffffffffff\n",
		"cgroups":                 "#subsys_name hierarchy num_cgroups enabled\ncpu 1 1 1\nmemory 2 1 1\npids 3 1 1\n",
		"sys/net/ipv4/ip_forward": "1\n", "sys/net/ipv6/conf/all/forwarding": "1\n", "sys/net/ipv4/conf/pausa0/forwarding": "1\n",
		"sys/fs/inotify/max_user_watches": "65536\n", "sys/fs/inotify/max_user_instances": "1024\n",
		"sys/net/netfilter/nf_conntrack_count": "10\n", "sys/net/netfilter/nf_conntrack_max": "1000\n",
	}
	for name, text := range changed {
		files[name] = text
	}
	for name, text := range files {
		path := filepath.Join(h.Proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestChecksOfTheKernel(t *testing.T) {
	look := map[string]func(Host) []Check{
		"kernel":       func(h Host) []Check { return h.kernel(context.Background()) },
		"capabilities": func(h Host) []Check { return h.capabilities(context.Background()) },
		"cgroups":      func(h Host) []Check { return h.cgroups(context.Background()) },
		"settings":     func(h Host) []Check { return h.sysctls(context.Background()) },
	}
	for name, f := range look {
		if got := f(host(t, nil)); len(got) != 1 || got[0].Verdict != OK {
			t.Errorf("%s of a healthy host: %+v", name, got)
		}
	}
	for _, c := range []struct{ check, file, text, verdict, want, cure string }{
		{"kernel", "sys/kernel/osrelease", "5.10.0\n", Fail, "older than 5.15", "boot a kernel"},
		{"kernel", "sys/kernel/osrelease", "4.19.0\n", Fail, "older than 5.15", "boot a kernel"},
		{"kernel", "sys/kernel/osrelease", "odd\n", Warn, `"odd" cannot be read`, ""},
		{"capabilities", "self/status", "CapEff:\t0000000000000000\n", Fail, "CAP_SYS_ADMIN is missing: no pod can be started", "run as root"},
		{"capabilities", "self/status", "CapEff:\t000001fffeffffff\n", Warn, "CAP_SYS_RESOURCE is missing", "run as root"},
		{"cgroups", "cgroups", "cpu 1 1 1\nmemory 0 1 0\npids 3 1 1\n", Warn, "no cgroup controller memory", "cgroup_enable=memory"},
		{"settings", "sys/net/ipv4/ip_forward", "0\n", Fail, `net.ipv4.ip_forward is "0"`, "sysctl -w net.ipv4.ip_forward=1"},
		{"settings", "sys/net/ipv6/conf/all/forwarding", "0\n", Fail, "pods reach nothing by IPv6", "sysctl -w net.ipv6.conf.all.forwarding=1"},
		{"settings", "sys/fs/inotify/max_user_instances", "16\n", Warn, "fs.inotify.max_user_instances is 16", "sysctl -w fs.inotify.max_user_instances=1024"},
		{"settings", "sys/net/netfilter/nf_conntrack_count", "950\n", Warn, "950 of 1000 entries", "nf_conntrack_max=2000"},
	} {
		got := look[c.check](host(t, map[string]string{c.file: c.text}))
		if len(got) == 0 || got[0].Verdict != c.verdict || !strings.Contains(got[0].What, c.want) || !strings.Contains(got[0].Cure, c.cure) {
			t.Errorf("%s with %q: %+v, want %s with %q and the cure %q", c.check, c.text, got, c.verdict, c.want, c.cure)
		}
	}
	h := host(t, nil)
	h.Cgroups = nil
	if got := h.cgroups(context.Background()); got[0].Verdict != Fail {
		t.Errorf("without cgroups: %+v", got)
	}
}

func TestRoom(t *testing.T) {
	for _, c := range []struct {
		free, all uint64
		want      string
	}{{500, 1000, ""}, {90, 1000, Warn}, {10, 1000, Fail}, {0, 0, ""}} {
		got := ""
		if found := room("/x", "space", c.free, c.all); len(found) > 0 {
			got = found[0].Verdict
		}
		if got != c.want {
			t.Errorf("%d of %d free: %q, want %q", c.free, c.all, got, c.want)
		}
	}
}

func TestChecksOfTheDaemon(t *testing.T) {
	h := host(t, nil)
	h.Daemon = Daemon{Version: "v0", Orphans: func(context.Context) (int, uint64, error) { return 3, 5 << 20, nil }}
	if got := h.daemon(context.Background()); got[0].Verdict != Warn || !strings.Contains(got[0].What, "version v0, this program of v1") {
		t.Errorf("another version: %+v", got)
	}
	if got := h.images(context.Background()); got[0].Verdict != Warn || !strings.Contains(got[0].What, "3 files and layers of 5 MB") {
		t.Errorf("orphans: %+v", got)
	}
	if got := h.keeper(context.Background()); got[0].Verdict != Fail {
		t.Errorf("a daemon without a keeper: %+v", got)
	}
	h.Daemon = Daemon{Err: errors.New("the daemon is not running at /x")}
	if got := h.daemon(context.Background()); got[0].Verdict != Fail || got[0].What != "the daemon is not running at /x" {
		t.Errorf("no daemon: %+v", got)
	}
	if got := h.keeper(context.Background()); got[0].Verdict != OK {
		t.Errorf("neither daemon nor keeper: %+v", got)
	}
}

func TestHandlers(t *testing.T) {
	h := host(t, nil)
	program := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	h.Config.Runtimes.Handlers = []config.Runtime{{Name: "runc", Path: program}}
	if got := h.handlers(context.Background()); got[0].Verdict != OK {
		t.Errorf("a handler that is there: %+v", got)
	}
	h.Config.Runtimes.Handlers = append(h.Config.Runtimes.Handlers, config.Runtime{Name: "kata", Path: "/no/such/kata"})
	if got := h.handlers(context.Background()); len(got) != 1 || got[0].Verdict != Fail || !strings.Contains(got[0].What, "handler kata has no program at /no/such/kata") {
		t.Errorf("one that is not: %+v", got)
	}
}

func TestWorst(t *testing.T) {
	for want, list := range map[string][]Check{OK: {{Verdict: OK}}, Warn: {{Verdict: Warn}, {Verdict: OK}}, Fail: {{Verdict: Warn}, {Verdict: Fail}, {Verdict: OK}}} {
		if got := Worst(list); got != want {
			t.Errorf("%v: %s, want %s", list, got, want)
		}
	}
}

func TestEvents(t *testing.T) {
	for _, c := range []struct {
		daemon  Daemon
		verdict string
		want    string
	}{
		{Daemon{}, OK, "nobody has changed the network"},
		{Daemon{Err: errors.New("away")}, OK, "not known"},
		{Daemon{Healed: []Healed{{"5m ago bridge pausa0 is gone", 1}}}, OK, "5m ago bridge pausa0 is gone"},
		{Daemon{Healed: []Healed{{"5s (x40 over 1h) ago rules", 40}}}, Warn, "again and again: 5s (x40 over 1h) ago rules"},
	} {
		if got := (Host{Daemon: c.daemon}).events(context.Background()); len(got) != 1 || got[0].Verdict != c.verdict || !strings.Contains(got[0].What, c.want) {
			t.Errorf("%+v: %+v", c.daemon, got)
		}
	}
}
