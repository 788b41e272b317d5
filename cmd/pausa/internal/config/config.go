// Package config reads the daemon's settings: defaults, then one TOML file,
// then environment variables, then flags, each overriding the one before. It
// remembers where every value came from.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pausa-run/pausa/internal/nearest"
)

// DefaultFile is read when no other file is named; it need not exist.
const DefaultFile = "/etc/pausa/config.toml"

// Config is every setting of the daemon, checked.
type Config struct {
	State  string
	Run    string
	Socket string

	LogLevel  string // "debug", "info", "warn", "error"
	LogFormat string // "text", "json"

	RegistryConfig string
	Images         ImagePolicy

	PodCIDRs      []netip.Prefix
	Bridge        string
	MTU           int         // 0: from the egress route
	Networks      []Network   // besides the first one
	Connected     [][2]string // pairs of networks, by name
	Routes        []Route
	CNIConfDir    string
	CNIBinDirs    []string
	ServiceCIDRs  []netip.Prefix
	BalancerCIDRs []netip.Prefix // none: the host's own addresses
	NodePortMin   uint16
	NodePortMax   uint16
	Firewall      string // "kernel", "print"
	DNS           bool   // serve names of Services and pods
	DNSDomain     string // "cluster.local"
	DNSAllPods    bool   // names for a kubelet's pods, too

	Runtimes Runtimes
	CDIDirs  []string

	SeccompProfiles string // folder

	MetricsAddress string // "unix://PATH" or a loopback "IP:PORT"; "": none

	CgroupParent string
	CgroupDriver string // "cgroupfs", "systemd"; "auto": systemd where it runs the host
	KeeperBinary string // "": pausa-keeper beside pausa
	NodeName     string // "": the host's name
}

// Value is one setting as it is in force.
type Value struct {
	Key    string `json:"key"`
	Value  string `json:"value"`  // lists are joined by commas
	Source string `json:"source"` // "default", "FILE:LINE", "env NAME" or "flag --NAME"
}

// Source is where Load looks.
type Source struct {
	File  string                           // "": DefaultFile, if it exists
	Env   func(name string) (string, bool) // as os.LookupEnv
	Flags map[string]string                // by key, of the flags that were given
}

// Load reads and checks all settings. It returns them in the order of the
// default file. Its error names every wrong value, not just the first.
func Load(src Source) (*Config, []Value, error) {
	file, errs := readFile(src.File)
	fixed := settings()
	all := append(slices.Clone(fixed), runtimeSettings(file.tree)...)
	values := make(map[string]Value, len(all))
	for _, s := range all {
		values[s.key] = Value{s.key, s.initial, "default"}
	}
	errs = append(errs, file.place(all, values)...)
	for _, s := range fixed {
		if v, ok := src.Env(s.env()); ok {
			values[s.key] = Value{s.key, v, "env " + s.env()}
		}
		if v, ok := src.Flags[s.key]; ok {
			values[s.key] = Value{s.key, v, "flag --" + s.key}
		}
	}
	if values["socket"].Source == "default" { // two daemons with a folder each shall not meet
		values["socket"] = Value{"socket", filepath.Join(values["run"].Value, "pausa.sock"), "default"}
	}
	c, list := &Config{}, make([]Value, 0, len(all))
	for _, s := range all {
		v := values[s.key]
		if err := s.set(c, v.Value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s = %q: %w", v.Source, s.key, v.Value, err))
		}
		list = append(list, v)
	}
	if err := c.checkOverlap(); err != nil {
		errs = append(errs, err)
	}
	return c, list, errors.Join(errs...)
}

// UnknownEnv names the variables in environ ("NAME=value") that look like
// settings and are none, each with the nearest that is one.
func UnknownEnv(environ []string) []string {
	known := []string{"PAUSA_CONFIG"}
	for _, s := range settings() {
		known = append(known, s.env())
	}
	var out []string
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "PAUSA_") || contains(known, name) {
			continue
		}
		if near := nearest.Word(name, known); near != "" {
			name += " (did you mean " + near + "?)"
		}
		out = append(out, name)
	}
	return out
}

// Default is the commented file that holds every default.
func Default() string {
	var b strings.Builder
	b.WriteString("# Settings of pausa serve. Every value here is the default.\n" +
		"# Each can also be set by the environment variable named beside it.\n")
	section := ""
	for _, s := range settings() {
		sec, name := s.split()
		if sec != section {
			section = sec
			fmt.Fprintf(&b, "\n[%s]\n", sec)
		}
		b.WriteByte('\n')
		for line := range strings.Lines(s.doc) {
			b.WriteString("# " + strings.TrimSpace(line) + "\n")
		}
		fmt.Fprintf(&b, "# %s\n%s = %s\n", s.env(), name, s.toml(s.initial))
	}
	b.WriteString(runtimeExample)
	return b.String()
}

// readFile is empty when no file is named and the default one is not there.
func readFile(name string) (file, []error) {
	path := name
	if path == "" {
		path = DefaultFile
	}
	data, err := os.ReadFile(path)
	if name == "" && errors.Is(err, fs.ErrNotExist) {
		return file{}, nil
	}
	if err != nil {
		return file{}, []error{fmt.Errorf("read settings: %w", err)}
	}
	return decode(path, string(data))
}

// checkOverlap refuses ranges that share addresses.
func (c *Config) checkOverlap() error {
	type owned struct {
		by string
		p  netip.Prefix
	}
	var all []owned
	add := func(by string, ranges []netip.Prefix) {
		for _, p := range ranges {
			all = append(all, owned{by, p})
		}
	}
	add("network.pod_cidrs", c.PodCIDRs)
	add("network.service_cidrs", c.ServiceCIDRs)
	for _, n := range c.Networks {
		add("network.further "+n.Name, n.CIDRs)
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if a.by != b.by && a.p.Overlaps(b.p) {
				return fmt.Errorf("%s %s and %s %s overlap: choose separate ranges", b.by, b.p, a.by, a.p)
			}
		}
	}
	for _, r := range c.Routes { // a larger range that holds ours is fine: ours is nearer
		for _, a := range all {
			if a.p.Overlaps(r.CIDR) && a.p.Bits() <= r.CIDR.Bits() {
				return fmt.Errorf("network.routes %s lies in %s %s, whose addresses are this host's own", r.CIDR, a.by, a.p)
			}
		}
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}
