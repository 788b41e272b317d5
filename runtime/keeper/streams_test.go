//go:build cgo

package keeper_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// recorder is a Writer that may be read while it is written.
type recorder struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.data.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.data.String()
}

func (h *host) sleeper(edits ...edit) string {
	h.t.Helper()
	id := h.container(h.pod(), []string{"sleep", "1000"}, edits...)
	h.start(id)
	return id
}

func TestExec(t *testing.T) {
	h := newHost(t)
	id := h.sleeper()
	out, errs, code := h.exec(id, "in", "sh", "-c", "cat; echo err >&2; exit 4")
	if out != "in" || errs != "err\n" || code != 4 {
		t.Errorf("exec: %q, %q, %d", out, errs, code)
	}
	if out, _, _ := h.exec(id, "", "grep", "-E", "Seccomp:|NoNewPrivs:", "/proc/self/status"); out != "NoNewPrivs:\t1\nSeccomp:\t2\n" {
		t.Errorf("exec is not confined: %q", out)
	}
	big, _, _ := h.exec(id, "", "head", "-c", "300000", "/dev/zero")
	if len(big) != 300000 {
		t.Errorf("exec gave %d bytes of 300000", len(big))
	}
	// A process that is left behind with the output open does not hold the call up.
	if out, _, _ := h.exec(id, "", "sh", "-c", "sleep 1000 & echo done"); out != "done\n" {
		t.Errorf("exec with a child: %q", out)
	}
	_, err := h.client.Exec(ctx(t), runtime.ExecSpec{ContainerID: id, Args: []string{"/nope"}}, runtime.Stdio{})
	if err == nil || !strings.Contains(err.Error(), "/nope") || !strings.Contains(err.Error(), id) {
		t.Errorf("exec of nothing: %v", err)
	}
	if _, err := h.client.Exec(ctx(t), runtime.ExecSpec{ContainerID: "nobody", Args: []string{"true"}}, runtime.Stdio{}); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("exec in nobody: %v", err)
	}
}

func TestExecPassesFilesThemselves(t *testing.T) {
	h := newHost(t)
	id := h.sleeper()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := h.client.Exec(ctx(t), runtime.ExecSpec{ContainerID: id, Args: []string{"echo", "hi"}}, runtime.Stdio{Stdout: file}); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(file.Name()); string(data) != "hi\n" {
		t.Errorf("file holds %q", data)
	}
}

func TestExecTerminal(t *testing.T) {
	h := newHost(t)
	id := h.sleeper()
	in, keys := io.Pipe()
	var screen recorder
	sizes := make(chan runtime.Size)
	done := make(chan int)
	go func() {
		code, err := h.client.Exec(ctx(t), runtime.ExecSpec{
			ContainerID: id, ExecID: "tty", Args: []string{"sh"}, Terminal: true, Width: 81, Height: 25,
		}, runtime.Stdio{Stdin: in, Stdout: &screen, Resize: sizes})
		if err != nil {
			t.Error(err)
		}
		done <- code
	}()
	said := func(text string) func() bool { return func() bool { return strings.Contains(screen.String(), text) } }
	write := func(text string) {
		if _, err := io.WriteString(keys, text); err != nil {
			t.Error(err)
		}
	}
	write("stty size\n")
	h.eventually("first size", said("25 81"))
	sizes <- runtime.Size{Width: 90, Height: 30}
	write("stty size\n")
	h.eventually("size from the channel", said("30 90"))
	if err := h.client.Resize(ctx(t), id, "tty", 100, 40); err != nil {
		t.Error(err)
	}
	write("stty size; exit 6\n")
	if code := <-done; code != 6 {
		t.Errorf("exit code %d", code)
	}
	if !said("40 100")() {
		t.Errorf("screen: %q", screen.String())
	}
	if err := h.client.Resize(ctx(t), id, "tty", 1, 1); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("resize of an ended exec: %v", err)
	}
}

