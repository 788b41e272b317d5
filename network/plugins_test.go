package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

func attach(t testing.TB, m *Manager, id string) (Result, error) {
	t.Helper()
	p := hosttest.New(t)
	must(m.Pin(id, p.Tid))
	return m.Attach(t.Context(), Pod{ID: id, Name: "name", Namespace: "ns", UID: "uid", Ports: []PortMapping{{HostPort: 80, ContainerPort: 81}}})
}

func TestEveryVersionOfResults(t *testing.T) {
	h := hosttest.New(t)
	for _, version := range []string{"", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		change, _, log := fakeNetwork(t, version, fakeConf{Type: "fake", Capabilities: map[string]bool{"portMappings": true}})
		m := newManager(t, h, change)
		must0(t, m.Status(t.Context()))
		log()
		r, err := attach(t, m, "aaaa")
		if err != nil || fmt.Sprint(r.IPs) != "[10.1.2.3 fd01::3]" {
			t.Errorf("version %q: got %v, %v", version, r.IPs, err)
		}
		if err := m.Check(t.Context(), "aaaa"); err != nil {
			t.Errorf("version %q: check: %v", version, err)
		}
		must0(t, m.GC(t.Context(), map[string]bool{"aaaa": true}))
		detach(t, m, "aaaa")
		calls := log()
		args := "args=IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=name;K8S_POD_INFRA_CONTAINER_ID=aaaa;K8S_POD_UID=uid "
		ports := `runtime={"portMappings":[{"containerPort":81,"hostPort":80,"protocol":"tcp"}]}`
		for _, command := range []string{"ADD prev=false", "DEL prev=" + fmt.Sprint(version >= "0.4.0")} {
			if !strings.Contains(calls, "fake "+command+" "+args+ports+" netns=true") {
				t.Errorf("version %q: no %s with all arguments in:\n%s", version, command, calls)
			}
		}
		wantNothing(t, h, m)
	}
}

func TestFailedAddIsUndone(t *testing.T) {
	h := hosttest.New(t)
	for mode, want := range map[string]string{"fail": "fake speaks to standard error", "garbage": "invalid character", "noaddress": "gave the pod no address", "hang": "deadline exceeded"} {
		change, _, log := fakeNetwork(t, "1.0.0", fakeConf{Type: "fake"}, fakeConf{Type: "fake2", Mode: map[string]string{"ADD": mode}})
		m := newManager(t, h, change)
		p := hosttest.New(t)
		must(m.Pin("aaaa", p.Tid))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if mode == "hang" {
			cancel()
			ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
		}
		before := sleepers()
		_, err := m.Attach(ctx, Pod{ID: "aaaa", Name: "n", Namespace: "ns", UID: "u"})
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", mode, err, want)
		}
		noSleepers(t, before)
		calls := log()
		for _, c := range []string{"fake ADD", "fake2 ADD", "fake2 DEL", "fake DEL"} {
			if strings.Count(calls, c+" ") != 1 {
				t.Errorf("%s: want one %s in:\n%s", mode, c, calls)
			}
		}
		detach(t, m, "aaaa")
		if calls := log(); calls != "" {
			t.Errorf("%s: after the undo: %s", mode, calls)
		}
		wantNothing(t, h, m)
	}
}

func TestFailedDelKeepsTheAttempt(t *testing.T) {
	h := hosttest.New(t)
	change, confDir, log := fakeNetwork(t, "1.0.0", fakeConf{Type: "fake"}, fakeConf{Type: "fake2", Mode: map[string]string{"DEL": "fail"}})
	var opts Options
	m := newManager(t, h, change, func(o *Options) { opts = *o })
	_, err := attach(t, m, "aaaa")
	must0(t, err)
	log()
	if err := m.Detach(t.Context(), "aaaa"); err == nil || !strings.Contains(err.Error(), "fake fails") {
		t.Fatalf("got %v", err)
	}
	// The chain stopped at fake2; the other one's DEL must have been called all the same, with the result.
	if calls := log(); !strings.Contains(calls, "fake DEL prev=true") {
		t.Errorf("calls:\n%s", calls)
	}
	if a := must(m.loadAttempt("aaaa")); a == nil || a.Problem == "" || !isNamespace(m.netns("aaaa")) {
		t.Fatalf("attempt: %+v", a)
	}
	// The network's file may have gone or changed: the recorded one counts.
	must0(t, os.Remove(filepath.Join(confDir, "10-fake.conflist")))
	a := must(m.loadAttempt("aaaa"))
	a.Conf = json.RawMessage(strings.ReplaceAll(string(a.Conf), `"DEL":"fail"`, `"DEL":""`))
	must0(t, m.saveAttempt(a))
	m2 := openManager(t, h, opts) // as after a restart of the daemon
	must0(t, m2.GC(t.Context(), nil))
	if calls := log(); !strings.Contains(calls, "fake2 DEL prev=true") {
		t.Errorf("calls:\n%s", calls)
	}
	wantNothing(t, h, m2)
}

