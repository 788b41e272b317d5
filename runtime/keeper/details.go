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
func (k *Keeper) details(c *container) *runtime.Details {
	d := &runtime.Details{}
	procs := c.cgroups[""]
	if !c.unified() {
		procs = c.cgroups["pids"]
	}
	if procs == "" {
		procs = c.cgroups["devices"]
	}
	r := k.groups.reader()
	if c.unified() {
		r.unifiedDetails(procs, d)
	} else {
		r.legacyDetails(c.cgroups, d)
	}
	d.PidsLimit = number(r.readOnce(procs, "pids.max"))
	r.unlock()
	countOpen(procs, d)
	var limit unix.Rlimit
	if pid := c.snapshot().Pid; pid > 0 && unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		d.MaxOpenFiles = limit.Cur
	}
	return d
}

func (r groupReader) unifiedDetails(folder string, d *runtime.Details) {
	var user, system, throttled, burst uint64
	fields(r.read(folder, "cpu.stat"), map[string]*uint64{
		"user_usec": &user, "system_usec": &system, "nr_periods": &d.CPUPeriods, "nr_throttled": &d.CPUThrottledPeriods, "throttled_usec": &throttled,
		"nr_bursts": &d.CPUBurstPeriods, "burst_usec": &burst,
	})
	d.CPUUserNanos, d.CPUSystemNanos, d.CPUThrottledNanos, d.CPUBurstNanos = user*1000, system*1000, throttled*1000, burst*1000
	fields(r.read(folder, "memory.stat"), map[string]*uint64{
		"file": &d.MemoryCache, "file_mapped": &d.MemoryMapped, "active_file": &d.MemoryActiveFile, "inactive_file": &d.MemoryInactiveFile, "kernel": &d.MemoryKernel,
		"file_dirty": &d.MemoryDirty, "file_writeback": &d.MemoryWriteback, "pgscan": &d.PagesScanned, "pgsteal": &d.PagesStolen,
		"workingset_refault_file": &d.FileRefaults, "workingset_refault_anon": &d.AnonRefaults,
	})
	fields(r.readOnce(folder, "memory.events"), map[string]*uint64{"max": &d.MemoryFailures, "high": &d.MemoryHighEvents, "oom_kill": &d.OOMKills})
	d.MemoryPeak = number(r.readOnce(folder, "memory.peak"))
	for line := range bytes.Lines(r.readOnce(folder, "io.stat")) {
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
	d.CPUUserNanos = number(r.readOnce(folders["cpuacct"], "cpuacct.usage_user"))
	d.CPUSystemNanos = number(r.readOnce(folders["cpuacct"], "cpuacct.usage_sys"))
	fields(r.readOnce(folders["cpu"], "cpu.stat"), map[string]*uint64{
		"nr_periods": &d.CPUPeriods, "nr_throttled": &d.CPUThrottledPeriods, "throttled_time": &d.CPUThrottledNanos,
		"nr_bursts": &d.CPUBurstPeriods, "burst_time": &d.CPUBurstNanos,
	})
	memory := folders["memory"]
	fields(r.read(memory, "memory.stat"), map[string]*uint64{
		"total_cache": &d.MemoryCache, "total_mapped_file": &d.MemoryMapped, "total_active_file": &d.MemoryActiveFile, "total_inactive_file": &d.MemoryInactiveFile,
		"total_dirty": &d.MemoryDirty, "total_writeback": &d.MemoryWriteback,
		"total_workingset_refault_file": &d.FileRefaults, "total_workingset_refault_anon": &d.AnonRefaults,
	})
	fields(r.readOnce(memory, "memory.oom_control"), map[string]*uint64{"oom_kill": &d.OOMKills})
	d.MemoryKernel = number(r.readOnce(memory, "memory.kmem.usage_in_bytes"))
	d.MemoryPeak = number(r.readOnce(memory, "memory.max_usage_in_bytes"))
	d.MemoryFailures = number(r.readOnce(memory, "memory.failcnt"))
	for file, of := range map[string]func(*runtime.DeviceIO) (read, write *uint64){
		"blkio.throttle.io_service_bytes_recursive": func(io *runtime.DeviceIO) (read, write *uint64) { return &io.ReadBytes, &io.WriteBytes },
		"blkio.throttle.io_serviced_recursive":      func(io *runtime.DeviceIO) (read, write *uint64) { return &io.Reads, &io.Writes },
	} {
		for line := range bytes.Lines(r.readOnce(folders["blkio"], file)) {
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
