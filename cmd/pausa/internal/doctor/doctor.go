// Package doctor looks at a host for what keeps pods from running, or may: each
// check says what it found, what that means, and what cures it. It needs no
// daemon, changes nothing, and asks the kernel rather than our records.
package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
)

// The verdicts of a Check.
const (
	OK   = "ok"
	Warn = "warn" // pods run, and something will not be as it should
	Fail = "fail" // pods do not run, or do not reach one another
)

// Check is what one look found.
type Check struct {
	Name    string `json:"check"`
	Verdict string `json:"verdict"`
	What    string `json:"what"`
	Cure    string `json:"cure,omitempty"`
}

// Daemon is what the daemon says of itself.
type Daemon struct {
	Err     error // it does not answer
	Version string
	Orphans func(context.Context) (count int, bytes uint64, err error) // of the image store
	Healed  []Healed                                                   // what happened to the host's network in the last hour
}

// Healed is something that was changed by somebody else.
type Healed struct {
	What    string
	PerHour float64 // how often it happens
}

// Host is where to look. Proc is /proc but for tests.
type Host struct {
	Config  *config.Config
	Proc    string
	Cgroups []string     // folders of cgroup.parent in each hierarchy that there is
	Version string       // of this program
	DNS     []netip.Addr // of the cluster
	Daemon  Daemon
}

// Run does all checks, in the order in which one depends on another.
func Run(ctx context.Context, h Host) []Check {
	var out []Check
	for _, check := range []struct {
		name string
		look func(context.Context) []Check
	}{
		{"kernel", h.kernel},
		{"capabilities", h.capabilities},
		{"cgroups", h.cgroups},
		{"nftables", h.nftables},
		{"settings", h.sysctls},
		{"firewall", h.firewall},
		{"daemon", h.daemon},
		{"keeper", h.keeper},
		{"handlers", h.handlers},
		{"network", h.network},
		{"events", h.events},
		{"names", h.names},
		{"upstream", h.upstream},
		{"disk", h.disk},
		{"images", h.images},
		{"files", h.files},
		{"leaks", h.leaks},
		{"clock", h.clock},
	} {
		found := check.look(ctx)
		for i := range found {
			found[i].Name = check.name
		}
		out = append(out, found...)
	}
	return out
}

// Worst is the worst verdict of all.
func Worst(checks []Check) string {
	worst := OK
	for _, c := range checks {
		switch c.Verdict {
		case Fail:
			return Fail
		case Warn:
			worst = Warn
		}
	}
	return worst
}

func ok(format string, args ...any) []Check {
	return []Check{{Verdict: OK, What: fmt.Sprintf(format, args...)}}
}

func warn(cure, format string, args ...any) []Check {
	return []Check{{Verdict: Warn, What: fmt.Sprintf(format, args...), Cure: cure}}
}

func fail(cure, format string, args ...any) []Check {
	return []Check{{Verdict: Fail, What: fmt.Sprintf(format, args...), Cure: cure}}
}

// some lists at most a few of many.
func some(list []string) string {
	const few = 8
	slices.Sort(list)
	if len(list) > few {
		return strings.Join(list[:few], ", ") + fmt.Sprintf(" and %d more", len(list)-few)
	}
	return strings.Join(list, ", ")
}
