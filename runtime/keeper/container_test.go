//go:build cgo

package keeper_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

func sh(script string) []string { return []string{"sh", "-c", script} }

func TestExitCodesAndOutput(t *testing.T) {
	h := newHost(t)
	pod := h.pod()
	for _, c := range []struct {
		script string
		want   runtime.Exit
		out    string
		err    string
	}{
		{"echo out; echo err >&2", runtime.Exit{}, "out\n", "err\n"},
		{"exit 7", runtime.Exit{Code: 7}, "", ""},
		{"printf unfinished", runtime.Exit{}, "unfinished", ""},
		{"hostname", runtime.Exit{}, "hello\n", ""},
	} {
		id, exit := h.runOnce(pod, sh(c.script))
		if exit.Code != c.want.Code || exit.Signal != c.want.Signal || exit.Unknown {
			t.Errorf("%s: exit %+v, want %+v", c.script, exit, c.want)
		}
		if got := h.output(id, "stdout"); got != c.out {
			t.Errorf("%s: stdout %q, want %q", c.script, got, c.out)
		}
		if got := h.output(id, "stderr"); got != c.err {
			t.Errorf("%s: stderr %q, want %q", c.script, got, c.err)
		}
	}
}

func TestCommandNotFound(t *testing.T) {
	h := newHost(t)
	id := h.container(h.pod(), []string{"/nope"})
	state, err := h.client.StartContainer(ctx(t), id)
	if err == nil || !strings.Contains(err.Error(), "/nope") || !strings.Contains(err.Error(), id) || !strings.Contains(strings.ToLower(err.Error()), "no such file") {
		t.Errorf("error %v does not say what is missing in which container", err)
	}
	if state.Status != runtime.Exited || state.Exit == nil || state.Exit.Code != 128 || state.Exit.StartError == "" {
		t.Errorf("state %+v, exit %+v", state, state.Exit)
	}
	if exit := h.wait(id); exit.Code != 128 {
		t.Errorf("wait says %+v", exit)
	}
}

func TestSignals(t *testing.T) {
	h := newHost(t)
	pod := h.pod()
	id := h.container(pod, []string{"sleep", "1000"})
	state := h.start(id)
	if state.Status != runtime.Running || state.Pid == 0 || state.StartedAt.IsZero() {
		t.Errorf("state %+v", state)
	}
	if err := h.client.Signal(ctx(t), id, unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if exit := h.wait(id); exit.Code != 137 || exit.Signal != 9 || exit.OOMKilled {
		t.Errorf("exit %+v", exit)
	}
	if err := h.client.Signal(ctx(t), id, unix.SIGTERM, false); err != nil {
		t.Errorf("signal to an ended container: %v", err)
	}
	if err := h.client.Signal(ctx(t), "nobody", unix.SIGTERM, false); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("signal to nobody: %v", err)
	}
	id = h.container(pod, sh(`trap "exit 3" TERM; echo ready; while :; do sleep 0.01; done`))
	h.start(id)
	h.eventually("trap is set", func() bool { return h.output(id, "stdout") != "" })
	if err := h.client.Signal(ctx(t), id, unix.SIGTERM, true); err != nil {
		t.Fatal(err)
	}
	if exit := h.wait(id); exit.Code != 3 {
		t.Errorf("exit %+v", exit)
	}
}

func TestManyStartsAtOnce(t *testing.T) {
	h := newHost(t)
	var group sync.WaitGroup
	for i := range 16 {
		spec := runtime.PodSpec{ID: fmt.Sprintf("many%d", i), Hostname: "hello"}
		group.Go(func() {
			pod, err := h.client.StartPod(ctx(t), spec)
			if err != nil {
				t.Error(err)
				return
			}
			c := &host{t: t, run: h.run, client: h.client, serial: 1000 * (i + 1)}
			id := c.container(pod, sh(fmt.Sprintf("echo %d; exit %d", i, i)))
			if _, err := h.client.StartContainer(ctx(t), id); err != nil {
				t.Error(err)
				return
			}
			exit, err := h.client.Wait(ctx(t), id)
			if err != nil || exit.Code != i {
				t.Errorf("container %d: %+v, %v", i, exit, err)
			}
			if got := c.output(id, "stdout"); got != fmt.Sprintf("%d\n", i) {
				t.Errorf("container %d: output %q", i, got)
			}
		})
	}
	group.Wait()
}

