//go:build cgo

package keeper

import (
	"bytes"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pausa-run/pausa/runtime"
	"github.com/pausa-run/pausa/runtime/wire"
)

// stats reads the cgroups of the named containers and groups, or of all containers that run.
func (k *Keeper) stats(q wire.IDs) ([]runtime.Stats, error) {
	var list []*container
	if len(q.IDs)+len(q.Groups) == 0 {
		list = k.allContainers()
	}
	for _, id := range q.IDs {
		c, err := k.container(id)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	out := make([]runtime.Stats, 0, len(list)+len(q.Groups))
	for _, c := range list {
		if c.snapshot().Status == runtime.Running {
			s := k.groups.stats(c.id, c.cgroups)
			if q.Details {
				s.Details = k.details(c)
			}
			out = append(out, s)
		}
	}
	for _, path := range q.Groups {
		if s, ok := k.groupStats(path); ok {
			out = append(out, s)
		}
	}
	return out, nil
}

// groupStats reads a cgroup that is no container's, by its path from the root of each hierarchy; false if there is none.
func (k *Keeper) groupStats(path string) (runtime.Stats, bool) {
	folders, err := k.hierarchies()
	if err != nil {
		return runtime.Stats{}, false
	}
	groups := make(map[string]string, len(folders))
	for controller, folder := range folders {
		groups[controller] = filepath.Join(folder, path)
	}
	s := k.groups.stats(path, groups)
	return s, s.CPUNanos > 0 || s.MemoryUsage > 0
}

// stats reads the groups of a container, or of a pod, by controller.
func (g *groupFiles) stats(id string, groups map[string]string) runtime.Stats {
	s := runtime.Stats{ID: id, Time: time.Now()}
	r := g.reader()
	defer r.unlock()
	if groups["memory"] == "" {
		r.unified(groups[""], &s)
	} else {
		r.legacy(groups, &s)
	}
	s.CPUPressure = pressure(r.read(groups[""], "cpu.pressure"))
	s.MemoryPressure = pressure(r.read(groups[""], "memory.pressure"))
	s.IOPressure = pressure(r.read(groups[""], "io.pressure"))
	return s
}

func (r groupReader) unified(folder string, s *runtime.Stats) {
	var inactive uint64
	fields(r.read(folder, "memory.stat"), map[string]*uint64{
		"anon": &s.MemoryRSS, "inactive_file": &inactive, "pgfault": &s.PageFaults, "pgmajfault": &s.MajorPageFaults,
	})
	s.MemoryUsage = number(r.read(folder, "memory.current"))
	s.MemoryWorkingSet = less(s.MemoryUsage, inactive)
	s.CPUNanos = keyed(r.read(folder, "cpu.stat"), "usage_usec") * 1000
	s.MemoryLimit = number(r.read(folder, "memory.max"))
	s.SwapUsage = number(r.read(folder, "memory.swap.current"))
	if most := r.read(folder, "memory.swap.max"); len(most) > 0 && most[0] != 'm' {
		limit := number(most)
		s.SwapLimit = &limit
	}
	s.Pids = number(r.read(folder, "pids.current"))
}

func (r groupReader) legacy(folders map[string]string, s *runtime.Stats) {
	var inactive, both uint64
	fields(r.read(folders["memory"], "memory.stat"), map[string]*uint64{
		"total_rss": &s.MemoryRSS, "total_inactive_file": &inactive, "total_pgfault": &s.PageFaults, "total_pgmajfault": &s.MajorPageFaults,
		"total_swap": &s.SwapUsage, "hierarchical_memory_limit": &s.MemoryLimit, "hierarchical_memsw_limit": &both,
	})
	if s.MemoryLimit >= noLimit {
		s.MemoryLimit = 0
	}
	if both > 0 && both < noLimit && s.MemoryLimit > 0 {
		swap := less(both, s.MemoryLimit)
		s.SwapLimit = &swap
	}
	s.MemoryUsage = number(r.read(folders["memory"], "memory.usage_in_bytes"))
	s.MemoryWorkingSet = less(s.MemoryUsage, inactive)
	s.CPUNanos = number(r.read(folders["cpuacct"], "cpuacct.usage"))
	s.Pids = number(r.read(folders["pids"], "pids.current"))
}

// pressure reads lines as "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", in percent and microseconds; nil without any.
func pressure(data []byte) *runtime.Pressure {
	var p *runtime.Pressure
	for line := range bytes.Lines(data) {
		f := bytes.Fields(line)
		if len(f) == 0 {
			continue
		}
		if p == nil {
			p = &runtime.Pressure{}
		}
		to := &p.Some
		if string(f[0]) == "full" {
			to = &p.Full
		}
		for _, field := range f[1:] {
			key, value, _ := strings.Cut(string(field), "=")
			switch key {
			case "avg10":
				to.Avg10, _ = strconv.ParseFloat(value, 64)
			case "avg60":
				to.Avg60, _ = strconv.ParseFloat(value, 64)
			case "avg300":
				to.Avg300, _ = strconv.ParseFloat(value, 64)
			case "total":
				micros, _ := strconv.ParseUint(value, 10, 64)
				to.TotalNanos = micros * 1000
			}
		}
	}
	return p
}

// fields fills in the numbers behind keys of a file of "key number" lines.
func fields(data []byte, want map[string]*uint64) {
	for line := range bytes.Lines(data) {
		key, value, _ := bytes.Cut(line, []byte{' '})
		if to, ok := want[string(key)]; ok {
			*to, _ = strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64)
		}
	}
}

// noLimit is about what cgroup v1 says for no limit: the highest number of whole pages.
const noLimit = math.MaxInt64 - 4096*16

// number reads one number; "max", and what cgroup v1 says instead of it, is 0.
func number(data []byte) uint64 {
	n, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 64)
	if err != nil || n >= noLimit {
		return 0
	}
	return n
}

func less(a, b uint64) uint64 { return a - min(a, b) }
