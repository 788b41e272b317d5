package starter

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a program sees that was started with a lax mask and open files.
func TestForget(t *testing.T) {
	if os.Getenv("STARTER_TEST_CHILD") != "" {
		Forget(4)
		_, lost := unix.FcntlInt(3, unix.F_GETFD, 0)
		kept, err := unix.FcntlInt(4, unix.F_GETFD, 0)
		fmt.Printf("mask %o, lost %v, kept %v %v\n", unix.Umask(0), lost, kept == unix.FD_CLOEXEC, err)
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
		if want := "mask 22, lost bad file descriptor, kept true <nil>\n"; err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("with mask %s: %q, %v; want %q", mask, out, err, want)
		}
	}
}