func TestRemoveIsIdempotent(t *testing.T) {
	h := newHost(t)
	pod := h.pod()
	id := h.container(pod, []string{"sleep", "1000"})
	h.start(id)
	for range 2 {
		if err := h.client.RemoveContainer(ctx(t), id); err != nil {
			t.Error(err)
		}
		if err := h.client.RemovePod(ctx(t), pod.ID); err != nil {
			t.Error(err)
		}
	}
	if _, err := h.client.Container(ctx(t), id); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("removed container: %v", err)
	}
	if exists(fmt.Sprintf("/proc/%d", pod.Pid)) {
		t.Error("pause still runs")
	}
}

func TestRemoveCreatedContainer(t *testing.T) {
	h := newHost(t)
	id := h.container(h.pod(), []string{"sleep", "1000"})
	if err := h.client.RemoveContainer(ctx(t), id); err != nil {
		t.Error(err)
	}
}

// Who kills a container whose init could not even be parked does not wait for
// ever; the next keeper, which finds it ended, removes it.
func TestKillOfWhatNeverStarted(t *testing.T) {
	h := newHost(t)
	id := h.container(h.pod(), []string{"true"}, func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) {
		c.Pod.Pid = 1<<22 - 1 // no process has it, so there are no namespaces to join
	})
	if err := h.client.Signal(ctx(t), id, unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	if exit, err := h.client.Wait(ctx(t), id); err != nil || exit.Code != 128 || !strings.Contains(exit.StartError, "/proc/4194303/ns") {
		t.Errorf("exit %+v, %v", exit, err)
	}
	h.kill()
	h.launch()
	if err := h.client.RemoveContainer(ctx(t), id); err != nil {
		t.Error(err)
	}
}

func TestSharedPIDNamespaceLeavesNothing(t *testing.T) {
	h := newHost(t)
	pod := h.pod(func(s *runtime.PodSpec) { s.SharePID = true })
	id, exit := h.runOnce(pod, sh("sleep 1000 & sleep 1000 & echo $$; exit 5"))
	if exit.Code != 5 {
		t.Errorf("exit %+v", exit)
	}
	if h.output(id, "stdout") == "1\n" {
		t.Error("command is PID 1: the namespace is not pause's")
	}
	other := h.container(pod, sh("ps; exec sleep 999"))
	h.start(other)
	h.eventually("ps has run", func() bool { return strings.Contains(h.output(other, "stdout"), "pause") })
	if out := h.output(other, "stdout"); !strings.Contains(out, "   1 65535") || strings.Contains(out, "sleep 1000") {
		t.Errorf("processes of the pod: %s", out)
	}
}

func TestStateErrors(t *testing.T) {
	h := newHost(t)
	pod := h.pod()
	if _, err := h.client.StartPod(ctx(t), runtime.PodSpec{ID: pod.ID}); !errors.Is(err, runtime.ErrExists) {
		t.Errorf("second pod of one id: %v", err)
	}
	if _, err := h.client.StartPod(ctx(t), runtime.PodSpec{ID: "../x"}); err == nil {
		t.Error("id with a path was taken")
	}
	id := h.container(pod, []string{"sleep", "1000"})
	h.start(id)
	if _, err := h.client.StartContainer(ctx(t), id); !errors.Is(err, runtime.ErrState) {
		t.Errorf("second start: %v", err)
	}
	spec := h.spec(pod, []string{"true"})
	spec.ID = id
	if err := h.client.CreateContainer(ctx(t), spec); !errors.Is(err, runtime.ErrExists) {
		t.Errorf("second container of one id: %v", err)
	}
	spec.ID, spec.PodID = "orphan", "nobody"
	if err := h.client.CreateContainer(ctx(t), spec); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("container of no pod: %v", err)
	}
}

func TestSysctls(t *testing.T) {
	h := newHost(t)
	pod := h.pod(func(s *runtime.PodSpec) {
		s.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shm_rmid_forced": "1"}
	})
	id, _ := h.runOnce(pod, sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"))
	if got := h.output(id, "stdout"); got != "81\n1\n" {
		t.Errorf("sysctls %q", got)
	}
	for _, name := range []string{"kernel.hostname", "vm.swappiness", "net.nope", "net.ipv4/../../vm/swappiness"} {
		_, err := h.client.StartPod(ctx(t), runtime.PodSpec{ID: "bad", Sysctls: map[string]string{name: "1"}})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("sysctl %s: %v", name, err)
		}
	}
}
