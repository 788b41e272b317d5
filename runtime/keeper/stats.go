//go:build cgo

package keeper

import (
	"bytes"
	"math"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
	"github.com/pausa-run/pausa/runtime/wire"
)

// stats reads the cgroups of the named containers, or of all that run.
func (k *Keeper) stats(q wire.IDs) ([]runtime.Stats, error) {
	list := k.allContainers()
	if len(q.IDs) > 0 {
		list = list[:0]
		for _, id := range q.IDs {
			c, err := k.container(id)
			if err != nil {
				return nil, err
			}
			list = append(list, c)
		}
	}
	out := make([]runtime.Stats, 0, len(list))
	for _, c := range list {
		if c.snapshot().Status == runtime.Running {
			s := c.stats()
			if q.Details {
				s.Details = c.details()
			}
			out = append(out, s)
		}
	}
	return out, nil
}

func (c *container) stats() runtime.Stats {
	s := runtime.Stats{ID: c.id, Time: time.Now()}
	r := groupReader{buf: groupBuffers.Get().(*[groupFileSize]byte)}
	defer groupBuffers.Put(r.buf)
	if c.unified() {
		r.unified(c.cgroups[""], &s)
	} else {
		r.legacy(c.cgroups, &s)
	}
	return s
}

// groupFileSize is more than any of the files that are read.
const groupFileSize = 8 << 10

var groupBuffers = sync.Pool{New: func() any { return new([groupFileSize]byte) }}

// groupReader reads files of cgroups with three system calls each: a node has
// hundreds of them to read every ten seconds.
type groupReader struct{ buf *[groupFileSize]byte }

// read gives the content of a file, until the next call; nothing when the group has gone.
func (r groupReader) read(folder, name string) []byte {
	if folder == "" {
		return nil
	}
	fd, err := unix.Open(folder+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, r.buf[:])
	if err != nil {
		return nil
	}
	return r.buf[:n]
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
	s.Pids = number(r.read(folder, "pids.current"))
	s.OOMKills = keyed(r.read(folder, "memory.events"), "oom_kill")
}

func (r groupReader) legacy(folders map[string]string, s *runtime.Stats) {
	var inactive uint64
	fields(r.read(folders["memory"], "memory.stat"), map[string]*uint64{
		"total_rss": &s.MemoryRSS, "total_inactive_file": &inactive, "total_pgfault": &s.PageFaults,
		"total_pgmajfault": &s.MajorPageFaults, "total_swap": &s.SwapUsage, "hierarchical_memory_limit": &s.MemoryLimit,
	})
	if s.MemoryLimit >= noLimit {
		s.MemoryLimit = 0
	}
	s.MemoryUsage = number(r.read(folders["memory"], "memory.usage_in_bytes"))
	s.MemoryWorkingSet = less(s.MemoryUsage, inactive)
	s.CPUNanos = number(r.read(folders["cpuacct"], "cpuacct.usage"))
	s.Pids = number(r.read(folders["pids"], "pids.current"))
	s.OOMKills = keyed(r.read(folders["memory"], "memory.oom_control"), "oom_kill")
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
