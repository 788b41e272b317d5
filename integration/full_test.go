//go:build integration

package integration

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pausa-run/pausa/integration/host"
)

// Each folder in turn on a file system of its own that is full, of bytes or of
// files. What runs goes on; it can be looked at, entered and deleted, and what
// cannot be done says why. With room again, all works.
func TestFullDisks(t *testing.T) {
	for _, c := range []struct{ folder, of string }{
		{"state", "bytes"}, {"state", "files"}, {"run", "bytes"}, {"run", "files"}, {"images", "files"}, {"logs", "bytes"},
	} {
		t.Run(c.folder+" has no "+c.of, func(t *testing.T) {
			d := newFullDisk(t, c.folder, c.of)
			d.fill()
			d.use()
			d.free()
			d.check()
		})
	}
}

// fullDisk is a node with one folder on a small file system.
type fullDisk struct {
	*node
	dir, of string
}

func newFullDisk(t *testing.T, folder, of string) *fullDisk {
	t.Helper()
	n := newHost(t, "full"+folder+of)
	dir := map[string]string{
		"state": n.StateDir, "run": host.RunDir, "images": filepath.Join(n.StateDir, "images"), "logs": filepath.Join(n.StateDir, "logs"),
	}[folder]
	if _, err := n.Output("sh", "-c", fmt.Sprintf("mkdir -p -m 700 %s && mount -t tmpfs -o mode=700,size=64m,nr_inodes=4000 full %[1]s", dir)); err != nil {
		t.Fatal(err)
	}
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	n.baseline()
	n.apply(shellPod("old", "while :; do echo line; sleep 0.2; done"))
	n.apply(shellPod("doomed", "exec sleep 100000"))
	n.waitReady("", 2)
	return &fullDisk{n, dir, of}
}

// fill leaves not a byte, or not an inode.
func (d *fullDisk) fill() {
	d.t.Helper()
	script := "mkdir DIR/filler; cat /dev/zero >DIR/filler/zeros 2>/dev/null; for i in 1 2 3 4 5 6 7 8; do echo x >>DIR/filler/zeros; done 2>/dev/null; true"
	if d.of == "files" {
		script = "mkdir DIR/filler; cd DIR/filler; seq 5000 | xargs touch 2>/dev/null; true"
	}
	if _, err := d.Output("sh", "-c", strings.ReplaceAll(script, "DIR", d.dir)); err != nil {
		d.t.Fatal(err)
	}
}

func (d *fullDisk) free() {
	d.t.Helper()
	if _, err := d.Output("rm", "-rf", d.dir+"/filler"); err != nil {
		d.t.Fatal(err)
	}
}

// use does everything while there is no room.
func (d *fullDisk) use() {
	d.t.Helper()
	read := func() {
		d.t.Helper()
		for _, args := range [][]string{
			{"get", "pods", "-A"}, {"describe", "pod", "old"}, {"logs", "old", "--tail", "1"}, {"images", "list"}, {"info"}, {"exec", "old", "--", "true"},
		} {
			d.ok(args...)
		}
	}
	read()
	const reason = "no space left on device"
	_, stderr, code := d.CLI(shellPod("new", "exec sleep 100000"), "apply", "-f", "-")
	if code != 0 && !strings.Contains(stderr, reason) {
		d.t.Errorf("apply: %s", stderr)
	}
	if code == 0 {
		d.eventually("the new pod runs, or says why not", func() error {
			if out := d.ok("describe", "pod", "new"); !isReady(*d.pod("new")) && !strings.Contains(out, reason) {
				return errors.New(out)
			}
			return nil
		})
	}
	d.ok("delete", "pod", "doomed")
	if err := d.KillDaemon(syscall.SIGKILL); err != nil {
		d.t.Fatal(err)
	}
	d.restart()
	if d.pod("doomed") != nil {
		d.t.Error("the deleted pod is back")
	}
	read()
}

// check expects that all works again.
func (d *fullDisk) check() {
	d.t.Helper()
	d.eventually("a new pod is made", func() error {
		_, stderr, code := d.CLI(shellPod("new", "exec sleep 100000"), "apply", "-f", "-")
		if code != 0 {
			return errors.New(stderr)
		}
		return nil
	})
	d.waitReady("app=new", 1)
	d.waitReady("app=old", 1)
	for _, p := range d.pods("") {
		for _, c := range p.Status.ContainerStatuses {
			if p.Name == "old" && c.RestartCount > 0 {
				d.t.Errorf("%s has been restarted: %+v", p.Name, c)
			}
		}
	}
	d.ok("delete", "pod", "new")
}
