//go:build cgo

package keeper_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
	"github.com/pausa-run/pausa/runtime/restore"
)

// Processes go on in another pod where they were, confined as the request says, and
// outlive the keeper that restored them.
func TestRestore(t *testing.T) {
	needCRIU(t)
	h := newHost(t)
	count := sh("trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")
	id, dir := h.checkpointOf(count)
	reached := h.counted(id)
	h.signal(id, unix.SIGKILL)
	h.wait(id)

	pod := h.pod(func(s *runtime.PodSpec) { s.Hostname = "again" })
	spec := h.restored(pod, dir, count)
	state := h.start(spec.ID)
	h.eventually("it counts on", func() bool { return h.counted(spec.ID) > reached+2 })
	if first := strings.SplitN(h.output(spec.ID, "stdout"), "\n", 2)[0]; first == "1" {
		t.Error("it began anew")
	}
	for ns, path := range map[string]string{"net": pod.Namespace("net"), "uts": pod.Namespace("uts"), "ipc": pod.Namespace("ipc")} {
		got, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", state.Pid, ns))
		if want, _ := os.Readlink(path); got != want {
			t.Errorf("%s namespace %s, want the pod's %s", ns, got, want)
		}
	}
	out, _, code := h.exec(spec.ID, "", "sh", "-c", "hostname; cat /proc/1/status /proc/1/cgroup")
	for _, want := range []string{"again\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapBnd:\t00000000a80425fb\n", "\n0::/\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q (%d)", want, out, code)
		}
	}

	h.kill()
	h.launch()
	said := h.counted(spec.ID)
	h.eventually("it counts on under another keeper", func() bool { return h.counted(spec.ID) > said })
	h.signal(spec.ID, unix.SIGTERM)
	if exit := h.wait(spec.ID); exit.Code != 9 && !exit.Unknown {
		t.Errorf("it ended with %+v", exit)
	}
}

// counted is the last number that a container has said.
func (h *host) counted(id string) int {
	lines := strings.Fields(h.output(id, "stdout"))
	if len(lines) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(lines[len(lines)-1])
	return n
}

func (h *host) signal(id string, sig unix.Signal) {
	h.t.Helper()
	if err := h.client.Signal(ctx(h.t), id, sig, false); err != nil {
		h.t.Fatal(err)
	}
}

// A restore that cannot be is an error at once where that is known, else of the start;
// the container can always be removed.
func TestRestoreFails(t *testing.T) {
	h := newHost(t)
	pod := h.pod()
	spec := h.spec(pod, []string{"true"})
	spec.Restore = &runtime.Restore{Dir: t.TempDir()}
	if _, err := exec.LookPath("criu"); err != nil {
		if err := h.client.CreateContainer(ctx(t), spec); !errors.Is(err, runtime.ErrNoCRIU) {
			t.Errorf("without CRIU: %v", err)
		}
		t.Skip("criu is not here")
	}
	for _, bad := range []func(*runtime.ContainerSpec){
		func(s *runtime.ContainerSpec) { s.Spec.Process.Terminal = true },
		func(s *runtime.ContainerSpec) { s.Restore = &runtime.Restore{Dir: "here"} },
	} {
		other := h.spec(pod, []string{"true"})
		other.Restore = spec.Restore
		bad(&other)
		if err := h.client.CreateContainer(ctx(t), other); err == nil {
			t.Error("a request that cannot be was taken")
		}
	}
	if err := h.client.CreateContainer(ctx(t), spec); err != nil {
		t.Fatal(err)
	}
	if state, err := h.client.StartContainer(ctx(t), spec.ID); err == nil || state.Status != runtime.Exited || state.Exit.Code != 128 {
		t.Errorf("a start from no images: %+v, %v", state, err)
	}
	// One that waits for its start can be killed, and is gone with its removal.
	waiting := h.spec(pod, []string{"true"})
	waiting.Restore = spec.Restore
	if err := h.client.CreateContainer(ctx(t), waiting); err != nil {
		t.Fatal(err)
	}
	h.signal(waiting.ID, unix.SIGKILL)
	if exit := h.wait(waiting.ID); exit.Code != 137 {
		t.Errorf("it ended with %+v", exit)
	}
}

// checkpointOf is the folder of a checkpoint of a container that counts; that goes on.
func (h *host) checkpointOf(count []string) (id, dir string) {
	h.t.Helper()
	id, dir = h.container(h.pod(), count), h.t.TempDir()
	h.start(id)
	h.eventually("it counts", func() bool { return h.counted(id) > 3 })
	if err := h.client.Checkpoint(ctx(h.t), target(id, dir), func() error { return nil }); err != nil {
		h.t.Fatal(err)
	}
	return id, dir
}

// restored makes a container whose start goes on with that checkpoint.
func (h *host) restored(pod runtime.PodState, dir string, args []string) runtime.ContainerSpec {
	h.t.Helper()
	from, err := os.OpenRoot(filepath.Join(dir, "checkpoint"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer from.Close()
	spec := h.spec(pod, args)
	if spec.Restore, err = restore.Images(from, h.t.TempDir(), restore.Request{Spec: spec.Spec, Memory: 1 << 30}); err != nil {
		h.t.Fatal(err)
	}
	if err := h.client.CreateContainer(ctx(h.t), spec); err != nil {
		h.t.Fatal(err)
	}
	return spec
}

// A keeper that is killed while CRIU works leaves nothing that could hurt, and the
// container can be started again.
func TestRestoreOfAKilledKeeper(t *testing.T) {
	needCRIU(t)
	h := newHost(t)
	count := sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")
	_, dir := h.checkpointOf(count)
	spec := h.restored(h.pod(), dir, count)
	go func() { _, _ = h.client.StartContainer(ctx(t), spec.ID) }()
	mount := filepath.Join(h.run, "keeper", "lc", spec.ID, "criu-root", "bin")
	h.eventually("CRIU works", func() bool { return exists(mount) })
	h.kill()
	h.launch()
	if !exists(filepath.Join(built.rootfs, "bin", "busybox")) {
		t.Fatal("the container's files were removed with the keeper's")
	}
	h.eventually("it is started again", func() bool {
		state, err := h.client.StartContainer(ctx(t), spec.ID)
		if err != nil {
			time.Sleep(100 * time.Millisecond)
		}
		return err == nil && state.Status == runtime.Running
	})
	h.eventually("it counts on", func() bool { return h.counted(spec.ID) > 3 })
}
