package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

// The test binary is also the plugin, by the name it is called by.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == Type {
		os.Exit(PluginMain(os.Stdin, os.Stdout, os.Environ()))
	}
	os.Exit(hosttest.Main(m))
}

func newPlugin(t testing.TB, h *hosttest.Host) *Plugin {
	t.Helper()
	var p *Plugin
	h.Must(func() (err error) {
		p, err = New(nil)
		return err
	})
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func confOf(dataDir, version, more string) []byte {
	return fmt.Appendf(nil, `{"cniVersion":%q,"name":"net","type":"pausa","bridge":"br0","ranges":["10.5.0.0/28","fd05::/120"],"dataDir":%q%s}`, version, dataDir, more)
}

func request(command, id string, pod *hosttest.Host, conf []byte) Request {
	return Request{Command: command, ContainerID: id, NetNS: pod.NetNS(), IfName: "eth0", Stdin: conf}
}

// state is all that a host has of the plugin, to be compared.
func state(t testing.TB, h *hosttest.Host, p *Plugin, dataDir string) string {
	t.Helper()
	p.Drain()
	var out strings.Builder
	links, err := h.Net.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		fmt.Fprintln(&out, "link", l.Attrs().Name)
		neighbours, err := h.Net.NeighList(l.Attrs().Index, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range neighbours {
			if n.State == netlink.NUD_PERMANENT && !n.IP.IsMulticast() {
				fmt.Fprintln(&out, "neighbour", n.IP)
			}
		}
	}
	err = filepath.WalkDir(dataDir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !strings.Contains(path, "/cursor/") {
			fmt.Fprintln(&out, "file", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rules, err := h.Run("nft", "--stateless", "list", "ruleset")
	if err != nil {
		t.Fatalf("list rules: %v: %s", err, rules)
	}
	return out.String() + rules
}

func TestFailedAddLeavesNothing(t *testing.T) {
	h := hosttest.New(t)
	p := newPlugin(t, h)
	dir := t.TempDir()
	good := confOf(dir, "1.1.0", "")
	if _, err := p.Run(t.Context(), request("STATUS", "", h, good)); err != nil {
		t.Fatal(err)
	}
	before := state(t, h, p, dir)
	run := func(what string, prepare func(pod *hosttest.Host) Request, want string) {
		t.Helper()
		_, err := p.Run(t.Context(), prepare(hosttest.New(t)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", what, err, want)
		}
		if after := state(t, h, p, dir); after != before {
			t.Errorf("%s: left\n%s\nwas\n%s", what, after, before)
		}
	}
	h.Serve("listener", "tcp", netip.MustParseAddrPort("0.0.0.0:80"))
	run("no namespace", func(*hosttest.Host) Request {
		return Request{Command: "ADD", ContainerID: "a", IfName: "eth0", NetNS: dir, Stdin: good}
	}, "not a namespace")
	run("bad port", func(pod *hosttest.Host) Request {
		return request("ADD", "a", pod, confOf(dir, "1.1.0", `,"runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":1}]}`))
	}, "want 1 to 65535")
	run("port in use", func(pod *hosttest.Host) Request {
		return request("ADD", "a", pod, confOf(dir, "1.1.0", `,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":1,"protocol":"tcp"}]}`))
	}, fmt.Sprintf("(pid %d)", os.Getpid()))
	run("interface exists", func(pod *hosttest.Host) Request {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		if err := pod.Net.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			t.Fatal(err)
		}
		return request("ADD", "a", pod, good)
	}, "exists already")
	run("pod cannot be configured", func(pod *hosttest.Host) Request {
		r := request("ADD", "a", pod, good)
		r.IfName = "all" // the kernel makes such a link but gives it no IPv6
		return r
	}, "all")
	run("not first", func(pod *hosttest.Host) Request {
		return request("ADD", "a", pod, confOf(dir, "1.1.0", `,"prevResult":{"cniVersion":"1.1.0"}`))
	}, "must be the first")
	run("version", func(pod *hosttest.Host) Request { return request("ADD", "a", pod, confOf(dir, "9.9.9", "")) }, "incompatible")
	run("command", func(pod *hosttest.Host) Request { return request("MOVE", "a", pod, good) }, "unknown CNI_COMMAND")
}

func TestFullRangeWaitsForDeletions(t *testing.T) {
	h := hosttest.New(t)
	p := newPlugin(t, h)
	conf := confOf(t.TempDir(), "1.1.0", "")
	n := usable(netip.MustParsePrefix("10.5.0.0/28"))
	pods := make([]*hosttest.Host, n+1)
	for i := range pods {
		pods[i] = hosttest.New(t)
	}
	for i := range n {
		if _, err := p.Run(t.Context(), request("ADD", fmt.Sprint("p", i), pods[i], conf)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.Run(t.Context(), request("ADD", "more", pods[n], conf))
	if err == nil || !strings.Contains(err.Error(), "no free address in 10.5.0.0/28") {
		t.Fatalf("got %v", err)
	}
	var full *types.Error
	if _, err := p.Run(t.Context(), request("STATUS", "", h, conf)); !errors.As(err, &full) || full.Code != types.ErrLimitedConnectivity {
		t.Errorf("status: %v", err)
	}
	if _, err := p.Run(t.Context(), request("DEL", "p3", pods[3], conf)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Run(t.Context(), request("ADD", "more", pods[n], conf)); err != nil {
		t.Errorf("the address of p3 is not free: %v", err)
	}
}

func TestCheckSeesDamage(t *testing.T) {
	h := hosttest.New(t)
	p := newPlugin(t, h)
	conf := confOf(t.TempDir(), "1.1.0", `,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":1,"protocol":"tcp"}]}`)
	for what, damage := range map[string][]string{
		"lost address":  {"pod", "ip", "-4", "addr", "flush", "dev", "eth0"},
		"default route": {"pod", "ip", "route", "del", "default"},
		"belongs to":    {"host", "sh", "-c", "rm " + filepath.Dir(filepath.Dir(stringOf(conf, "dataDir"))) + "/*/*/net/addresses/10.*"},
		"not a port":    {"host", "sh", "-c", "ip link show type veth | grep -o 'pv[0-9a-f]*' | xargs -I{} ip link set {} nomaster"},
		"host port":     {"host", "nft", "flush", "map", "inet", "pausa", "hostports-any4-br0"},
		"anti-spoofing": {"host", "nft", "flush", "set", "bridge", "pausa", "sources6-br0"},
		"bridge br0":    {"host", "ip", "link", "del", "br0"},
	} {
		pod := hosttest.New(t)
		if _, err := p.Run(t.Context(), request("ADD", "a", pod, conf)); err != nil {
			t.Fatal(what, err)
		}
		if _, err := p.Run(t.Context(), request("CHECK", "a", pod, conf)); err != nil {
			t.Errorf("before %s: %v", what, err)
		}
		on := map[string]*hosttest.Host{"pod": pod, "host": h}[damage[0]]
		if out, err := on.Run(damage[1], damage[2:]...); err != nil {
			t.Fatalf("%s: %v: %s", what, err, out)
		}
		if _, err := p.Run(t.Context(), request("CHECK", "a", pod, conf)); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: got %v", what, err)
		}
		if _, err := p.Run(t.Context(), request("DEL", "a", pod, conf)); err != nil {
			t.Errorf("%s: DEL: %v", what, err)
		}
		p.Drain()
	}
}

func stringOf(conf []byte, key string) string {
	var m map[string]any
	if err := json.Unmarshal(conf, &m); err != nil {
		panic(err)
	}
	return m[key].(string)
}

// The plugin as a program, called by libcni as any other plugin.
func TestAsExecutable(t *testing.T) {
	bin, cache, dir := t.TempDir(), t.TempDir(), t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, Type)); err != nil {
		t.Fatal(err)
	}
	h, pod := hosttest.New(t), hosttest.New(t)
	cni := libcni.NewCNIConfigWithCacheDir([]string{bin}, cache, nil)
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":"net","plugins":[%s]}`, v, confOf(dir, v, `,"capabilities":{"portMappings":true}`)))
		if err != nil {
			t.Fatal(err)
		}
		rt := &libcni.RuntimeConf{ContainerID: "abc", NetNS: pod.NetNS(), IfName: "eth0", CapabilityArgs: map[string]any{
			"portMappings": []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}},
		}}
		h.Must(func() error { // plugins start in the namespace of the thread that calls libcni
			raw, err := cni.AddNetworkList(context.Background(), list, rt)
			if err != nil {
				return err
			}
			r, err := types100.NewResultFromResult(raw)
			if err != nil || len(r.IPs) != 2 || len(r.Interfaces) != 3 || raw.Version() != v {
				t.Errorf("%s: result %v, %v", v, raw, err)
			}
			if v != "0.3.1" {
				if err := cni.CheckNetworkList(context.Background(), list, rt); err != nil {
					t.Errorf("%s: check: %v", v, err)
				}
			}
			if err := cni.GetStatusNetworkList(context.Background(), list); err != nil {
				t.Errorf("%s: status: %v", v, err)
			}
			_, err = cni.AddNetworkList(context.Background(), list, rt)
			if err == nil || !strings.Contains(err.Error(), "call DEL first") {
				t.Errorf("%s: second ADD: %v", v, err)
			}
			for range 2 {
				if err := cni.DelNetworkList(context.Background(), list, rt); err != nil {
					t.Errorf("%s: DEL: %v", v, err)
				}
			}
			return cni.GCNetworkList(context.Background(), list, nil)
		})
	}
	if after := left(t, &store{filepath.Join(dir, "net")}); after != 0 {
		t.Errorf("%d entries are left", after)
	}
}

// An ADD that is killed at any moment leaves what GC finds and removes.
func TestKilledAdds(t *testing.T) {
	h := hosttest.New(t)
	p := newPlugin(t, h)
	bin, dir := t.TempDir(), t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, Type)); err != nil {
		t.Fatal(err)
	}
	conf := confOf(dir, "1.1.0", `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":1,"protocol":"tcp"}]}`)
	if _, err := p.Run(t.Context(), request("STATUS", "", h, conf)); err != nil {
		t.Fatal(err)
	}
	before := state(t, h, p, dir)
	seen := map[int]int{}
	for i := range 40 { // more than the range has addresses
		pod := hosttest.New(t)
		h.Must(func() error {
			cmd := exec.Command(filepath.Join(bin, Type))
			cmd.Env = []string{"CNI_COMMAND=ADD", fmt.Sprint("CNI_CONTAINERID=k", i), "CNI_NETNS=" + pod.NetNS(), "CNI_IFNAME=eth0"}
			cmd.Stdin = bytes.NewReader(conf)
			if err := cmd.Start(); err != nil {
				return err
			}
			time.Sleep(time.Duration(i) * 500 * time.Microsecond)
			if err := cmd.Process.Kill(); err != nil {
				return err
			}
			_ = cmd.Wait() // killed, or it was faster
			return nil
		})
		seen[left(t, &store{filepath.Join(dir, "net")})]++
		if _, err := p.Run(t.Context(), request("GC", "", h, conf)); err != nil {
			t.Fatal(err)
		}
		if after := state(t, h, p, dir); after != before {
			t.Fatalf("killed after %d ms: left\n%s\nwas\n%s", i/2, after, before)
		}
	}
	t.Logf("entries that the killed ones had: times %v", seen)
}