func TestCrashBetweenRecordAndAdd(t *testing.T) {
	h := hosttest.New(t)
	var opts Options
	m := newManager(t, h, func(o *Options) { opts = *o })
	for _, id := range []string{"aaaa", "bbbb"} {
		p := hosttest.New(t)
		must(m.Pin(id, p.Tid))
		list := must(m.confList())
		must0(t, m.saveAttempt(&attempt{Version: attemptVersion, Boot: m.boot, Created: time.Now(), Pod: Pod{ID: id, Name: "n", Namespace: "ns", UID: "u"}, Network: list.Name, Conf: list.Bytes}))
	}
	r, err := m.Attach(t.Context(), Pod{ID: "aaaa", Name: "n", Namespace: "ns", UID: "u"})
	if err != nil || len(r.IPs) != 2 {
		t.Fatalf("attach after the crash: %v, %v", r, err)
	}
	m2 := openManager(t, h, opts)
	must0(t, m2.GC(t.Context(), map[string]bool{"aaaa": true}))
	if a := must(m2.loadAttempt("bbbb")); a != nil {
		t.Errorf("attempt of bbbb is left: %+v", a)
	}
	must0(t, m2.Check(t.Context(), "aaaa"))
	detach(t, m2, "aaaa")
	wantNothing(t, h, m2)
}

// The records of the built-in plugin can be lost or left by a crash: GC puts it right.
func TestGCOfTheBuiltInNetwork(t *testing.T) {
	h := hosttest.New(t)
	var opts Options
	m := newManager(t, h, func(o *Options) { opts = *o })
	newPod(t, m, "aaaa", PortMapping{HostPort: 8080, ContainerPort: 80})
	newPod(t, m, "bbbb", PortMapping{HostPort: 8081, ContainerPort: 80})
	newPod(t, m, "cccc")
	must0(t, m.forgetAttempt("bbbb"))                            // DEL was never called
	must0(t, os.Remove(m.path("ipam/pausa/attached/cccc:eth0"))) // crash before the record
	must0(t, m.forgetAttempt("cccc"))
	must0(t, os.Symlink("dddd:eth0", m.path("ipam/pausa/addresses/10.9.0.77")))
	must0(t, os.Symlink("dddd:eth0/ns/dddd", m.path("ipam/pausa/ports/tcp-99-0.0.0.0")))
	m2 := openManager(t, h, opts)
	must0(t, m2.GC(t.Context(), map[string]bool{"aaaa": true}))
	must0(t, m2.Check(t.Context(), "aaaa"))
	detach(t, m2, "aaaa")
	wantNothing(t, h, m2)
}

func TestGCLeavesYoungPodsAlone(t *testing.T) {
	h := hosttest.New(t)
	m := newManager(t, h)
	newPod(t, m, "aaaa")
	p := hosttest.New(t)
	must(m.Pin("bbbb", p.Tid))
	must0(t, m.GC(t.Context(), nil)) // a list from before they were made
	must0(t, m.Check(t.Context(), "aaaa"))
	if !isNamespace(m.netns("bbbb")) {
		t.Error("the pin of bbbb has gone")
	}
	detach(t, m, "aaaa")
	detach(t, m, "bbbb")
	wantNothing(t, h, m)
}

func TestStatusAndBadFiles(t *testing.T) {
	h := hosttest.New(t)
	change, dir, _ := fakeNetwork(t, "1.1.0", fakeConf{Type: "fake", Mode: map[string]string{"STATUS": "fail"}})
	m := newManager(t, h, change)
	status := func(want string) {
		t.Helper()
		err := m.Status(t.Context())
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	status("fake fails")
	write := func(name, content string) { must0(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)) }
	write("05-first.conf", `{"cniVersion":"0.3.1","name":"single","type":"absent"}`)
	status(`find plugin absent`)
	write("05-first.conf", `{`)
	status("fake fails") // the next valid one
	must0(t, os.Remove(filepath.Join(dir, "10-fake.conflist")))
	status("05-first.conf")
	must0(t, os.Remove(filepath.Join(dir, "05-first.conf")))
	write("99-notes.txt", "no configuration")
	status("") // the built-in network
}

