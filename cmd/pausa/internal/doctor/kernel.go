package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// oldest is the oldest kernel that is tested.
const oldestMajor, oldestMinor = 5, 15

func (h Host) kernel(context.Context) []Check {
	text, err := os.ReadFile(filepath.Join(h.Proc, "sys/kernel/osrelease"))
	if err != nil {
		return warn("", "the kernel's version is unknown: %v", err)
	}
	release := strings.TrimSpace(string(text))
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return warn("", "the kernel's version %q cannot be read", release)
	}
	if major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		return fail(fmt.Sprintf("boot a kernel of %d.%d or newer", oldestMajor, oldestMinor), "kernel %s is older than %d.%d: pods may not start", release, oldestMajor, oldestMinor)
	}
	return ok("%s", release)
}

func (h Host) capabilities(context.Context) []Check {
	status, err := os.ReadFile(filepath.Join(h.Proc, "self/status"))
	if err != nil {
		return warn("", "capabilities are unknown: %v", err)
	}
	var set uint64
	for line := range strings.Lines(string(status)) {
		if text, found := strings.CutPrefix(line, "CapEff:"); found {
			set, _ = strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		}
	}
	const cure = "run as root, outside of a container that takes capabilities away"
	var out []Check
	for _, c := range []struct {
		bit     int
		name    string
		verdict string
		without string
	}{
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", Fail, "no pod can be started"},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", Fail, "no pod can have a network"},
		{unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", Warn, "negative oom_score_adj values and raised rlimits are clamped"},
	} {
		if set&(1<<c.bit) == 0 {
			out = append(out, Check{"", c.verdict, c.name + " is missing: " + c.without, cure})
		}
	}
	if len(out) == 0 {
		return ok("all that are needed")
	}
	return out
}

func (h Host) cgroups(context.Context) []Check {
	if len(h.Cgroups) == 0 {
		return fail("mount -t cgroup2 none /sys/fs/cgroup", "no cgroup hierarchy is mounted at /sys/fs/cgroup: no container can be started")
	}
	have, err := os.ReadFile(filepath.Join(h.Proc, "cgroups"))
	if err != nil {
		return warn("", "the cgroup controllers are unknown: %v", err)
	}
	missing := map[string]bool{"memory": true, "cpu": true, "pids": true}
	for line := range strings.Lines(string(have)) {
		f := strings.Fields(line) // name, hierarchy, groups, enabled
		if len(f) == 4 && f[3] == "1" {
			delete(missing, f[0])
		}
	}
	var names []string
	for name := range missing {
		names = append(names, name)
	}
	if len(names) > 0 {
		return warn("boot with cgroup_enable="+names[0]+", or without cgroup_disable", "the kernel has no cgroup controller %s: these limits of pods do not hold", some(names))
	}
	return ok("%d hierarchies, with memory, cpu and pids", len(h.Cgroups))
}

func (h Host) nftables(context.Context) []Check {
	conn, err := nft.Open()
	if err != nil {
		return fail("load the kernel module nf_tables, and run as root", "nftables cannot be used, so there is no Service and no host port: %v", err)
	}
	defer func() { _ = conn.Close() }()
	chains, err := conn.Chains()
	switch {
	case err != nil:
		return fail("load the kernel module nf_tables, and run as root", "nftables cannot be read, so there is no Service and no host port: %v", err)
	case len(chains) == 0 && h.Daemon.Err == nil:
		return fail("restart the daemon: it writes its rules again", "table inet pausa is not there, though the daemon runs: no Service answers")
	case len(chains) == 0:
		return ok("usable; table inet pausa is not there, as no daemon runs")
	}
	return ok("table inet pausa has %d chains", len(chains))
}

func (h Host) sysctl(name string) (string, bool) {
	text, err := os.ReadFile(filepath.Join(h.Proc, "sys", strings.ReplaceAll(name, ".", "/")))
	return strings.TrimSpace(string(text)), err == nil
}

