package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// payload marks the containers' own processes: they are not the runtime's.
const payload = "cribench-payload"

// memory is the proportional share (PSS) of the daemon and its helpers, in MB (10^6 bytes).
type memory struct {
	Empty  float64 `json:"empty"`
	Full   float64 `json:"full"`
	PerPod float64 `json:"perPod"`
}

// settled waits a little for garbage to be collected, then sums up the memory of the
// runtime's processes and what they work meanwhile, in percent of a processor; 0 without
// a daemon to look at.
func (b *bench) settled() (mb, cpu float64, err error) {
	if b.o.daemon == 0 {
		return 0, 0, nil
	}
	const wait = 3 * time.Second
	time.Sleep(wait)
	_, before, err := b.usage()
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(wait)
	mb, after, err := b.usage()
	return mb, 100 * (after - before).Seconds() / wait.Seconds(), err
}

// usage is the memory and the processor time of the daemon and its helpers.
func (b *bench) usage() (mb float64, cpu time.Duration, err error) {
	if b.o.daemon == 0 {
		return 0, 0, nil
	}
	helpers, err := regexp.Compile(b.o.helpers)
	if err != nil {
		return 0, 0, fmt.Errorf("read -helpers: %w", err)
	}
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", b.o.daemon))
	if err != nil {
		return 0, 0, fmt.Errorf("look at the daemon: %w", err)
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, 0, fmt.Errorf("list processes: %w", err)
	}
	for _, d := range dirs {
		comm, _ := os.ReadFile(d + "/comm")
		cmdline, _ := os.ReadFile(d + "/cmdline")
		mounts, _ := os.Readlink(d + "/ns/mnt")
		own := filepath.Base(d) == strconv.Itoa(b.o.daemon)
		// Another runtime's helpers live in another mount namespace.
		helper := helpers.MatchString(strings.TrimSpace(string(comm))) && mounts == home
		if own || helper && !strings.Contains(string(cmdline), payload) {
			mb += pss(d)
			cpu += cpuTime(d)
		}
	}
	return mb, cpu, nil
}

// tick is the kernel's unit of processor time.
const tick = 10 * time.Millisecond

// cpuTime is how long a process has run, with threads that have ended; 0 when it is gone meanwhile.
func cpuTime(dir string) time.Duration {
	raw, _ := os.ReadFile(dir + "/stat")
	_, rest, _ := strings.Cut(string(raw), ") ") // the name may have spaces
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * tick
}

// pss is a process's share in MB; 0 when it is gone meanwhile.
func pss(dir string) float64 {
	raw, _ := os.ReadFile(dir + "/smaps_rollup")
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb * 1024 / 1e6
		}
	}
	return 0
}
