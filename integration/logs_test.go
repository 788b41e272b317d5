//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	logLines  = 1_000_000
	rotations = 50
	logKills  = 4
)

// A million lines, fifty rotations as a kubelet does them, and a daemon that is
// killed in the middle: each line is there once, in order.
func TestLogRotation(t *testing.T) {
	n := newNode(t, "rotation")
	k := newKubelet(t, n)
	// Paced, so that rotations meet lines under way; each burst is as fast as it gets.
	burst := logLines / rotations
	sandbox, container := k.up("lines", fmt.Sprintf("i=0; while [ $i -lt %d ]; do seq $((i*%d+1)) $(((i+1)*%[2]d)); i=$((i+1)); sleep 0.05; done", rotations, burst))
	log := filepath.Join(n.Dir, "logs", "lines", "main.log")
	random := rand.New(rand.NewPCG(*seed, 1))
	kills := map[int]bool{}
	for len(kills) < logKills {
		kills[random.IntN(rotations)] = true
	}
	for i := range rotations {
		if kills[i] {
			if err := n.KillDaemon(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(log, rotated(log, i)); err != nil {
			t.Fatal(err)
		}
		if kills[i] {
			n.restart()
		}
		k.reopen(container)
		time.Sleep(time.Duration(random.IntN(60)) * time.Millisecond) // where a rotation meets the lines
	}
	k.ended(container)
	next := 1
	for i := range rotations + 1 {
		path := log
		if i < rotations {
			path = rotated(log, i)
		}
		next = checkNumbers(t, path, next)
	}
	if next != logLines+1 {
		t.Errorf("the last line is %d, want %d", next-1, logLines)
	}
	k.down(sandbox, container)
}

func rotated(log string, i int) string { return fmt.Sprintf("%s.%d", log, i) }

// reopen asks for a new log file until the daemon answers, as a kubelet does.
func (k *kubelet) reopen(container string) {
	k.n.t.Helper()
	k.n.eventually("the log is opened anew", func() error {
		_, err := k.runtime.ReopenContainerLog(k.ctx, &criv1.ReopenContainerLogRequest{ContainerId: container})
		return err
	})
}

// ended waits until a container has exited.
func (k *kubelet) ended(container string) {
	k.n.t.Helper()
	k.n.eventually("the container has ended", func() error {
		st, err := k.runtime.ContainerStatus(k.ctx, &criv1.ContainerStatusRequest{ContainerId: container})
		if err == nil && st.Status.State != criv1.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("it is %s", st.Status.State)
		}
		return err
	})
}

// checkNumbers reads one log file, whose whole lines count up from next, and returns the number that comes then.
func checkNumbers(t *testing.T, path string, next int) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); next++ {
		_, text, _ := strings.Cut(lines.Text(), " stdout F ")
		if text != strconv.Itoa(next) {
			t.Fatalf("%s: line %q, want number %d", path, lines.Text(), next)
		}
	}
	return next
}

// One line of 10 MB comes in parts that make the line again, from a keeper that never holds it whole.
func TestLogOfOneLongLine(t *testing.T) {
	const size = 10 << 20
	n := newNode(t, "longline")
	k := newKubelet(t, n)
	sandbox, container := k.up("long", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo; echo end", size))
	k.ended(container)
	raw, err := os.ReadFile(filepath.Join(n.Dir, "logs", "long", "main.log"))
	if err != nil {
		t.Fatal(err)
	}
	var line bytes.Buffer
	var whole []string
	for l := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 4)
		if len(f) != 4 || len(l) > 20_000 || f[2] != "P" && f[2] != "F" {
			t.Fatalf("log line %.100q of %d bytes", l, len(l))
		}
		line.WriteString(f[3])
		if f[2] == "F" {
			whole = append(whole, line.String())
			line.Reset()
		}
	}
	if len(whole) != 2 || len(whole[0]) != size || strings.Trim(whole[0], "x") != "" || whole[1] != "end" {
		t.Errorf("there are %d lines, the first of %d bytes", len(whole), len(whole[0]))
	}
	if rss := n.memory("pausa-keeper", ""); rss > 64<<20 {
		t.Errorf("the keeper has %d bytes of memory", rss)
	}
	k.down(sandbox, container)
}

// A full disk below the logs stops neither the container nor its removal, and once there is room lines come again.
func TestLogDiskFull(t *testing.T) {
	n := newNode(t, "logdisk")
	k := newKubelet(t, n)
	logs := filepath.Join(n.Dir, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Output("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", logs); err != nil {
		t.Fatal(err)
	}
	inside := func(args ...string) {
		t.Helper()
		if _, err := n.Output(args...); err != nil {
			t.Fatal(err)
		}
	}
	inside("mkdir", "-p", filepath.Join(logs, "full"))
	sandbox, container := k.up("full", "i=0; while :; do i=$((i+1)); echo line $i; echo $i > /tmp/count; done")
	count := func() int {
		t.Helper()
		ex, err := k.execSync(container, 30, "cat", "/tmp/count")
		if err != nil {
			t.Fatal(err)
		}
		c, _ := strconv.Atoi(strings.TrimSpace(string(ex.Stdout)))
		return c
	}
	file := n.Path(filepath.Join(logs, "full", "main.log"))
	n.eventually("the disk is full", func() error {
		var st syscall.Statfs_t
		if err := syscall.Statfs(n.Path(logs), &st); err != nil || st.Bavail > 0 {
			return errors.Join(err, errors.New("there is room"))
		}
		return nil
	})
	before := count()
	n.eventually("the container goes on", func() error {
		if now := count(); now < before+1000 {
			return fmt.Errorf("it has come from line %d to %d", before, now)
		}
		return nil
	})
	// As a kubelet that rotates: the old file goes, a new one is opened.
	inside("rm", filepath.Join(logs, "full", "main.log"))
	k.reopen(container)
	n.eventually("lines come again", func() error {
		if info, err := os.Stat(file); err != nil || info.Size() == 0 {
			return errors.Join(err, errors.New("the new log is empty"))
		}
		return nil
	})
	k.down(sandbox, container) // removes the folder, and the mount with it
}

// The log's folder is the kubelet's: what somebody put in the place of the file is not followed.
func TestLogThroughLinks(t *testing.T) {
	n := newNode(t, "loglink")
	k := newKubelet(t, n)
	c := n.canary()
	sandbox, container := k.up("link", "while :; do echo line; sleep 0.01; done")
	log := filepath.Join(n.Dir, "logs", "link", "main.log")
	if err := errors.Join(os.Remove(log), os.Symlink(filepath.Join(c.dir, "file"), log)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(k.ctx, 30*time.Second)
	defer cancel()
	if _, err := k.runtime.ReopenContainerLog(ctx, &criv1.ReopenContainerLogRequest{ContainerId: container}); err == nil {
		t.Error("a log was opened through a link")
	}
	c.check("a link in the place of the log")
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	k.reopen(container)
	k.down(sandbox, container)
}