func TestErrorsAndVersionOfTheExecutable(t *testing.T) {
	var out bytes.Buffer
	if status := PluginMain(strings.NewReader(`{"cniVersion":"1.0.0"}`), &out, []string{"CNI_COMMAND=VERSION"}); status != 0 {
		t.Error("VERSION failed")
	}
	decoder := version.PluginDecoder{}
	if info, err := decoder.Decode(out.Bytes()); err != nil || !strings.Contains(fmt.Sprint(info.SupportedVersions()), "1.1.0") {
		t.Errorf("version: %s, %v", out.String(), err)
	}
	for want, env := range map[string][]string{
		"CNI_CONTAINERID":             {"CNI_COMMAND=ADD", "CNI_CONTAINERID=../x", "CNI_NETNS=/x", "CNI_IFNAME=eth0"},
		"CNI_IFNAME":                  {"CNI_COMMAND=ADD", "CNI_CONTAINERID=x", "CNI_NETNS=/x", "CNI_IFNAME=a/b"},
		"CNI_NETNS":                   {"CNI_COMMAND=ADD", "CNI_CONTAINERID=x", "CNI_IFNAME=eth0"},
		"unknown CNI_COMMAND":         {},
		"check network configuration": {"CNI_COMMAND=STATUS"},
	} {
		out.Reset()
		status := PluginMain(strings.NewReader(`{"cniVersion":"1.0.0","name":"n"}`), &out, env)
		var e struct {
			CNIVersion, Msg string
			Code            uint
		}
		if err := json.Unmarshal(out.Bytes(), &e); err != nil || status != 1 || e.Code == 0 || e.CNIVersion != "1.0.0" || !strings.Contains(e.Msg, want) {
			t.Errorf("%s: status %d, %s, %v", want, status, out.String(), err)
		}
	}
}
