package pod

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// shmSize is the size of a pod's /dev/shm, as containerd and docker have it.
const shmSize = "64m"

// makePodFiles writes the pod's record, before anything is taken, and the files
// that its containers see under /etc and /dev/shm.
func (m *Manager) makePodFiles(p *sandbox) error {
	dir, cfg := m.podDir(p.rec.ID), &p.rec.Config
	if err := os.MkdirAll(filepath.Join(dir, "containers"), 0o700); err != nil {
		return fmt.Errorf("make the pod's folder: %w", err)
	}
	if err := m.savePod(p); err != nil {
		return err
	}
	hostname := cfg.Hostname
	if hostname == "" {
		hostname, _ = os.Hostname()
	}
	resolv, err := resolvConf(cfg)
	if err != nil {
		return err
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "hostname"), []byte(hostname+"\n"), 0o644),
		m.writeResolvConf(p.rec.ID, resolv),
		os.Chmod(dir, 0o711)) // a pod's user namespace must reach its files below
	if err != nil {
		return err
	}
	if cfg.HostIPC {
		return nil
	}
	shm := filepath.Join(dir, "shm")
	if err := os.Mkdir(shm, 0o711); err != nil {
		return err
	}
	if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size="+shmSize); err != nil {
		return fmt.Errorf("mount %s: %w", shm, err)
	}
	return nil
}

// unmountPod gives the pod's mounts back; done twice it does nothing.
func (m *Manager) unmountPod(id string) error {
	shm := filepath.Join(m.podDir(id), "shm")
	err := unix.Unmount(shm, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", shm, err)
	}
	return nil
}

// writeHosts writes /etc/hosts, once the pod's addresses are known.
func (m *Manager) writeHosts(p *sandbox) error {
	return os.WriteFile(filepath.Join(m.podDir(p.rec.ID), "hosts"), []byte(hosts(&p.rec.Config, p.rec.Net.IPs)), 0o644)
}

func hosts(cfg *Config, ips []netip.Addr) string {
	var b strings.Builder
	if cfg.HostNetwork {
		if host, err := os.ReadFile("/etc/hosts"); err == nil {
			b.Write(host)
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		for _, ip := range ips {
			switch {
			case strings.Contains(cfg.Hostname, "."):
				short, _, _ := strings.Cut(cfg.Hostname, ".")
				fmt.Fprintf(&b, "%s\t%s\t%s\n", ip, cfg.Hostname, short)
			case cfg.Hostname != "" && cfg.Domain != "":
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, cfg.Hostname, cfg.Domain, cfg.Hostname)
			case cfg.Hostname != "":
				fmt.Fprintf(&b, "%s\t%s\n", ip, cfg.Hostname)
			}
		}
	}
	for _, a := range cfg.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	return b.String()
}

// resolvConf is the pod's own DNS configuration, or the host's (which that of the pod's network
// takes the place of, once it is known). The host's
// loopback servers (systemd-resolved's stub) cannot be reached from a pod: then
// the servers behind the stub are used.
func resolvConf(cfg *Config) (string, error) {
	if cfg.DNS != nil {
		return cfg.DNS.text(), nil
	}
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the host's DNS configuration: %w", err)
	}
	if cfg.HostNetwork {
		return string(host), nil
	}
	if text := withoutLoopback(string(host)); strings.Contains(text, "nameserver") {
		return text, nil
	}
	if behind, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
		host = behind
	}
	return withoutLoopback(string(host)), nil
}

func (m *Manager) writeResolvConf(id, text string) error {
	return os.WriteFile(filepath.Join(m.podDir(id), "resolv.conf"), []byte(text), 0o644)
}

// text is the configuration as a resolver reads it.
func (d *DNS) text() string {
	var b strings.Builder
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, s := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return b.String()
}

// withoutLoopback drops the nameservers that mean the host itself.
func withoutLoopback(resolv string) string {
	var b strings.Builder
	for line := range strings.Lines(resolv) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil && a.IsLoopback() {
				continue
			}
		}
		b.WriteString(line)
	}
	return b.String()
}

// quarantine sets a folder with an unreadable record aside, for a person to look at.
func (m *Manager) quarantine(dir string) (string, error) {
	bad := filepath.Join(m.opts.RunDir, "bad", filepath.Base(dir))
	if err := os.MkdirAll(filepath.Dir(bad), 0o700); err != nil {
		return "", err
	}
	return bad, errors.Join(os.RemoveAll(bad), os.Rename(dir, bad))
}
