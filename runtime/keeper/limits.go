//go:build cgo

package keeper

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

const (
	capSysResource = 24
	// pauseScore keeps pause from the OOM killer: the pod would lose its namespaces.
	pauseScore = -998
)

// limits are what the keeper itself may do. A container is cut down to them,
// where the kernel would refuse it otherwise.
type limits struct {
	bounding  uint64 // capabilities
	mayRaise  bool   // CAP_SYS_RESOURCE: rlimits up, OOM score down
	oomScore  int
	hugepages bool // the host has their cgroup controller
	log       *slog.Logger
	say       map[string]*sync.Once // each kind of cut is told once
	rlimitOf  func(resource int) (unix.Rlimit, error)
	writeFile func(name string, data []byte, perm os.FileMode) error
}

func readLimits(log *slog.Logger) limits {
	l := limits{
		log:       log,
		say:       map[string]*sync.Once{"capabilities": {}, "rlimits": {}, "oom score": {}, "hugepage limits": {}},
		writeFile: os.WriteFile,
		rlimitOf: func(resource int) (r unix.Rlimit, err error) {
			err = unix.Getrlimit(resource, &r)
			return r, err
		},
	}
	status, _ := os.ReadFile("/proc/self/status")
	l.bounding = statusMask(status, "CapBnd:")
	l.mayRaise = statusMask(status, "CapEff:")&(1<<capSysResource) != 0
	score, _ := os.ReadFile("/proc/self/oom_score_adj")
	l.oomScore, _ = strconv.Atoi(strings.TrimSpace(string(score)))
	l.hugepages = hasController("hugetlb")
	return l
}

// hasController looks in the mounted hierarchies.
func hasController(name string) bool {
	if !cgroups.IsCgroup2UnifiedMode() {
		_, err := cgroups.FindCgroupMountpoint("", name)
		return err == nil
	}
	all, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	return slices.Contains(strings.Fields(string(all)), name)
}

// clampGroup cuts a container's limits down to those that the host can keep. A
// kubelet sends a limit for every size of hugepages, also where nothing counts them.
func (l limits) clampGroup(r *specs.LinuxResources) {
	if r == nil || l.hugepages {
		return
	}
	for _, h := range r.HugepageLimits {
		if h.Limit > 0 {
			l.told("hugepage limits", "first", h.Pagesize, "reason", "the host has no cgroup controller hugetlb")
		}
	}
	r.HugepageLimits = nil
}

func statusMask(status []byte, field string) uint64 {
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte(field)); ok {
			mask, _ := strconv.ParseUint(string(bytes.TrimSpace(rest)), 16, 64)
			return mask
		}
	}
	return 0
}

func (l limits) told(kind string, args ...any) {
	l.say[kind].Do(func() {
		l.log.Warn("containers get less than they ask for, because the keeper may not give more", append([]any{"what", kind}, args...)...)
	})
}

// protect keeps a pause from the OOM killer as far as the keeper may.
func (l limits) protect(pid int) {
	score := pauseScore
	if !l.mayRaise {
		score = max(score, l.oomScore)
	}
	if score != l.oomScore {
		_ = l.writeFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
	}
}

// clamp cuts a container's process down to what the keeper may give.
func (l limits) clamp(p *specs.Process) {
	if p.Capabilities != nil {
		l.clampCapabilities(p.Capabilities)
	}
	if l.mayRaise {
		return
	}
	if p.OOMScoreAdj != nil && *p.OOMScoreAdj < l.oomScore {
		l.told("oom score", "asked", *p.OOMScoreAdj, "given", l.oomScore)
		score := l.oomScore
		p.OOMScoreAdj = &score
	}
	for i := range p.Rlimits {
		l.clampRlimit(&p.Rlimits[i])
	}
}

func (l limits) clampCapabilities(c *specs.LinuxCapabilities) {
	for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted, &c.Inheritable, &c.Ambient} {
		kept := slices.DeleteFunc(slices.Clone(*set), func(name string) bool {
			n := runtime.CapabilityNumber(name)
			cut := n < 0 || l.bounding&(1<<n) == 0
			if cut {
				l.told("capabilities", "first", name)
			}
			return cut
		})
		*set = kept
	}
}

func (l limits) clampRlimit(r *specs.POSIXRlimit) {
	number, ok := rlimitNumber(r.Type)
	if !ok {
		return // libcontainer refuses it by name
	}
	own, err := l.rlimitOf(number)
	if err != nil || r.Hard <= own.Max {
		return
	}
	l.told("rlimits", "first", r.Type, "asked", r.Hard, "given", own.Max)
	r.Hard = own.Max
	r.Soft = min(r.Soft, r.Hard)
}

func rlimitNumber(name string) (int, bool) {
	numbers := map[string]int{
		"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
		"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
		"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
		"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
		"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
		"RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	}
	n, ok := numbers[name]
	return n, ok
}
