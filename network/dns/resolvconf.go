package dns

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// lookEvery is how often the host's resolver configuration is read. Reading
// follows links, files put in place of others and mounts, which no watch of one
// file sees; it costs a few microseconds.
const lookEvery = time.Second

// parseResolvConf lists the nameservers of a resolv.conf in their order, but for
// our own addresses: asking ourselves would go on for ever.
func parseResolvConf(text string, own func(netip.AddrPort) bool) (servers []netip.AddrPort, refused []netip.Addr) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil {
			continue
		}
		switch a = a.Unmap(); a { // this host, for who writes so
		case netip.IPv4Unspecified():
			a = netip.MustParseAddr("127.0.0.1")
		case netip.IPv6Unspecified():
			a = netip.IPv6Loopback()
		}
		s := netip.AddrPortFrom(a, 53)
		switch {
		case own(s):
			refused = append(refused, a)
		case !slices.Contains(servers, s):
			servers = append(servers, s)
		}
	}
	return servers, refused
}

// follower gives the forwarder the servers that a file names.
type follower struct {
	path string
	own  func(netip.AddrPort) bool
	set  func([]netip.AddrPort)
	log  *slog.Logger

	last   string
	read   bool
	failed string
}

// look reads the file, and passes on what has changed.
func (f *follower) look() {
	data, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if f.failed != err.Error() {
			f.log.Warn("read the host's resolver configuration; the servers known before are asked", "error", err)
		}
		f.failed = err.Error()
		return
	}
	f.failed = ""
	if f.read && string(data) == f.last {
		return
	}
	f.last, f.read = string(data), true
	servers, refused := parseResolvConf(f.last, f.own)
	if len(refused) > 0 {
		f.log.Warn("the host's resolver configuration names this server itself, which cannot be asked: name another server there", "file", f.path, "addresses", refused)
	}
	if len(servers) == 0 {
		f.log.Warn("the host's resolver configuration names no server to ask: names outside of the cluster cannot be found", "file", f.path)
	}
	f.log.Debug("servers for names outside of the cluster", "servers", servers)
	f.set(servers)
}

func (f *follower) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.look()
		}
	}
}