func TestBadPodsAreRefused(t *testing.T) {
	h := hosttest.New(t)
	m := newManager(t, h)
	good := Pod{ID: "aaaa", Name: "n", Namespace: "ns", UID: "u"}
	for name, change := range map[string]func(*Pod){
		"id":         func(p *Pod) { p.ID = "../x" },
		"name":       func(p *Pod) { p.Name = "a;K8S_POD_NAME=b" },
		"namespace":  func(p *Pod) { p.Namespace = "a=b" },
		"uid":        func(p *Pod) { p.UID = "a\nb" },
		"bandwidth":  func(p *Pod) { p.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "fast"} },
		"no address": func(p *Pod) { p.Annotations = map[string]string{AnnotationIPs: "10.9.0.5,fd09"} },
		"group mac":  func(p *Pod) { p.Annotations = map[string]string{AnnotationMAC: "01:00:00:00:00:01"} },
		"no alias":   func(p *Pod) { p.Annotations = map[string]string{AnnotationAliases: "A_B"} },
		"no guid":    func(p *Pod) { p.Annotations = map[string]string{AnnotationGUID: "02:00:00:00:00:01"} },
		"incapable":  func(p *Pod) { p.Annotations = map[string]string{AnnotationAliases: "a"} },
		"no network": func(p *Pod) { p.Annotations = map[string]string{AnnotationNetwork: "blue"} },
		"not pinned": func(p *Pod) {},
	} {
		p := good
		change(&p)
		if _, err := m.Attach(t.Context(), p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	must0(t, os.WriteFile(m.netns("aaaa"), nil, 0o600)) // a pin whose mount has gone
	if _, err := m.Attach(t.Context(), good); err == nil || !strings.Contains(err.Error(), "not a network namespace") {
		t.Errorf("plain file instead of a namespace: %v", err)
	}
	detach(t, m, "aaaa")
	wantNothing(t, h, m)
}

func TestSetPodCIDRs(t *testing.T) {
	h := hosttest.New(t)
	var opts Options
	m := newManager(t, h, func(o *Options) { opts = *o })
	old, oldResult := newPod(t, m, "aaaa")
	var known []netip.Prefix
	m.FollowRanges(func(all []netip.Prefix) { known = all })
	if !slices.Equal(known, opts.PodCIDRs) {
		t.Errorf("ranges are %v, want %v", known, opts.PodCIDRs)
	}
	must0(t, m.SetPodCIDRs(must(prefixes("10.20.0.0/24"))))
	if want := append(slices.Clone(opts.PodCIDRs), netip.MustParsePrefix("10.20.0.0/24")); !slices.Equal(known, want) {
		t.Errorf("ranges are %v, want %v", known, want)
	}
	if err := m.SetPodCIDRs(must(prefixes("10.20.0.0/24", "10.20.0.128/25"))); err == nil {
		t.Error("ranges that overlap are accepted")
	}
	m2 := openManager(t, h, opts) // remembered over a restart
	young, r := newPod(t, m2, "bbbb")
	if fmt.Sprint(r.IPs) != "[10.20.0.2]" {
		t.Errorf("got %v", r.IPs)
	}
	old.Serve("old", "tcp", ap("[::]:80"))
	wantCall(t, young, "tcp", ap(oldResult.IPs[0].String()+":80"), "old 10.20.0.2")
	must0(t, m2.SetPodCIDRs(must(prefixes("10.30.0.0/24"))))
	m3 := openManager(t, h, opts) // pods of the range before are there still
	m3.FollowRanges(func(all []netip.Prefix) { known = all })
	if want := append(slices.Clone(opts.PodCIDRs), must(prefixes("10.30.0.0/24", "10.20.0.0/24"))...); !slices.Equal(known, want) {
		t.Errorf("ranges are %v, want %v", known, want)
	}
	detach(t, m3, "aaaa")
	detach(t, m3, "bbbb")
	wantNothing(t, h, m3)
}

// What another plugin says of a pod's addresses tells which ranges lie behind this host.
func TestRangesOfOtherPlugins(t *testing.T) {
	h := hosttest.New(t)
	change, _, _ := fakeNetwork(t, "1.0.0", fakeConf{Type: "fake"})
	m := newManager(t, h, change, func(o *Options) { o.PodCIDRs = must(prefixes("10.9.0.0/24")) })
	var known []netip.Prefix
	m.FollowRanges(func(all []netip.Prefix) { known = all })
	newPod(t, m, "aaaa")
	if want := must(prefixes("10.9.0.0/24", "fd01::/64", "10.1.2.0/24")); !slices.Equal(known, want) {
		t.Errorf("ranges are %v, want %v", known, want)
	}
	detach(t, m, "aaaa")
}

func TestRangesBehind(t *testing.T) {
	ip := func(addr string) *types100.IPConfig {
		a, n, err := net.ParseCIDR(addr)
		must0(t, err)
		n.IP = a
		return &types100.IPConfig{Address: *n}
	}
	here, pod := &types100.Interface{Name: "cni0"}, &types100.Interface{Name: "eth0", Sandbox: "x"}
	for _, c := range []struct {
		what   string
		ifaces []*types100.Interface
		ip     string
		want   string
	}{
		{"a bridge", []*types100.Interface{here, pod}, "10.1.2.3/24", "[10.1.2.0/24]"},
		{"macvlan", []*types100.Interface{pod}, "10.1.2.3/24", "[]"},
		{"an address alone", []*types100.Interface{here, pod}, "10.1.2.3/32", "[]"},
		{"an old version", nil, "10.1.2.3/24", "[]"},
		{"another's address", []*types100.Interface{here, pod}, "10.1.2.4/24", "[]"},
	} {
		r := &types100.Result{Interfaces: c.ifaces, IPs: []*types100.IPConfig{ip(c.ip), nil}}
		if got := fmt.Sprint(rangesBehind(r, []netip.Addr{netip.MustParseAddr("10.1.2.3")})); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}