// sysctls are the kernel's settings that the network needs, and limits that a full host meets.
func (h Host) sysctls(context.Context) []Check {
	var out []Check
	needed := []struct{ name, value, without string }{}
	for _, r := range h.Config.PodCIDRs {
		if r.Addr().Is4() {
			needed = append(needed, struct{ name, value, without string }{"net.ipv4.ip_forward", "1", "pods reach neither one another nor the outside"})
		} else {
			needed = append(needed, struct{ name, value, without string }{"net.ipv6.conf.all.forwarding", "1", "pods reach nothing by IPv6"})
		}
	}
	if h.hasBridge() { // before, the daemon has not set them yet
		for _, n := range needed {
			if value, _ := h.sysctl(n.name); value != n.value {
				out = append(out, fail("sysctl -w "+n.name+"="+n.value+"; and look for who sets it otherwise, as in /etc/sysctl.d", "%s is %q: %s", n.name, value, n.without)...)
			}
		}
	}
	const watches, instances = 8192, 128
	for name, least := range map[string]int{"fs.inotify.max_user_watches": watches, "fs.inotify.max_user_instances": instances} {
		if value, there := h.sysctl(name); there {
			if n, err := strconv.Atoi(value); err == nil && n < least {
				out = append(out, warn(fmt.Sprintf("sysctl -w %s=%d", name, least*8), "%s is %d: programs that watch files, logs -f among them, will fail", name, n)...)
			}
		}
	}
	count, there := h.sysctl("net.netfilter.nf_conntrack_count")
	limit, _ := h.sysctl("net.netfilter.nf_conntrack_max")
	n, _ := strconv.Atoi(count)
	if m, err := strconv.Atoi(limit); there && err == nil && m > 0 && n > m/10*9 {
		out = append(out, warn(fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", m*2), "%d of %d entries of connection tracking are in use: new connections will be dropped", n, m)...)
	}
	if len(out) == 0 {
		return ok("forwarding, inotify and connection tracking are as needed")
	}
	return out
}

func (h Host) hasBridge() bool {
	_, err := os.Stat(filepath.Join(h.Proc, "sys/net/ipv4/conf", h.Config.Bridge))
	return err == nil
}

// handlers looks for the programs of the runtime handlers.
func (h Host) handlers(context.Context) []Check {
	var out []Check
	for _, r := range h.Config.Runtimes.Handlers {
		if st, err := os.Stat(r.Path); err != nil || st.IsDir() || st.Mode()&0o111 == 0 {
			out = append(out, fail("install it, or correct the path of the handler", "handler %s has no program at %s: pods that ask for it cannot be started", r.Name, r.Path)...)
		}
	}
	if len(out) == 0 {
		return ok("the built-in one, and %d others", len(h.Config.Runtimes.Handlers))
	}
	return out
}

// disk looks at where state and logs are kept, and at the tmpfs of records.
func (h Host) disk(context.Context) []Check {
	var out []Check
	for _, dir := range []string{h.Config.State, h.Config.Run} {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				out = append(out, warn("", "%s: %v", dir, err)...)
			}
			continue
		}
		out = append(out, room(dir, "space", st.Bavail, st.Blocks)...)
		if st.Files > 0 {
			out = append(out, room(dir, "inodes", st.Ffree, st.Files)...)
		}
	}
	if len(out) == 0 {
		return ok("enough space and inodes at %s and %s", h.Config.State, h.Config.Run)
	}
	return out
}

func room(dir, what string, free, all uint64) []Check {
	if all == 0 {
		return nil
	}
	cure := "free some, as with `pausa images prune --all`"
	switch percent := free * 100 / all; {
	case percent < 2:
		return fail(cure, "%d%% of the %s at %s is free: pods cannot be started", percent, what, dir)
	case percent < 10:
		return warn(cure, "%d%% of the %s at %s is free", percent, what, dir)
	}
	return nil
}

// clock finds one that was never set: certificates and tokens would not hold.
func (h Host) clock(context.Context) []Check {
	if now := time.Now(); now.Year() < 2024 {
		return fail("set it, as with `date -s` or by chrony", "the clock says %s: registries' certificates are not valid then", now.Format(time.DateOnly))
	}
	return ok("%s", time.Now().UTC().Format("2006-01-02 15:04 UTC"))
}
