package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pausa-run/pausa/integration/host"
)

// Kinds of measurements.
const (
	kindPull   = "pull"
	kindPulls  = "pulls" // many of the same image at once
	kindImport = "import"
)

// runtime is what is measured, as shell commands that know $DIR, $RUN, $REF and $ARCHIVE.
type runtime struct {
	Name, bin, daemon, serve, ready, pull, load string
}

// fill describes Pausa.
func (r *runtime) fill(bin string) {
	pausa := filepath.Join(bin, "pausa")
	cli := pausa + " --socket $RUN/s.sock "
	r.bin = bin
	r.serve = "exec " + pausa + " serve --state $DIR/state --run $RUN/pausa --socket $RUN/s.sock"
	r.ready = cli + "info"
	r.pull = cli + "images pull $REF"
	r.load = cli + "images import $ARCHIVE"
}

// measurement is one run of one kind.
type measurement struct {
	Runtime string  `json:"runtime"`
	Kind    string  `json:"kind"`
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpuSeconds"` // of the daemon
	PeakMB  float64 `json:"peakMB"`     // resident, of the daemon
	SentMB  float64 `json:"sentMB"`     // by the registry
}

// measure does one run on a host of its own.
func measure(ctx context.Context, r *runtime, l layout, o options, kind string) (_ measurement, err error) {
	h, err := host.Start("imagebench", r.bin)
	if err != nil {
		return measurement{}, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	on := onHost{h, r, []string{
		"DIR=" + h.Dir, "RUN=/run", "ARCHIVE=" + l.archive(), "REF=" + registryAddress + "/" + imageName,
		"PAUSA_CGROUP_PARENT=" + h.CgroupParent,
	}}
	if err := on.start(ctx, l, o.rate); err != nil {
		return measurement{}, err
	}
	command, n := r.pull, 1
	switch kind {
	case kindPulls:
		n = o.at
	case kindImport:
		command = r.load
	}
	syscall.Sync()
	m := measurement{Runtime: r.Name, Kind: kind}
	before, _, err := on.used()
	if err != nil {
		return m, err
	}
	begin := time.Now()
	if err := on.repeat(ctx, command, n); err != nil {
		return m, err
	}
	m.Seconds = time.Since(begin).Seconds()
	if m.CPU, m.PeakMB, err = on.used(); err != nil {
		return m, err
	}
	m.CPU -= before
	m.SentMB, err = on.sent(ctx)
	fmt.Printf("%-12s %-7s %7.2f s %7.2f s CPU %7.1f MB peak %7.1f MB sent\n", m.Runtime, m.Kind, m.Seconds, m.CPU, m.PeakMB, m.SentMB)
	return m, err
}

// onHost is a runtime on a host.
type onHost struct {
	*host.Host
	r   *runtime
	env []string
}

func (h onHost) shell(ctx context.Context, command string) *exec.Cmd {
	cmd := h.Command(ctx, "sh", "-c", command)
	cmd.Env = append(os.Environ(), h.env...)
	return cmd
}

// start starts registry and daemon, and returns when both answer. They end with the host.
func (h onHost) start(ctx context.Context, l layout, rate int64) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	registry := h.Command(context.Background(), self, "-image", l.dir, "-rate", strconv.FormatInt(rate, 10), "-serve-registry", h.control())
	log, err := os.OpenFile(filepath.Join(h.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	daemon := h.shell(context.Background(), h.r.serve)
	daemon.Stdout, daemon.Stderr = log, log
	for _, c := range []*exec.Cmd{registry, daemon} {
		if err := c.Start(); err != nil {
			return err
		}
		go func() { _ = c.Wait() }()
	}
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := h.shell(ctx, h.r.ready).CombinedOutput()
		if err == nil {
			_, err = h.sent(ctx)
		}
		if err == nil {
			return nil
		}
		if time.Now().After(limit) {
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("it does not answer: %w: %s%s", err, out, said)
		}
	}
}

// repeat runs a command n times at once.
func (h onHost) repeat(ctx context.Context, command string, n int) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if out, err := h.shell(ctx, command).CombinedOutput(); err != nil {
				errs[i] = fmt.Errorf("%s: %w: %s", command, err, out)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// used is the CPU time and the peak of memory of the daemon.
func (h onHost) used() (seconds, peakMB float64, err error) {
	procs, err := h.Processes()
	if err != nil {
		return 0, 0, err
	}
	for _, p := range procs {
		if p.Comm != h.r.daemon {
			continue
		}
		dir := "/proc/" + strconv.Itoa(p.OuterPid)
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			return 0, 0, err
		}
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			return 0, 0, err
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, ticks := range f[11:13] { // user and system time, a hundredth of a second each
			n, _ := strconv.ParseFloat(ticks, 64)
			seconds += n / 100
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); f[0] == "VmHWM:" {
				kb, _ := strconv.ParseFloat(f[1], 64)
				peakMB += kb * 1024 / 1e6
			}
		}
	}
	if peakMB == 0 {
		return 0, 0, fmt.Errorf("no process is called %q", h.r.daemon)
	}
	return seconds, peakMB, nil
}

// sent asks the registry how much it sent, in MB.
func (h onHost) sent(ctx context.Context) (float64, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.control())
	}
	c := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://registry/sent", nil)
	if err != nil {
		return 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var n float64
	_, err = fmt.Fscan(resp.Body, &n)
	return n / 1e6, err
}

// control is a socket of the registry's that can be reached from outside the host.
func (h onHost) control() string { return filepath.Join(h.Dir, "registry.sock") }
