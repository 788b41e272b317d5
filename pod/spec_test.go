package pod

import (
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pausa-run/pausa/runtime"
)

func TestCommandLine(t *testing.T) {
	img := &ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}}
	for _, c := range []struct {
		name          string
		command, args []string
		img           *ocispec.ImageConfig
		want          string
	}{
		{"image's own", nil, nil, img, "/entry cmd"},
		{"args replace cmd", nil, []string{"a"}, img, "/entry a"},
		{"command replaces both", []string{"c"}, nil, img, "c"},
		{"both", []string{"c"}, []string{"a", "b"}, img, "c a b"},
		{"cmd alone", nil, nil, &ocispec.ImageConfig{Cmd: []string{"sh"}}, "sh"},
		{"nothing", nil, nil, &ocispec.ImageConfig{}, ""},
		{"empty word", []string{""}, nil, img, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := commandLine(&ContainerConfig{Command: c.command, Args: c.args}, c.img)
			if strings.Join(got, " ") != c.want || (err == nil) != (c.want != "") {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	got := environment(
		&ContainerConfig{Terminal: true, Env: []EnvVar{{"A", "mine"}, {"B", "x=y"}, {"HOSTNAME", "other"}}},
		&Config{Hostname: "web"},
		&ocispec.ImageConfig{Env: []string{"PATH=/bin", "A=image", "nonsense", "=x"}})
	want := []string{"PATH=/bin", "HOSTNAME=other", "TERM=xterm", "A=mine", "B=x=y"}
	if !slices.Equal(got, want) {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestWorkingDir(t *testing.T) {
	for _, c := range [][3]string{{"", "", "/"}, {"", "/img", "/img"}, {"/a", "/img", "/a"}, {"rel/../x", "", "/x"}, {"../../etc", "", "/etc"}} {
		if got := workingDir(&ContainerConfig{WorkingDir: c[0]}, &ocispec.ImageConfig{WorkingDir: c[1]}); got != c[2] {
			t.Errorf("%q, image %q: %q; want %q", c[0], c[1], got, c[2])
		}
	}
}

func TestUser(t *testing.T) {
	w := newWorld(t)
	w.images.config.User = "web"
	id := w.mustRun("web")
	group := int64(500)
	for i, c := range []struct {
		cfg      ContainerConfig
		uid, gid uint32
		groups   []uint32
	}{
		{ContainerConfig{}, 101, 102, []uint32{102, 300}},
		{ContainerConfig{User: "0"}, 0, 0, []uint32{0}},
		{ContainerConfig{User: "7", Group: &group}, 7, 500, []uint32{500}},
		{ContainerConfig{AdditionalGIDs: []int64{9, 300}}, 101, 102, []uint32{102, 300, 9}},
		{ContainerConfig{StrictGroups: true, AdditionalGIDs: []int64{9}}, 101, 102, []uint32{102, 9}},
	} {
		c.cfg.Name, c.cfg.Image, c.cfg.Attempt = "c", "busybox", uint32(i)
		cid, err := w.m.CreateContainer(t.Context(), id, c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		v, _ := w.m.Container(cid)
		slices.Sort(v.Groups)
		slices.Sort(c.groups)
		if v.UID != c.uid || v.GID != c.gid || !slices.Equal(v.Groups, c.groups) {
			t.Errorf("case %d: %d %d %v; want %d %d %v", i, v.UID, v.GID, v.Groups, c.uid, c.gid, c.groups)
		}
	}
}

func TestMountsGiveWay(t *testing.T) {
	w := newWorld(t)
	id := w.mustRun("web")
	cid, err := w.m.CreateContainer(t.Context(), id, ContainerConfig{Name: "c", Image: "busybox", Mounts: []runtime.Mount{{Source: "/x", Destination: "/etc/hosts/"}}})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range w.keeper.ctrs[cid].spec.Spec.Mounts {
		if strings.TrimSuffix(m.Destination, "/") == "/etc/hosts" {
			n++
			if m.Source != "/x" {
				t.Errorf("hosts comes from %s; want the container's own mount", m.Source)
			}
		}
	}
	if n != 1 {
		t.Errorf("%d mounts at /etc/hosts; want one", n)
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN+3": 37, "SIGRTMIN": 34, "RTMAX": 64, "SIGCLD": 17, "SIGIOT": 6, "SIGPOLL": 29, "SIGRTMAX-1": 63, "QUIT": 3, "nonsense": 15, "": 15, "99": 15, "-1": 15,
	} {
		if got := parseSignal(s); got != want {
			t.Errorf("%q: %d; want %d", s, got, want)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*Config)
		want string // in the error; "" is none
	}{
		"good":           {func(*Config) {}, ""},
		"no name":        {func(c *Config) { c.Name = "" }, "pod name"},
		"dots":           {func(c *Config) { c.Name = ".." }, "pod name"},
		"slash":          {func(c *Config) { c.Namespace = "a/b" }, "pod namespace"},
		"semicolon":      {func(c *Config) { c.UID = "a;K8S_POD_NAME=b" }, "pod uid"},
		"newline":        {func(c *Config) { c.Name = "a\n" }, "pod name"},
		"NUL":            {func(c *Config) { c.Name = "a\x00b" }, "pod name"},
		"long":           {func(c *Config) { c.Name = strings.Repeat("a", 300) }, "pod name"},
		"long hostname":  {func(c *Config) { c.Hostname = strings.Repeat("a", 65) }, "hostname"},
		"relative logs":  {func(c *Config) { c.LogDirectory = "logs" }, "log directory"},
		"logs with ..":   {func(c *Config) { c.LogDirectory = "/var/../etc" }, "log directory"},
		"host sysctl":    {func(c *Config) { c.HostNetwork, c.Sysctls = true, map[string]string{"net/ipv4/ip_forward": "1"} }, "sysctl"},
		"alias address":  {func(c *Config) { c.HostAliases = []HostAlias{{IP: "x", Hostnames: []string{"a"}}} }, "host alias"},
		"alias newline":  {func(c *Config) { c.HostAliases = []HostAlias{{IP: "1.2.3.4", Hostnames: []string{"a\n6.6.6.6 b"}}} }, "host alias"},
		"alias no names": {func(c *Config) { c.HostAliases = []HostAlias{{IP: "1.2.3.4"}} }, "host alias"},
		"server":         {func(c *Config) { c.DNS = &DNS{Servers: []string{"ns1"}} }, "DNS server"},
		"search":         {func(c *Config) { c.DNS = &DNS{Searches: []string{"a b"}} }, "DNS searches"},
		"userns on host": {func(c *Config) { c.HostNetwork, c.UIDMaps = true, []runtime.IDMap{{Size: 1}} }, "user namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := podConfig("web")
			c.edit(&cfg)
			err := cfg.check()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
}

func TestResolvConf(t *testing.T) {
	got, err := resolvConf(&Config{DNS: &DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5"}}})
	if want := "search a b\nnameserver 10.96.0.10\noptions ndots:5\n"; got != want || err != nil {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if got := withoutLoopback("nameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\nsearch x\n"); got != "nameserver 192.0.2.1\nsearch x\n" {
		t.Errorf("%q; want the loopback servers gone", got)
	}
}

func TestHosts(t *testing.T) {
	cfg := podConfig("web")
	cfg.HostAliases = []HostAlias{{IP: "192.0.2.1", Hostnames: []string{"a", "b"}}}
	got := hosts(&cfg, []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")})
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "10.0.0.2\tweb\n", "fd00::2\tweb\n", "192.0.2.1\ta\tb\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no line %q in\n%s", want, got)
		}
	}
	cfg.Domain = "db.default.svc.cluster.local"
	if got, want := hosts(&cfg, []netip.Addr{netip.MustParseAddr("10.0.0.2")}), "10.0.0.2\tweb.db.default.svc.cluster.local\tweb\n"; !strings.Contains(got, want) {
		t.Errorf("no line %q in\n%s", want, got)
	}
	if cfg.Domain = "x\n192.0.2.66 other"; cfg.check() == nil {
		t.Error("a domain of two lines is accepted")
	}
}