func TestExecEndsWithItsClient(t *testing.T) {
	h := newHost(t)
	id := h.sleeper()
	c, cancel := context.WithCancel(ctx(t))
	started := &recorder{}
	done := make(chan error)
	go func() {
		// The first process takes SIGHUP, the second does not care for it.
		_, err := h.client.Exec(c, runtime.ExecSpec{ContainerID: id, Args: []string{"sh", "-c", `(trap "" HUP; sleep 777) & echo up; sleep 778`}},
			runtime.Stdio{Stdout: started})
		done <- err
	}()
	h.eventually("exec runs", func() bool { return started.String() != "" })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled exec: %v", err)
	}
	h.eventually("processes are gone", func() bool {
		out, _, _ := h.exec(id, "", "ps", "-o", "args")
		return !strings.Contains(out, "sleep 77")
	})
}

// tree starts processes that have left the exec's session, its process group, and their parents.
const tree = `trap "" HUP; (setsid sh -c 'trap "" HUP; sleep 775 & exec sleep 776' &) ; echo up; sleep 778; sleep 779`

// sleepers are the processes of TestExecEnds… that run, zombies left out.
func (h *host) sleepers(id string) string {
	h.t.Helper()
	out, _, _ := h.exec(id, "", "sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline; done 2>/dev/null | grep -o 'sleep 77[0-9]'`)
	return out
}

func TestExecIsDeadWhenTheCallReturns(t *testing.T) {
	for name, limit := range map[string]func(time.Duration) (context.Context, context.CancelFunc){
		"timeout": func(d time.Duration) (context.Context, context.CancelFunc) { return context.WithTimeout(ctx(t), d) },
		"cancel": func(d time.Duration) (context.Context, context.CancelFunc) {
			c, cancel := context.WithCancel(ctx(t))
			time.AfterFunc(d, cancel)
			return c, cancel
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			id := h.sleeper()
			said := ""
			for d := time.Second; said != "up\n" && d < time.Minute; d *= 4 { // until the machine is fast enough for all of it to be up
				c, cancel := limit(d)
				defer cancel()
				var out recorder
				_, err := h.client.Exec(c, runtime.ExecSpec{ContainerID: id, Args: sh(tree)}, runtime.Stdio{Stdout: &out})
				if !errors.Is(err, c.Err()) || c.Err() == nil {
					t.Errorf("ended exec: %v, context: %v", err, c.Err())
				}
				said = out.String()
			}
			if said != "up\n" {
				t.Fatalf("exec said %q", said)
			}
			if left := h.sleepers(id); left != "" {
				t.Errorf("still there when the call returned: %q", left)
			}
			if s, err := h.client.Container(ctx(t), id); err != nil || s.Status != runtime.Running {
				t.Errorf("container: %+v, %v", s, err)
			}
		})
	}
}

func TestExecLeavesNoGroup(t *testing.T) {
	h := newHost(t)
	id := h.sleeper()
	for range 3 {
		h.exec(id, "", "sh", "-c", "sleep 772 & echo x")
	}
	if got := strings.Count(h.sleepers(id), "sleep 772"); got != 3 {
		t.Errorf("%d of 3 processes that execs have left behind run", got)
	}
	h.eventually("no exec has a cgroup", func() bool {
		left, _ := filepath.Glob("/sys/fs/cgroup/*" + cgroupParent + "/" + id + "/*/cgroup.procs")
		unified, _ := filepath.Glob("/sys/fs/cgroup" + cgroupParent + "/" + id + "/*/cgroup.procs")
		return len(left)+len(unified) == 0
	})
}

func input(once bool) edit {
	return func(_ *runtime.ContainerConfig, s *runtime.ContainerSpec) { s.Stdin, s.StdinOnce = true, once }
}

