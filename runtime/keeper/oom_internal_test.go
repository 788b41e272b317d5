//go:build cgo

package keeper

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestOOMEventsOutliveTheGroup: with systemd on cgroup v1 the group may be gone before it can be asked.
func TestOOMEventsOutliveTheGroup(t *testing.T) {
	const root = "/sys/fs/cgroup/memory"
	if _, err := os.Stat(filepath.Join(root, "cgroup.event_control")); err != nil || os.Geteuid() != 0 {
		t.Skipf("needs cgroup v1, as root: %v", err)
	}
	for command, want := range map[string]bool{"tail /dev/zero": true, "true": false} {
		group := filepath.Join(root, fmt.Sprintf("pausa-oom-test-%d", os.Getpid()))
		if err := os.Mkdir(group, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(group, "memory.limit_in_bytes"), []byte("16777216"), 0); err != nil {
			t.Error(err)
		}
		events, err := listenForOOM(group)
		if err != nil {
			t.Fatal(err)
		}
		_ = exec.Command("sh", "-c", "echo $$ >"+group+"/cgroup.procs; exec "+command).Run()
		for deadline := time.Now().Add(10 * time.Second); os.Remove(group) != nil && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if got := oomSignalled(events); got != want {
			t.Errorf("%s: out of memory %v, want %v", command, got, want)
		}
		_ = events.Close()
	}
}
