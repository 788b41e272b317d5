package pod

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
)

// nameRE is what a name may be made of at our border. Names travel in file
// names, cgroup paths and CNI_ARGS: they are refused, never escaped.
var nameRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)

func checkName(field, s string) error {
	if !nameRE.MatchString(s) {
		return fmt.Errorf("%w: %s %.300q: want 1 to 253 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit", ErrInvalid, field, s)
	}
	return nil
}

func (c *Config) check() error {
	for _, f := range []struct{ field, value string }{{"name", c.Name}, {"namespace", c.Namespace}, {"uid", c.UID}} {
		if err := checkName("pod "+f.field, f.value); err != nil {
			return err
		}
	}
	if c.Hostname != "" && (len(c.Hostname) > 64 || checkName("", c.Hostname) != nil) {
		return fmt.Errorf("%w: hostname %.80q: want at most 64 letters, digits, '-', '_' and '.'", ErrInvalid, c.Hostname)
	}
	if c.Domain != "" && hasSpace(c.Domain) {
		return fmt.Errorf("%w: domain %.80q: want a name without spaces", ErrInvalid, c.Domain)
	}
	if c.HostNetwork && len(c.Sysctls) > 0 {
		for name := range c.Sysctls {
			if strings.HasPrefix(strings.ReplaceAll(name, "/", "."), "net.") {
				return fmt.Errorf("%w: sysctl %q: the pod is on the host's network, so it would change the host", ErrInvalid, name)
			}
		}
	}
	if len(c.UIDMaps) > 0 && (c.HostNetwork || c.HostPID || c.HostIPC) {
		return fmt.Errorf("%w: a user namespace does not go with the host's network, PID or IPC namespace", ErrInvalid)
	}
	if c.LogDirectory != "" && !cleanAbs(c.LogDirectory) {
		return fmt.Errorf("%w: log directory %q: want a clean absolute path", ErrInvalid, c.LogDirectory)
	}
	return c.checkHosts()
}

// checkHosts keeps what goes into /etc/hosts and resolv.conf on its own line.
func (c *Config) checkHosts() error {
	for _, a := range c.HostAliases {
		if _, err := netip.ParseAddr(a.IP); err != nil {
			return fmt.Errorf("%w: host alias: %w", ErrInvalid, err)
		}
		if len(a.Hostnames) == 0 || hasSpace(a.Hostnames...) {
			return fmt.Errorf("%w: host alias %s: want one or more names without spaces, have %q", ErrInvalid, a.IP, a.Hostnames)
		}
	}
	if d := c.DNS; d != nil {
		for _, s := range d.Servers {
			if _, err := netip.ParseAddr(s); err != nil {
				return fmt.Errorf("%w: DNS server: %w", ErrInvalid, err)
			}
		}
		if hasSpace(d.Searches...) || hasSpace(d.Options...) {
			return fmt.Errorf("%w: DNS searches and options: want words without spaces, have %q and %q", ErrInvalid, d.Searches, d.Options)
		}
	}
	return nil
}

func (c *ContainerConfig) check() error {
	if err := checkName("container name", c.Name); err != nil {
		return err
	}
	if c.Image == "" {
		return fmt.Errorf("%w: container %s: no image", ErrInvalid, c.Name)
	}
	if c.LogPath != "" && !filepath.IsLocal(c.LogPath) {
		return fmt.Errorf("%w: container %s: log path %q: want a path below the pod's log directory", ErrInvalid, c.Name, c.LogPath)
	}
	for _, e := range c.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") || strings.Contains(e.Value, "\x00") {
			return fmt.Errorf("%w: container %s: environment variable %.80q: a name is not empty and has no '=', and neither part has a NUL", ErrInvalid, c.Name, e.Name)
		}
	}
	for _, m := range c.Mounts {
		if !filepath.IsAbs(m.Destination) || strings.ContainsRune(m.Destination+m.Source, 0) {
			return fmt.Errorf("%w: container %s: mount at %q: want an absolute path", ErrInvalid, c.Name, m.Destination)
		}
	}
	return nil
}

func cleanAbs(p string) bool {
	return filepath.IsAbs(p) && filepath.Clean(p) == p && !strings.ContainsAny(p, "\x00\n")
}

func hasSpace(words ...string) bool {
	for _, w := range words {
		if w == "" || strings.ContainsAny(w, " \t\r\n\x00") {
			return true
		}
	}
	return false
}