func TestAttachTwice(t *testing.T) {
	h := newHost(t)
	id := h.container(h.pod(), sh("while read x; do echo got $x; done; echo end"), input(true))
	h.start(id)
	var first, second recorder
	in, keys := io.Pipe()
	var group sync.WaitGroup
	for _, s := range []runtime.Stdio{{Stdin: in, Stdout: &first}, {Stdout: &second}} {
		group.Go(func() {
			if err := h.client.Attach(ctx(t), id, s); err != nil {
				t.Error(err)
			}
		})
	}
	h.eventually("both are attached", func() bool {
		if _, err := io.WriteString(keys, "x\n"); err != nil {
			t.Error(err)
		}
		return strings.Contains(first.String(), "got x") && strings.Contains(second.String(), "got x")
	})
	_ = keys.Close()
	if exit := h.wait(id); exit.Code != 0 {
		t.Errorf("exit %+v", exit)
	}
	group.Wait()
	for _, r := range []*recorder{&first, &second} {
		if !strings.HasSuffix(r.String(), "end\n") {
			t.Errorf("attached client saw %q", r.String())
		}
	}
	if out := h.output(id, "stdout"); !strings.HasSuffix(out, "end\n") {
		t.Errorf("log holds %q", out)
	}
}

func TestAttachToTerminal(t *testing.T) {
	h := newHost(t)
	id := h.container(h.pod(), sh("while read x; do stty size; done"), func(c *runtime.ContainerConfig, s *runtime.ContainerSpec) {
		c.Terminal, s.Stdin = true, true
	})
	h.start(id)
	var screen recorder
	in, keys := io.Pipe()
	c, cancel := context.WithCancel(ctx(t))
	done := make(chan error)
	go func() { done <- h.client.Attach(c, id, runtime.Stdio{Stdin: in, Stdout: &screen}) }()
	h.eventually("size is seen", func() bool {
		if err := h.client.Resize(ctx(t), id, "", 77, 33); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(keys, "\n")
		return strings.Contains(screen.String(), "33 77")
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("attach: %v", err)
	}
	if s, err := h.client.Container(ctx(t), id); err != nil || s.Status != runtime.Running {
		t.Errorf("after detaching: %+v, %v", s, err)
	}
}

func TestLongLinesAndReopen(t *testing.T) {
	h := newHost(t)
	id := h.container(h.pod(), sh("head -c 40000 /dev/zero | tr '\\0' a; echo; echo short; read x; echo after"), input(false))
	h.start(id)
	h.eventually("first lines are logged", func() bool { return strings.Contains(h.output(id, "stdout"), "short") })
	data, _ := os.ReadFile(h.log(id))
	var tags []string
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(line, " ", 4)
		tags = append(tags, fields[2])
		if len(fields[3]) > 16<<10+1 {
			t.Errorf("line of %d bytes", len(fields[3]))
		}
	}
	if got := strings.Join(tags, ""); got != "PPFF" {
		t.Errorf("tags %s", got)
	}
	if err := os.Rename(h.log(id), h.log(id)+".1"); err != nil {
		t.Fatal(err)
	}
	if err := h.client.ReopenLog(ctx(t), id); err != nil {
		t.Fatal(err)
	}
	c, cancel := context.WithCancel(ctx(t))
	defer cancel()
	go func() { _ = h.client.Attach(c, id, runtime.Stdio{Stdin: strings.NewReader("go\n")}) }()
	h.wait(id)
	if got := h.output(id, "stdout"); got != "after\n" {
		t.Errorf("new log holds %q", got)
	}
}

