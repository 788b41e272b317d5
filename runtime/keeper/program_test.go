//go:build cgo

package keeper_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// eachProgram runs a test with every OCI runtime of this host. All tests of this
// package run with one by: go test ./runtime/keeper -program /usr/sbin/runc.
func eachProgram(t *testing.T, test func(t *testing.T, h *host, use edit)) {
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			path, err := exec.LookPath(name)
			if err != nil {
				t.Skip(err)
			}
			if controllers, err := os.ReadFile("/sys/fs/cgroup/unified/cgroup.controllers"); name == "crun" && err == nil && len(controllers) > 1 {
				t.Skip("crun refuses a host with controllers in both cgroup v1 and v2")
			}
			h := newHost(t)
			program := h.program(name, path)
			test(t, h, func(_ *runtime.ContainerConfig, s *runtime.ContainerSpec) { s.Program = program })
		})
	}
}

func TestProgramLife(t *testing.T) {
	eachProgram(t, func(t *testing.T, h *host, use edit) {
		pod := h.pod()
		id := h.container(pod, sh(`echo out; echo err >&2; read line; echo "got $line"; exit 3`), use, func(_ *runtime.ContainerConfig, s *runtime.ContainerSpec) { s.Stdin = true })
		h.start(id)
		if out, _, code := h.exec(id, "in", "sh", "-c", "cat; exit 6"); code != 6 || out != "in" {
			t.Errorf("exec: %d, %q", code, out)
		}
		stats, err := h.client.Stats(ctx(t), id)
		if err != nil || len(stats) != 1 || stats[0].MemoryUsage == 0 || stats[0].Pids == 0 {
			t.Errorf("stats: %+v, %v", stats, err)
		}
		if err := h.client.Attach(ctx(t), id, runtime.Stdio{Stdin: strings.NewReader("it\n")}); err != nil {
			t.Error(err)
		}
		if exit := h.wait(id); exit.Code != 3 || exit.Signal != 0 {
			t.Errorf("exit %+v", exit)
		}
		if out, errs := h.output(id, "stdout"), h.output(id, "stderr"); out != "out\ngot it\n" || errs != "err\n" {
			t.Errorf("logged %q and %q", out, errs)
		}
	})
}

// Some runtimes give the streams to the container's user.
func TestProgramLeavesNullAlone(t *testing.T) {
	eachProgram(t, func(t *testing.T, h *host, use edit) {
		var before, after unix.Stat_t
		if err := unix.Stat("/dev/null", &before); err != nil {
			t.Fatal(err)
		}
		id := h.container(h.pod(), sh("stat -Lc %t:%T /dev/stdin; sleep 600"), use, func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) {
			c.UID, c.GID = 1234, 1234
		})
		h.start(id)
		if out, _, code := h.exec(id, "", "true"); code != 0 {
			t.Errorf("exec: %d, %s", code, out)
		}
		if err := unix.Stat("/dev/null", &after); err != nil || after.Uid != before.Uid || after.Gid != before.Gid {
			t.Errorf("/dev/null belongs to %d:%d, before to %d:%d, %v", after.Uid, after.Gid, before.Uid, before.Gid, err)
		}
		h.eventually("its input is a null device", func() bool { return h.output(id, "stdout") == "1:3\n" })
	})
}

func TestProgramLimits(t *testing.T) {
	eachProgram(t, func(t *testing.T, h *host, use edit) {
		id := h.container(h.pod(), sh("trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done"), use)
		h.start(id)
		h.eventually("it has its trap", func() bool { return h.output(id, "stdout") == "up\n" })
		r := runtime.Resources{MemoryLimit: 64 << 20, CPUShares: 512}
		if err := h.client.Update(ctx(t), id, r); err != nil {
			t.Fatal(err)
		}
		if stats, err := h.client.Stats(ctx(t), id); err != nil || len(stats) != 1 || stats[0].MemoryLimit != 64<<20 {
			t.Errorf("stats after an update: %+v, %v", stats, err)
		}
		if err := h.client.Signal(ctx(t), id, syscall.SIGTERM, false); err != nil {
			t.Error(err)
		}
		if exit := h.wait(id); exit.Code != 7 {
			t.Errorf("exit %+v", exit)
		}
		eater := h.container(h.pod(), sh("x=a; while :; do x=$x$x; done"), use, func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) {
			c.Resources.MemoryLimit = 16 << 20
		})
		h.start(eater)
		if exit := h.wait(eater); !exit.OOMKilled || exit.Code != 137 {
			t.Errorf("exit of what took too much memory: %+v", exit)
		}
	})
}

