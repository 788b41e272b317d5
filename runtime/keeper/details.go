//go:build cgo

package keeper

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// details reads what only metrics show, from further files of the cgroup and from
// /proc: about ten times the work of stats.
func (c *container) details() *runtime.Details {
	d := &runtime.Details{}
	r := groupReader{buf: groupBuffers.Get().(*[groupFileSize]byte)}
	defer groupBuffers.Put(r.buf)
	procs := c.cgroups[""]
	if c.unified() {
		r.unifiedDetails(procs, d)
	} else {
		procs = c.cgroups["pids"]
		r.legacyDetails(c.cgroups, d)
	}
	if procs == "" {
		procs = c.cgroups["devices"]
	}
	d.PidsLimit = number(r.read(procs, "pids.max"))
	countOpen(procs, d)
	var limit unix.Rlimit
	if pid := c.snapshot().Pid; pid > 0 && unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		d.MaxOpenFiles = limit.Cur
	}
	return d
}

func (r groupReader) unifiedDetails(folder string, d *runtime.Details) {
	var user, system, throttled uint64
	fields(r.read(folder, "cpu.stat"), map[string]*uint64{
		"user_usec": &user, "system_usec": &system, "nr_periods": &d.CPUPeriods, "nr_throttled": &d.CPUThrottledPeriods, "throttled_usec": &throttled,
	})
	d.CPUUserNanos, d.CPUSystemNanos, d.CPUThrottledNanos = user*1000, system*1000, throttled*1000
	fields(r.read(folder, "memory.stat"), map[string]*uint64{
		"file": &d.MemoryCache, "file_mapped": &d.MemoryMapped, "active_file": &d.MemoryActiveFile, "inactive_file": &d.MemoryInactiveFile, "kernel": &d.MemoryKernel,
	})
	fields(r.read(folder, "memory.events"), map[string]*uint64{"max": &d.MemoryFailures, "high": &d.MemoryHighEvents, "oom_kill": &d.OOMKills})
	d.MemoryPeak = number(r.read(folder, "memory.peak"))
	for line := range bytes.Lines(r.read(folder, "io.stat")) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		io := device(d, f[0])
		for _, kv := range f[1:] {
			key, value, _ := strings.Cut(kv, "=")
			n, _ := strconv.ParseUint(value, 10, 64)
			switch key {
			case "rbytes":
				io.ReadBytes = n
			case "wbytes":
				io.WriteBytes = n
			case "rios":
				io.Reads = n
			case "wios":
				io.Writes = n
			}
		}
	}
}

func (r groupReader) legacyDetails(folders map[string]string, d *runtime.Details) {
	d.CPUUserNanos = number(r.read(folders["cpuacct"], "cpuacct.usage_user"))
	d.CPUSystemNanos = number(r.read(folders["cpuacct"], "cpuacct.usage_sys"))
	fields(r.read(folders["cpu"], "cpu.stat"), map[string]*uint64{
		"nr_periods": &d.CPUPeriods, "nr_throttled": &d.CPUThrottledPeriods, "throttled_time": &d.CPUThrottledNanos,
	})
	memory := folders["memory"]
	fields(r.read(memory, "memory.stat"), map[string]*uint64{
		"total_cache": &d.MemoryCache, "total_mapped_file": &d.MemoryMapped, "total_active_file": &d.MemoryActiveFile, "total_inactive_file": &d.MemoryInactiveFile,
	})
	fields(r.read(memory, "memory.oom_control"), map[string]*uint64{"oom_kill": &d.OOMKills})
	d.MemoryKernel = number(r.read(memory, "memory.kmem.usage_in_bytes"))
	d.MemoryPeak = number(r.read(memory, "memory.max_usage_in_bytes"))
	d.MemoryFailures = number(r.read(memory, "memory.failcnt"))
	for file, of := range map[string]func(*runtime.DeviceIO) (read, write *uint64){
		"blkio.throttle.io_service_bytes_recursive": func(io *runtime.DeviceIO) (read, write *uint64) { return &io.ReadBytes, &io.WriteBytes },
		"blkio.throttle.io_serviced_recursive":      func(io *runtime.DeviceIO) (read, write *uint64) { return &io.Reads, &io.Writes },
	} {
		for line := range bytes.Lines(r.read(folders["blkio"], file)) {
			f := strings.Fields(string(line))
			if len(f) != 3 {
				continue
			}
			n, _ := strconv.ParseUint(f[2], 10, 64)
			read, write := of(device(d, f[0]))
			switch f[1] {
			case "Read":
				*read = n
			case "Write":
				*write = n
			}
		}
	}
}

// device is the entry of a device, "MAJOR:MINOR".
func device(d *runtime.Details, number string) *runtime.DeviceIO {
	for i := range d.IO {
		if d.IO[i].Device == number {
			return &d.IO[i]
		}
	}
	d.IO = append(d.IO, runtime.DeviceIO{Device: number})
	return &d.IO[len(d.IO)-1]
}

// maxOpenCounted bounds the files of one container that are looked at: one may have millions.
const maxOpenCounted = 1 << 14

// countOpen counts processes, threads, open files and sockets of a cgroup.
func countOpen(folder string, d *runtime.Details) {
	procs, _ := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
	for pid := range bytes.FieldsSeq(procs) {
		proc := "/proc/" + string(pid)
		tasks, _ := os.ReadDir(proc + "/task")
		d.Threads += uint64(len(tasks))
		d.Processes++
		if d.OpenFiles > maxOpenCounted {
			continue
		}
		open, _ := os.ReadDir(proc + "/fd")
		d.OpenFiles += uint64(len(open))
		for _, f := range open {
			if to, err := os.Readlink(proc + "/fd/" + f.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				d.Sockets++
			}
		}
	}
}