func TestFullLogDiskStopsNothing(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=8k"); err != nil {
		t.Skip("needs a tmpfs for a disk that is full:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	h := newHost(t)
	id, exit := h.runOnce(h.pod(), sh("head -c 1000000 /dev/zero; echo; echo done; exit 2"), func(_ *runtime.ContainerConfig, s *runtime.ContainerSpec) {
		s.LogPath = disk + "/log"
	})
	if exit.Code != 2 {
		t.Errorf("exit %+v of %s", exit, id)
	}
}

func TestLogThroughLinkIsRefused(t *testing.T) {
	h := newHost(t)
	spec := h.spec(h.pod(), []string{"true"})
	if err := os.Symlink("/etc/hostname", spec.LogPath); err != nil {
		t.Fatal(err)
	}
	if err := h.client.CreateContainer(ctx(t), spec); err == nil || !strings.Contains(err.Error(), spec.LogPath) {
		t.Errorf("log through a link: %v", err)
	}
}

func TestStats(t *testing.T) {
	h := newHost(t)
	var group string
	id := h.sleeper(memory(64<<20), func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) { group = c.CgroupPath })
	var stats []runtime.Stats
	var err error
	h.eventually("init has become the command", func() bool {
		stats, err = h.client.Stats(ctx(t))
		return err != nil || len(stats) == 1 && stats[0].Pids == 1
	})
	if err != nil {
		t.Fatal(err)
	}
	if s := stats[0]; s.ID != id || s.CPUNanos == 0 || s.MemoryLimit != 64<<20 || s.Pids != 1 || s.MemoryUsage == 0 {
		t.Errorf("stats %+v", s)
	}
	// Where the kernel tells of pressure at the root, it does of each group.
	var here []string
	for _, path := range []string{"/sys/fs/cgroup/cpu.pressure", "/sys/fs/cgroup/unified/cpu.pressure"} {
		if _, err := os.ReadFile(path); err == nil {
			here = append(here, path)
		}
	}
	if s := stats[0]; (s.CPUPressure == nil || s.MemoryPressure == nil || s.IOPressure == nil) != (len(here) == 0) {
		t.Errorf("pressure %+v, %+v, %+v; the kernel has %v", s.CPUPressure, s.MemoryPressure, s.IOPressure, here)
	}
	// The group above has nothing else in it.
	above, err := h.client.GroupStats(ctx(t), filepath.Dir(group), group+"/none")
	if err != nil || len(above) != 1 || above[0].ID != filepath.Dir(group) || above[0].MemoryUsage == 0 || above[0].CPUNanos < stats[0].CPUNanos {
		t.Errorf("stats of %s: %+v, %v", filepath.Dir(group), above, err)
	}
	if none, err := h.client.GroupStats(ctx(t)); err != nil || len(none) != 0 {
		t.Errorf("stats of no group: %+v, %v", none, err)
	}
}

// Details have what the container did and has.
func TestDetails(t *testing.T) {
	h := newHost(t)
	id := h.container(h.pod(), sh("sleep 1000 & exec 7</dev/null 8</dev/null; x=0; while [ $x -lt 100000 ]; do x=$((x+1)); done; echo up; while :; do sleep 1; done"), memory(64<<20))
	h.start(id)
	h.eventually("it is up", func() bool { return strings.Contains(h.output(id, "stdout"), "up") })
	stats, err := h.client.DetailedStats(ctx(t), id)
	if err != nil || len(stats) != 1 || stats[0].Details == nil {
		t.Fatalf("%+v, %v", stats, err)
	}
	if d := stats[0].Details; d.CPUUserNanos == 0 || d.MemoryPeak == 0 || d.Processes < 2 || d.Threads < 2 || d.OpenFiles < 5 || d.MaxOpenFiles == 0 || d.Sockets != 0 || d.OOMKills != 0 {
		t.Errorf("%+v", d)
	}
	if stats, err = h.client.Stats(ctx(t), id); err != nil || stats[0].Details != nil {
		t.Errorf("details that nobody asked for: %+v, %v", stats, err)
	}
}

func TestExitsStream(t *testing.T) {
	h := newHost(t)
	exits, err := h.client.Exits(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	id, _ := h.runOnce(h.pod(), sh("exit 9"))
	if exit := <-exits; exit.ID != id || exit.Code != 9 {
		t.Errorf("exit %+v", exit)
	}
}