func TestProgramOutlivesTheKeeper(t *testing.T) {
	eachProgram(t, func(t *testing.T, h *host, use edit) {
		h.holder = runtime.NewHolder()
		defer h.holder.Close()
		h.kill()
		h.launch() // now with a holder
		pod := h.pod()
		running := h.container(pod, sh(`i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; sleep 600`), use)
		h.start(running)
		terminal := h.container(pod, sh(`stty size; read a; echo "read $a"; exit 5`), use, func(c *runtime.ContainerConfig, s *runtime.ContainerSpec) {
			c.Terminal, s.Stdin = true, true
		})
		h.start(terminal)
		created := h.container(pod, sh("exit 4"), use)
		h.eventually("all output is written", func() bool { return strings.HasSuffix(h.output(running, "stdout"), "\n1999\n") })
		h.kill()
		h.launch()
		if n := strings.Count(h.output(running, "stdout"), "\n"); n != 2000 {
			t.Errorf("%d lines of 2000", n)
		}
		if out, _, code := h.exec(running, "", "echo", "still"); out != "still\n" || code != 0 {
			t.Errorf("exec after a kill: %d, %q", code, out)
		}
		h.start(created)
		if exit := h.wait(created); exit.Code != 4 {
			t.Errorf("exit of one created before the kill: %+v", exit)
		}
		if err := h.client.Attach(ctx(t), terminal, runtime.Stdio{Stdin: strings.NewReader("x\n")}); err != nil {
			t.Error(err)
		}
		if exit := h.wait(terminal); exit.Code != 5 || exit.Unknown {
			t.Errorf("exit of the terminal's: %+v", exit)
		}
		if err := h.client.Signal(ctx(t), running, unix.SIGKILL, true); err != nil {
			t.Error(err)
		}
		if exit := h.wait(running); exit.Signal != 9 {
			t.Errorf("exit of the killed: %+v", exit)
		}
	})
}

func TestProgramsOwnWords(t *testing.T) {
	h := newHost(t)
	folder := t.TempDir()
	script := func(name, text string) edit {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return func(_ *runtime.ContainerConfig, s *runtime.ContainerSpec) {
			s.Program = &runtime.Program{Name: name, Path: path}
		}
	}
	for name, c := range map[string]struct{ text, want string }{
		"logs":   {`while [ "$1" != --log ]; do shift; done; echo '{"level":"error","msg":"no such thing"}' >> $2; exit 1`, "no such thing (exit status 1)"},
		"silent": {"exit 9", "exit status 9"},
		"nopid":  {"exit 0", "gave no pid"},
	} {
		t.Run(name, func(t *testing.T) {
			id := h.container(h.pod(), sh("true"), script(name, c.text))
			_, err := h.client.StartContainer(ctx(t), id)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), filepath.Join(folder, name)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if exit := h.wait(id); exit.Code != 128 || !strings.Contains(exit.StartError, c.want) {
				t.Errorf("exit %+v", exit)
			}
		})
	}
	gone := h.spec(h.pod(), sh("true"), func(_ *runtime.ContainerConfig, s *runtime.ContainerSpec) {
		s.Program = &runtime.Program{Name: "../x", Path: "/x"}
	})
	if err := h.client.CreateContainer(ctx(t), gone); err == nil || !strings.Contains(err.Error(), "../x") {
		t.Errorf("a handler's name that is a path: %v", err)
	}
}
