package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// load reads text as the settings file, with environment variables and flags.
func load(t *testing.T, text string, env, flags map[string]string) (*Config, map[string]Value, string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, list, err := Load(Source{File: file, Flags: flags, Env: func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	}})
	values := map[string]Value{}
	for _, v := range list {
		values[v.Key] = v
	}
	return c, values, file, err
}

func TestPrecedence(t *testing.T) {
	text := "# settings\nstate = \"/from/file\"\nrun = \"/from/file\"\n\n[log]\nlevel = \"warn\"\n\n[network]\n" +
		"pod_cidrs = [\n  \"10.1.0.0/16\",\n]\nmtu = 1400\ndns.enabled = false\n"
	env := map[string]string{"PAUSA_RUN": "/from/env/", "PAUSA_SOCKET": "/from/env.sock", "PAUSA_NETWORK_CNI_BIN_DIRS": "/a, /b"}
	c, values, file, err := load(t, text, env, map[string]string{"socket": "/from/flag.sock"})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]Value{
		"state":                {"state", "/from/file", file + ":2"},
		"run":                  {"run", "/from/env/", "env PAUSA_RUN"},
		"socket":               {"socket", "/from/flag.sock", "flag --socket"},
		"log.level":            {"log.level", "warn", file + ":6"},
		"log.format":           {"log.format", "text", "default"},
		"network.pod_cidrs":    {"network.pod_cidrs", "10.1.0.0/16", file + ":9"},
		"network.mtu":          {"network.mtu", "1400", file + ":12"},
		"network.dns.enabled":  {"network.dns.enabled", "false", file + ":13"},
		"network.cni_bin_dirs": {"network.cni_bin_dirs", "/a, /b", "env PAUSA_NETWORK_CNI_BIN_DIRS"},
	} {
		if values[key] != want {
			t.Errorf("%s is %+v, want %+v", key, values[key], want)
		}
	}
	if c.State != "/from/file" || c.Run != "/from/env" || c.Socket != "/from/flag.sock" || c.MTU != 1400 || c.DNS ||
		len(c.PodCIDRs) != 1 || len(c.CNIBinDirs) != 2 || c.CNIBinDirs[1] != "/b" {
		t.Errorf("settings: %+v", c)
	}
}

func TestSocketFollowsRun(t *testing.T) {
	c, values, _, err := load(t, "run = \"/r\"\n", nil, nil)
	if err != nil || c.Socket != "/r/pausa.sock" || values["socket"].Source != "default" {
		t.Errorf("socket %q from %q, %v", c.Socket, values["socket"].Source, err)
	}
}

