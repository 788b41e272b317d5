package starter

import (
	"fmt"
	"math/bits"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a program sees that was started with a lax mask and open files.
func TestForget(t *testing.T) {
	if os.Getenv("STARTER_TEST_CHILD") != "" {
		for signal := uintptr(32); signal <= 34; signal++ {
			new(action).exchange(signal, &action{handler: ignore})
		}
		before := ignored(t)
		Forget(4)
		_, lost := unix.FcntlInt(3, unix.F_GETFD, 0)
		kept, err := unix.FcntlInt(4, unix.F_GETFD, 0)
		fmt.Printf("mask %o, lost %v, kept %v %v, ignored %d %d\n", unix.Umask(0), lost, kept == unix.FD_CLOEXEC, err, before, ignored(t))
		return
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, mask := range []string{"000", "077"} {
		child := exec.Command("sh", "-c", "umask "+mask+`; exec "$0" -test.run 'TestForget$'`, program)
		child.Env = append(os.Environ(), "STARTER_TEST_CHILD=1")
		child.ExtraFiles = []*os.File{f, f}
		out, err := child.Output()
		if want := "mask 22, lost bad file descriptor, kept true <nil>, ignored 3 0\n"; err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("with mask %s: %q, %v; want %q", mask, out, err, want)
		}
	}
}

// ignored is how many of the signals 32 to 34 this process ignores.
func ignored(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "SigIgn:\t")
	line, _, _ := strings.Cut(rest, "\n")
	set, err := strconv.ParseUint(line, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return bits.OnesCount64(set & (7 << 31))
}
