package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// shape is how a value is written in the file.
type shape int

const (
	text shape = iota
	number
	truth
	list
)

// setting is one key: its default, what it is for, and how it is checked.
type setting struct {
	key     string // "section.name", or "name" at the top of the file
	shape   shape
	initial string // lists are joined by commas
	doc     string
	set     func(c *Config, value string) error
}

// env is the variable that sets it: PAUSA_ and the key, upper case, dots as underscores.
func (s setting) env() string {
	return "PAUSA_" + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

func (s setting) split() (section, name string) {
	return cutLast(s.key)
}

// toml writes value as the file would hold it.
func (s setting) toml(value string) string {
	switch s.shape {
	case number, truth:
		return value
	case list:
		items := splitList(value)
		for i := range items {
			items[i] = strconv.Quote(items[i])
		}
		return "[" + strings.Join(items, ", ") + "]"
	default:
		return strconv.Quote(value)
	}
}

// settings are all keys, in the order of the default file.
func settings() []setting {
	return slices.Concat(placeSettings(), imageSettings(), networkSettings(), dnsSettings(), handlerSettings(), hostSettings())
}

func placeSettings() []setting {
	return []setting{
		{
			"state", text, "/var/lib/pausa", "Folder of what outlives a reboot: declared objects, images, logs.",
			func(c *Config, v string) error { return setPath(&c.State, v) },
		},
		{
			"run", text, "/run/pausa", "Folder of what ends with a reboot: records of pods, namespaces, sockets. Best on tmpfs.",
			func(c *Config, v string) error { return setPath(&c.Run, v) },
		},
		{
			"socket", text, "/run/pausa/pausa.sock", "Unix socket of the daemon (CRI and pausa.v1), open to root alone.\nWithout this line it is pausa.sock in the run folder.",
			func(c *Config, v string) error {
				if len(v) > 107 {
					return errors.New("is longer than the 107 bytes that a socket path may have")
				}
				return setPath(&c.Socket, v)
			},
		},
		{
			"log.level", text, "info", "debug, info, warn or error.",
			func(c *Config, v string) error { return setOneOf(&c.LogLevel, v, "debug", "info", "warn", "error") },
		},
		{
			"log.format", text, "text", "text or json, on standard error.",
			func(c *Config, v string) error { return setOneOf(&c.LogFormat, v, "text", "json") },
		},
		{
			"images.registry_config", text, "/etc/pausa/certs.d",
			"Folder with a folder per registry host that holds a hosts.toml (mirrors, certificates), as containerd has it.",
			func(c *Config, v string) error { return setPath(&c.RegistryConfig, v) },
		},
	}
}

func dnsSettings() []setting {
	return []setting{
		{
			"network.dns.enabled", truth, "true", "Answer for the names of Services and pods, at the 10th address of network.service_cidrs; pods use it.",
			func(c *Config, v string) (err error) {
				if c.DNS, err = strconv.ParseBool(v); err != nil {
					return errors.New("must be true or false")
				}
				return nil
			},
		},
		{
			"network.dns.domain", text, "cluster.local", "Domain of these names: NAME.NAMESPACE.svc.DOMAIN.",
			func(c *Config, v string) error {
				label := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
				if len(v) > 128 || slices.ContainsFunc(strings.Split(v, "."), func(l string) bool { return !label.MatchString(l) }) {
					return errors.New("is not a domain such as cluster.local: lower-case letters, digits, dashes and dots")
				}
				c.DNSDomain = v
				return nil
			},
		},
		{
			"network.dns.all_pods", truth, "false", "Names such as 10-88-0-5.NAMESPACE.pod.DOMAIN also for pods that are not declared here, those of a kubelet.",
			func(c *Config, v string) (err error) {
				if c.DNSAllPods, err = strconv.ParseBool(v); err != nil {
					return errors.New("must be true or false")
				}
				return nil
			},
		},
	}
}

// setMetricsAddress takes nothing that another host could reach: there is no password.
func setMetricsAddress(to *string, v string) error {
	*to = v
	if path, ok := strings.CutPrefix(v, "unix://"); ok {
		if len(path) > 107 {
			return errors.New("is longer than the 107 bytes that a socket path may have")
		}
		return setPath(&path, path)
	}
	if at, err := netip.ParseAddrPort(v); v != "" && (err != nil || !at.Addr().IsLoopback() || at.Port() == 0) {
		return errors.New("is neither unix:///PATH nor an address of loopback with a port, as 127.0.0.1:9477")
	}
	return nil
}

func hostSettings() []setting {
	return []setting{
		{
			"cgroup.parent", text, "/pausa", "Control group that holds all pods.",
			func(c *Config, v string) error {
				if filepath.Clean(v) == "/" {
					return errors.New(`must not be the root group: write a group of its own, such as "/pausa"`)
				}
				return setPath(&c.CgroupParent, v)
			},
		},
		{
			"cgroup.driver", text, "auto", "Who makes control groups: cgroupfs (pausa itself), systemd (scopes in slices), or auto: systemd where it runs the host.\nA kubelet asks for this by itself.",
			func(c *Config, v string) error { return setOneOf(&c.CgroupDriver, v, "auto", "cgroupfs", "systemd") },
		},
		{
			"security.seccomp_profiles", text, "/var/lib/kubelet/seccomp", "Folder of the seccomp profiles that declared pods may name, by default a kubelet's.",
			func(c *Config, v string) error { return setPath(&c.SeccompProfiles, v) },
		},
		{
			"keeper.binary", text, "", "Path of pausa-keeper; empty takes the one beside pausa.",
			func(c *Config, v string) error {
				if v == "" {
					return nil
				}
				return setPath(&c.KeeperBinary, v)
			},
		},
		{
			"metrics.address", text, "", "Where /metrics for Prometheus is answered: unix:///PATH, for root alone, or IP:PORT of loopback. Empty: nowhere.",
			func(c *Config, v string) error { return setMetricsAddress(&c.MetricsAddress, v) },
		},
		{
			"node.name", text, "", "Name of this host in the status of pods; empty takes the host's own name.",
			func(c *Config, v string) error {
				name := regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)
				if v != "" && (len(v) > 253 || !name.MatchString(v)) {
					return errors.New("is not a DNS name: lower-case letters, digits, dashes and dots")
				}
				c.NodeName = v
				return nil
			},
		},
	}
}

func setPath(to *string, v string) error {
	if !filepath.IsAbs(v) {
		return errors.New("is not an absolute path: start it with /")
	}
	*to = filepath.Clean(v)
	return nil
}

func setOneOf(to *string, v string, allowed ...string) error {
	if !slices.Contains(allowed, v) {
		return fmt.Errorf("must be one of %s", strings.Join(allowed, ", "))
	}
	*to = v
	return nil
}

func setPortRange(from, to *uint16, v string) error {
	low, high, ok := strings.Cut(v, "-")
	a, err1 := strconv.ParseUint(low, 10, 16)
	b, err2 := strconv.ParseUint(high, 10, 16)
	if !ok || err1 != nil || err2 != nil || a == 0 || a > b {
		return errors.New("is not a range of ports such as 30000-32767")
	}
	*from, *to = uint16(a), uint16(b)
	return nil
}

func splitList(v string) []string {
	var out []string
	for item := range strings.SplitSeq(v, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}