func TestDefaultFileLoads(t *testing.T) {
	c, values, file, err := load(t, Default(), nil, nil)
	if err != nil {
		t.Fatalf("%v in\n%s", err, Default())
	}
	for _, s := range settings() {
		v := values[s.key]
		if v.Value != s.initial || !strings.HasPrefix(v.Source, file+":") || strings.HasSuffix(v.Source, ":0") {
			t.Errorf("%s: %q from %q, want %q", s.key, v.Value, v.Source, s.initial)
		}
	}
	if c.NodePortMin != 30000 || c.NodePortMax != 32767 || len(c.ServiceCIDRs) != 2 {
		t.Errorf("settings: %+v", c)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"stat = \"/x\"\n", ":1: unknown setting stat: did you mean state?"},
		{"\n[images]\nregistry_confg = \"/x\"\n", ":3: unknown setting images.registry_confg: did you mean images.registry_config?"},
		{"images.registry_confg = \"/x\"\n", ":1: unknown setting images.registry_confg: did you mean images.registry_config?"},
		{"[netwrk]\nmtu = 1\n", ":1: unknown setting netwrk: "},
		{"[log]\nmtu = 1400\ndns.enabled = false\n", ":2: unknown setting log.mtu: did you mean network.mtu?"},
		{"[metrics]\naddress = \"0.0.0.0:9477\"\n", "neither unix:///PATH nor an address of loopback"},
		{"[metrics]\naddress = \"127.0.0.1:0\"\n", "neither unix:///PATH nor an address of loopback"},
		{"[zzzz]\nqqqq = 1\n", ":1: unknown setting zzzz: 'pausa config --default' prints all"},
		{"state = 5\n", ":1: state: must be a text in quotes"},
		{"state = \"x\"\n", ":1: state = \"x\": is not an absolute path"},
		{"socket = \"/" + strings.Repeat("x", 110) + "\"\n", "longer than the 107 bytes"},
		{"[network]\nmtu = \"x\"\n", ":2: network.mtu: must be a number"},
		{"[network]\nmtu = 5\n", ":2: network.mtu = \"5\": must be 0 or a number from 1280"},
		{"[network]\npod_cidrs = [1]\n", ":2: network.pod_cidrs: must be a list of texts"},
		{"[network]\npod_cidrs = [\"10.0.0.1/16\"]\n", "has bits beyond its prefix: write 10.0.0.0/16"},
		{"[network]\npod_cidrs = [\"10.0.0.0/16\", \"10.0.128.0/17\"]\n", "overlap: choose separate ranges"},
		{"[network]\nservice_cidrs = [\"10.0.0.0/16\", \"10.1.0.0/16\"]\n", "one range per family"},
		{"[network]\nfurther = [\"blue\"]\n", "want a name and its ranges"},
		{"[network]\nfurther = [\"blue 10.90.0.1/24\"]\n", "write 10.90.0.0/24"},
		{"[network]\nfurther = [\"blue 10.90.0.0/24\", \"green 10.90.0.0/25\"]\n", "network.further blue 10.90.0.0/24 and network.further green 10.90.0.0/25 overlap"},
		{"[network]\nconnected = [\"blue\"]\n", "want the names of two networks"},
		{"[network]\nroutes = [\"10.89.0.0/16 by 192.0.2.2\"]\n", "RANGE via ADDRESS"},
		{"[network]\nroutes = [\"10.89.0.0/16 via fd00::1\"]\n", "want addresses of one family"},
		{"[network]\nroutes = [\"10.88.1.0/24 via 192.0.2.2\"]\n", "addresses are this host's own"},
		{"[network]\npod_cidrs = []\n", "must hold one range at least"},
		{"[network]\npod_cidrs = [\"x\"]\n", "is not a range of addresses"},
		{"[network]\nservice_cidrs = [\"10.88.4.0/24\"]\n", "overlap: choose separate ranges"},
		{"[network]\nnode_port_range = \"9-1\"\n", "is not a range of ports"},
		{"[network]\nbridge = \"a-name-that-is-too-long\"\n", "is not a link name"},
		{"[network]\ncni_bin_dirs = [\"bin\"]\n", "is not an absolute path"},
		{"[cgroup]\nparent = \"/\"\n", "must not be the root group"},
		{"[network.dns]\nenabled = \"yes\"\n", ":2: network.dns.enabled: must be true or false"},
		{"[network]\ndns.domain = \"a..b\"\n", ":2: network.dns.domain = \"a..b\": is not a domain"},
		{"[network.dns]\ndomian = \"x\"\n", ":2: unknown setting network.dns.domian: did you mean network.dns.domain?"},
		{"[dns]\nenabled = true\n", ":1: unknown setting dns"},
		{"[node]\nname = \"Not A Name\"\n", "is not a DNS name"},
		{"[log]\nlevel = \"loud\"\n", "must be one of debug, info, warn, error"},
		{"state = \n", ":1: "},
		{"state = \"/a\"\nstate = \"/b\"\n", ":2: "},
	} {
		_, _, file, err := load(t, c.text, nil, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q in it", c.text, err, c.want)
		}
		if err != nil && strings.HasPrefix(c.want, ":") && !strings.Contains(err.Error(), file+c.want) {
			t.Errorf("%q: %v does not name the file", c.text, err)
		}
	}
}

func TestNetworks(t *testing.T) {
	c, _, _, err := load(t, `[network]
pod_cidrs = ["10.88.0.0/24", "10.89.0.0/24", "fd88::/64"]
further = ["blue 10.90.0.0/24 fd90::/64", "green 10.91.0.0/24"]
connected = ["blue pausa"]
routes = ["10.88.0.0/16 via 192.0.2.2", "fd99::/64"]
`, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(c.PodCIDRs, c.Networks, c.Connected, c.Routes)
	if want := "[10.88.0.0/24 10.89.0.0/24 fd88::/64] [{blue [10.90.0.0/24 fd90::/64]} {green [10.91.0.0/24]}] [[blue pausa]]" +
		" [{10.88.0.0/16 192.0.2.2} {fd99::/64 invalid IP}]"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestEveryErrorIsTold(t *testing.T) {
	_, _, _, err := load(t, "stat = \"/x\"\n[log]\nlevel = \"loud\"\n", map[string]string{"PAUSA_NETWORK_MTU": "x"}, nil)
	for _, want := range []string{"stat:", "log.level", "env PAUSA_NETWORK_MTU: network.mtu"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}

func TestMissingFile(t *testing.T) {
	_, _, err := Load(Source{File: "/no/such/file", Env: func(string) (string, bool) { return "", false }})
	if err == nil || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("error: %v", err)
	}
}

func TestUnknownEnv(t *testing.T) {
	got := UnknownEnv([]string{"PATH=/bin", "PAUSA_STATE=/x", "PAUSA_CONFIG=/y", "PAUSA_LOG_LEVL=debug", "PAUSA_XYZZY_PLUGH=1"})
	if len(got) != 2 || got[0] != "PAUSA_LOG_LEVL (did you mean PAUSA_LOG_LEVEL?)" || got[1] != "PAUSA_XYZZY_PLUGH" {
		t.Errorf("unknown: %q", got)
	}
}
