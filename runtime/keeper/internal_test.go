//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

func TestAppendLines(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	head := "2026-01-02T03:04:05.0000006Z stdout "
	long := strings.Repeat("x", maxLine)
	for name, c := range map[string]struct {
		data  string
		last  bool
		want  string
		taken int
	}{
		"two lines":        {"a\nb\n", false, head + "F a\n" + head + "F b\n", 4},
		"unfinished":       {"a\nb", false, head + "F a\n", 2},
		"last unfinished":  {"a\nb", true, head + "F a\n" + head + "P b\n", 3},
		"empty line":       {"\n", false, head + "F \n", 1},
		"just long enough": {long + "\n", false, head + "F " + long + "\n", maxLine + 1},
		"too long":         {long + "y\n", false, head + "P " + long + "\n" + head + "F y\n", maxLine + 2},
		"long unfinished":  {long, false, "", 0},
	} {
		out, taken := appendLines(nil, now, "stdout", []byte(c.data), c.last)
		if string(out) != c.want || taken != c.taken {
			t.Errorf("%s: took %d, wrote %.200q", name, taken, out)
		}
	}
}

func TestClampCutsToWhatTheKeeperHas(t *testing.T) {
	l := readLimits(slog.New(slog.NewTextHandler(io.Discard, nil)))
	l.bounding, l.mayRaise, l.oomScore = 1, false, 0
	l.rlimitOf = func(int) (unix.Rlimit, error) { return unix.Rlimit{Max: 100}, nil }
	score := -500
	caps := []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}
	p := &specs.Process{
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps},
		OOMScoreAdj:  &score,
		Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 200, Hard: 300}, {Type: "RLIMIT_CPU", Soft: 1, Hard: 2}},
	}
	l.clamp(p)
	if !slices.Equal(p.Capabilities.Bounding, caps[:1]) || !slices.Equal(p.Capabilities.Effective, caps[:1]) {
		t.Errorf("capabilities %+v", p.Capabilities)
	}
	if *p.OOMScoreAdj != 0 || p.Rlimits[0].Soft != 100 || p.Rlimits[0].Hard != 100 || p.Rlimits[1].Hard != 2 {
		t.Errorf("score %d, rlimits %+v", *p.OOMScoreAdj, p.Rlimits)
	}
}

func TestReadReadyKnowsDeathFromReadiness(t *testing.T) {
	for said, good := range map[string]bool{"\x00": true, "": false, "\x05": false, "\x00\x0d": false} {
		if err := readReady(strings.NewReader(said)); (err == nil) != good {
			t.Errorf("%q: %v", said, err)
		}
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"A=1", "AB=2"}, []string{"A=3", "C=4"})
	if !slices.Equal(got, []string{"AB=2", "A=3", "C=4"}) {
		t.Errorf("merged to %v", got)
	}
}

// A reader that is slow loses its stream, and nobody waits for it.
func TestExitsNeverBlock(t *testing.T) {
	k := &Keeper{exits: map[chan runtime.Exit]struct{}{}}
	ch := k.subscribe()
	for range exitBacklog + 1 {
		k.tell(runtime.Exit{})
	}
	n := 0
	for range ch {
		n++
	}
	if n != exitBacklog {
		t.Errorf("%d exits before the stream ended", n)
	}
}

// The head of a FIFO is looked at and stays: a killed keeper loses nothing.
func TestPeekLeavesWhatItReads(t *testing.T) {
	var pool pipePool
	fifo, err := pool.get()
	if err != nil {
		t.Fatal(err)
	}
	defer closePipe(fifo)
	if _, err := pool.peek(fifo[0], make([]byte, 8)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("peek at nothing: %v", err)
	}
	if _, err := unix.Write(fifo[1], []byte("content")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		buf := make([]byte, 64)
		if n, err := pool.peek(fifo[0], buf); err != nil || string(buf[:n]) != "content" {
			t.Errorf("peek: %q, %v", buf[:n], err)
		}
	}
}

// A process that was just released is libcontainer's for a moment, and must become its program first.
func TestWaitForProgram(t *testing.T) {
	cmd := exec.Command("sh", "-c", "printf 'runc:[2:INIT]' > /proc/$$/comm; echo ready; sleep 0.1; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
		t.Fatal(err)
	}
	waitForProgram(cmd.Process.Pid)
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid)); err != nil || string(name) != "sleep\n" {
		t.Errorf("the process is %q, %v", name, err)
	}
}
