//go:build cgo

package keeper_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pausa-run/pausa/runtime"
)

// needCRIU skips where criu itself says that this kernel and it do not go together.
func needCRIU(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
		t.Skipf("criu check: %v: %.300s (make vm has a kernel with which it works)", err, out)
	}
}

func target(id, dir string) []runtime.CheckpointTarget {
	return []runtime.CheckpointTarget{{ID: id, Dir: dir}}
}

func TestCheckpoint(t *testing.T) {
	needCRIU(t)
	h := newHost(t)
	id := h.container(h.pod(), sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"))
	h.start(id)
	h.eventually("it counts", func() bool { return h.output(id, "stdout") != "" })
	dir := t.TempDir()
	var before, after string
	err := h.client.Checkpoint(ctx(t), target(id, dir), func() error {
		before = h.output(id, "stdout")
		exec.Command("sleep", "1").Run()
		after = h.output(id, "stdout")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("it ran while its files were looked at: %q, then %q", before, after)
	}
	for _, pattern := range []string{"checkpoint/inventory.img", "checkpoint/core-*.img", "checkpoint/pages-*.img", "checkpoint/descriptors.json"} {
		if found, _ := filepath.Glob(filepath.Join(dir, pattern)); len(found) == 0 {
			t.Errorf("the checkpoint has no %s", pattern)
		}
	}
	h.eventually("it counts on", func() bool { return len(h.output(id, "stdout")) > len(after) })
	if _, _, code := h.exec(id, "", "true"); code != 0 {
		t.Errorf("exec after a checkpoint: %d", code)
	}
}

// A client that goes away must leave no frozen container behind.
func TestCheckpointOfAVanishedClient(t *testing.T) {
	needCRIU(t)
	h := newHost(t)
	id := h.container(h.pod(), sh("while :; do echo x; sleep 0.1; done"))
	h.start(id)
	gone := errors.New("the client's own error")
	if err := h.client.Checkpoint(ctx(t), target(id, t.TempDir()), func() error { return gone }); !errors.Is(err, gone) {
		t.Errorf("error %v", err)
	}
	said := len(h.output(id, "stdout"))
	h.eventually("it goes on", func() bool { return len(h.output(id, "stdout")) > said })
}

func TestCheckpointRefusals(t *testing.T) {
	h := newHost(t)
	never := func() error { t.Error("called without a checkpoint"); return nil }
	if err := h.client.Checkpoint(ctx(t), target("nobody", t.TempDir()), never); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("unknown container: %v", err)
	}
	id := h.container(h.pod(), []string{"sleep", "1000"})
	want := runtime.ErrState // it does not run yet
	if _, err := exec.LookPath("criu"); err != nil {
		want = runtime.ErrNoCRIU
	}
	if err := h.client.Checkpoint(ctx(t), target(id, t.TempDir()), never); !errors.Is(err, want) {
		t.Errorf("created container: %v, want %v", err, want)
	}
}

// Two containers are frozen before either is written, and both go on.
func TestCheckpointOfTwo(t *testing.T) {
	needCRIU(t)
	h := newHost(t)
	pod := h.pod()
	count := sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")
	one, two := h.container(pod, count), h.container(pod, count)
	h.start(one)
	h.start(two)
	h.eventually("both count", func() bool { return h.output(one, "stdout") != "" && h.output(two, "stdout") != "" })
	dirs := []string{t.TempDir(), t.TempDir()}
	var before, after [2]string
	err := h.client.Checkpoint(ctx(t), []runtime.CheckpointTarget{{ID: one, Dir: dirs[0]}, {ID: two, Dir: dirs[1]}}, func() error {
		before = [2]string{h.output(one, "stdout"), h.output(two, "stdout")}
		exec.Command("sleep", "1").Run()
		after = [2]string{h.output(one, "stdout"), h.output(two, "stdout")}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("one ran: %q, then %q", before, after)
	}
	for i, id := range []string{one, two} {
		if _, err := os.Stat(filepath.Join(dirs[i], "checkpoint", "inventory.img")); err != nil {
			t.Error(err)
		}
		h.eventually("it counts on", func() bool { return len(h.output(id, "stdout")) > len(after[i]) })
	}
	// One that cannot be written leaves the other running.
	created := h.container(pod, count)
	err = h.client.Checkpoint(ctx(t), []runtime.CheckpointTarget{{ID: one, Dir: t.TempDir()}, {ID: created, Dir: t.TempDir()}}, func() error { return nil })
	if !errors.Is(err, runtime.ErrState) {
		t.Errorf("one that does not run: %v", err)
	}
	said := len(h.output(one, "stdout"))
	h.eventually("it counts on", func() bool { return len(h.output(one, "stdout")) > said })
}
