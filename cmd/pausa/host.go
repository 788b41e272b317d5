package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/cri"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroups is the parent group of all pods, in each hierarchy of this host.
type cgroups struct {
	mode   string // "v1", "v2" or "hybrid"
	driver string // pod.Cgroupfs or pod.Systemd
	dirs   []string
}

func (g *cgroups) String() string { return g.mode + ", " + g.driver }

// systemdRuns is a folder that is there when systemd is process 1.
const systemdRuns = "/run/systemd/system"

// openCgroup makes the parent group, unless systemd will.
func openCgroup(parent, driver string) (*cgroups, error) {
	g, err := findCgroups(cgroupRoot)
	if err != nil {
		return nil, err
	}
	if g.driver, err = cgroupDriver(driver, systemdRuns); err != nil {
		return nil, err
	}
	if g.driver == pod.Systemd {
		g.dirs = nil
	}
	for i := range g.dirs {
		g.dirs[i] = filepath.Join(g.dirs[i], parent)
		if err := os.MkdirAll(g.dirs[i], 0o755); err != nil {
			return nil, fmt.Errorf("make cgroup.parent %s: %w", parent, err)
		}
	}
	return g, nil
}

// cgroupDriver turns auto into a driver, and refuses systemd where it does not run.
func cgroupDriver(driver, runs string) (string, error) {
	st, err := os.Lstat(runs)
	booted := err == nil && st.IsDir()
	switch {
	case driver == pod.Systemd && !booted:
		return "", fmt.Errorf("cgroup.driver is systemd, but systemd does not run this host (%s is missing): use cgroupfs or auto", runs)
	case driver == "auto" && booted:
		return pod.Systemd, nil
	case driver == "auto":
		return pod.Cgroupfs, nil
	}
	return driver, nil
}

// findCgroups lists the roots of the hierarchies mounted under root.
func findCgroups(root string) (*cgroups, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w: mount the cgroup filesystem there", root, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return &cgroups{mode: "v2", dirs: []string{root}}, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", root, err)
	}
	g := &cgroups{mode: "v1"}
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if !e.IsDir() || unix.Statfs(dir, &st) != nil { // links name two controllers of one hierarchy
			continue
		}
		switch st.Type {
		case unix.CGROUP_SUPER_MAGIC:
			g.dirs = append(g.dirs, dir)
		case unix.CGROUP2_SUPER_MAGIC:
			g.mode = "hybrid"
			g.dirs = append(g.dirs, dir)
		}
	}
	if len(g.dirs) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy in %s: mount them, as with `mount -t cgroup2 none %s`", root, root)
	}
	return g, nil
}

// close removes the groups if no pod is left in them.
func (g *cgroups) close() error {
	for _, dir := range g.dirs {
		err := unix.Rmdir(dir)
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
	}
	return nil
}

// hostFacts answers 'pausa info'.
type hostFacts struct {
	config   *config.Config
	cgroup   string
	appArmor string
	started  time.Time
	keeper   *runtime.Client
	warnings []string
	blockers func() ([]string, error) // chains of others that drop what pods send
	problems func() []error           // what of the network cannot be healed
	handlers *runtime.Handlers
}

func (h hostFacts) info(ctx context.Context) (cri.Info, error) {
	info := cri.Info{
		StateDir: h.config.State, RunDir: h.config.Run, Cgroup: h.cgroup, AppArmor: h.appArmor, StartedAt: h.started, Warnings: h.warnings,
	}
	blockers, err := h.blockers()
	if err != nil {
		blockers = append(blockers, fmt.Sprintf("the rules of others cannot be read: %v", err))
	}
	for _, problem := range h.problems() {
		blockers = append(blockers, "the network cannot be healed: "+problem.Error())
	}
	info.Warnings = slices.Concat(info.Warnings, blockers, missingPrograms(h.handlers))
	keeper, err := h.keeper.Hello(ctx)
	if errors.Is(err, runtime.ErrKeeperGone) {
		info.Warnings = append(info.Warnings, "the keeper does not answer: pods cannot be started or stopped until a new one runs")
		return info, nil
	}
	info.KeeperPid, info.KeeperVersion = keeper.Pid, keeper.Version
	return info, err
}

// hostWarnings are the limits of this host that the daemon lives with.
func hostWarnings() []string {
	var out []string
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return []string{fmt.Sprintf("the daemon's capabilities are unknown: %v", err)}
	}
	caps := capabilities(string(status))
	for _, c := range []struct {
		bit     int
		without string
	}{
		{unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE: negative oom_score_adj values and raised rlimits are clamped"},
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN: no pod can be started"},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN: no pod can have a network"},
	} {
		if caps&(1<<c.bit) == 0 {
			out = append(out, "the daemon runs without "+c.without)
		}
	}
	return out
}

// capabilities is the effective set in the text of /proc/PID/status.
func capabilities(status string) uint64 {
	for line := range strings.Lines(status) {
		if text, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err == nil {
				return set
			}
		}
	}
	return 0
}

// nodeIPs finds the host's own addresses, IPv4 first: those of links that are up,
// but for loopback, link-local ones and the bridges of the pods.
func nodeIPs(bridge string) func() []netip.Addr {
	return func() []netip.Addr {
		links, err := net.Interfaces()
		if err != nil {
			return nil
		}
		var v4, v6 []netip.Addr
		for _, link := range links {
			if link.Name == bridge || strings.HasPrefix(link.Name, bridge+"-") || link.Flags&net.FlagUp == 0 || link.Flags&net.FlagLoopback != 0 {
				continue
			}
			addrs, err := link.Addrs()
			if err != nil {
				continue // the link has gone meanwhile
			}
			for _, a := range addrs {
				p, err := netip.ParsePrefix(a.String())
				switch {
				case err != nil || !p.Addr().IsGlobalUnicast():
				case p.Addr().Is4():
					v4 = append(v4, p.Addr())
				default:
					v6 = append(v6, p.Addr())
				}
			}
		}
		return append(v4, v6...)
	}
}
