//go:build cgo

package keeper_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// programFlag runs all these tests with an OCI runtime instead of the keeper itself.
var programFlag = flag.String("program", "", "`path` of an OCI runtime that makes the containers")

// cgroupParent holds the groups of this process's test containers.
var cgroupParent = "/pausa-keeper-test-" + strconv.Itoa(os.Getpid())

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	removeGroups()
	os.Exit(code)
}

func removeGroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		groups, _ := filepath.Glob(pattern + cgroupParent)
		for _, g := range groups {
			_ = os.Remove(g)
		}
	}
}

// built is the keeper's program and a root filesystem, made once for all tests.
var built struct {
	once    sync.Once
	dir     string
	binary  string
	rootfs  string
	problem error
}

func build() error {
	dir, err := os.MkdirTemp("", "pausa-keeper-test")
	if err != nil {
		return err
	}
	built.dir, built.binary, built.rootfs = dir, filepath.Join(dir, "pausa-keeper"), filepath.Join(dir, "rootfs")
	makeKeeper := [][]string{
		{"../pause/build.sh"},
		{"go", "build", "-tags", "seccomp netgo osusergo", "-ldflags", `-s -w -extldflags "-static"`, "-o", built.binary, "../../cmd/pausa-keeper"},
	}
	if ready := os.Getenv("PAUSA_TEST_KEEPER"); ready != "" { // a machine without a compiler
		built.binary, makeKeeper = ready, nil
	}
	commands := slices.Concat(makeKeeper, [][]string{
		{"mkdir", "-p", built.rootfs + "/bin", built.rootfs + "/tmp", built.rootfs + "/etc"},
		{"cp", "/bin/busybox", built.rootfs + "/bin/busybox"},
		{built.rootfs + "/bin/busybox", "--install", "-s", built.rootfs + "/bin"},
	})
	for _, c := range commands {
		cmd := exec.Command(c[0], c[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(c, " "), err, out)
		}
	}
	// The applets' links must point into the root that the container sees.
	return filepath.WalkDir(built.rootfs+"/bin", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Type()&os.ModeSymlink == 0 {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		return os.Symlink("busybox", path)
	})
}

// host is one run directory with a keeper.
type host struct {
	t      testing.TB
	run    string
	client *runtime.Client
	holder *runtime.Holder // nil: nobody holds anything
	serial int
}

func newHost(t testing.TB) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers are made")
	}
	built.once.Do(func() { built.problem = build() })
	if built.problem != nil {
		t.Fatal(built.problem)
	}
	h := &host{t: t, run: t.TempDir()}
	h.launch()
	t.Cleanup(h.end)
	return h
}

func (h *host) launch() {
	h.t.Helper()
	client, err := runtime.Launch(ctx(h.t), runtime.LaunchOptions{Binary: built.binary, RunDir: h.run, LogFile: h.run + "/keeper.log", Hold: h.holder})
	if err != nil {
		h.t.Fatal(err)
	}
	h.client = client
}

func (h *host) info() runtime.KeeperInfo {
	h.t.Helper()
	info, err := h.client.Hello(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return info
}

// kill ends the keeper as a crash would.
func (h *host) kill() {
	h.t.Helper()
	pid := h.info().Pid
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	h.eventually("keeper is gone", func() bool {
		_, err := h.client.Hello(context.Background())
		return err != nil && !exists(fmt.Sprintf("/proc/%d/exe", pid))
	})
}

// end removes all that the test has made and looks whether anything is left.
func (h *host) end() {
	h.t.Helper()
	c := context.Background()
	containers, err := h.client.Containers(c)
	if err != nil {
		h.t.Error(err)
	}
	for _, s := range containers {
		if err := h.client.RemoveContainer(c, s.ID); err != nil {
			h.t.Error(err)
		}
	}
	pods, _ := h.client.Pods(c)
	for _, p := range pods {
		if err := h.client.RemovePod(c, p.ID); err != nil {
			h.t.Error(err)
		}
	}
	pid := h.info().Pid
	defer func() { // also after a Fatal
		_ = unix.Kill(pid, unix.SIGTERM)
		_ = h.client.Close()
		if h.t.Failed() {
			log, _ := os.ReadFile(h.run + "/keeper.log")
			h.t.Logf("keeper's log:\n%s", log)
		}
	}()
	h.noneLeft()
}

// noneLeft is the leak check: records, FIFOs, cgroups, mounts, processes and descriptors.
func (h *host) noneLeft() {
	h.t.Helper()
	for _, folder := range []string{"pods", "containers", "lc"} {
		entries, _ := os.ReadDir(filepath.Join(h.run, "keeper", folder))
		if len(entries) > 0 {
			h.t.Errorf("left in %s: %v", folder, entries)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		left, _ := filepath.Glob(pattern + cgroupParent + "/*/cgroup.procs")
		if len(left) > 0 {
			h.t.Errorf("left cgroups: %v", left)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(mounts, []byte(h.run)) || bytes.Contains(mounts, []byte(built.rootfs)) {
		h.t.Error("left a mount")
	}
	pid := h.info().Pid
	h.eventually("keeper has no children", func() bool {
		out, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		for _, file := range out {
			if data, _ := os.ReadFile(file); len(bytes.TrimSpace(data)) > 0 {
				return false
			}
		}
		return true
	})
	h.eventually("keeper has few descriptors", func() bool {
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		return len(fds) <= 30
	})
}

func (h *host) pod(change ...func(*runtime.PodSpec)) runtime.PodState {
	h.t.Helper()
	h.serial++
	spec := runtime.PodSpec{ID: fmt.Sprintf("pod%d", h.serial), Hostname: "hello"}
	for _, f := range change {
		f(&spec)
	}
	state, err := h.client.StartPod(ctx(h.t), spec)
	if err != nil {
		h.t.Fatal(err)
	}
	return state
}

type edit func(*runtime.ContainerConfig, *runtime.ContainerSpec)

// container creates one; edits see the configuration first, and the request when it is complete.
func (h *host) container(pod runtime.PodState, args []string, edits ...edit) string {
	h.t.Helper()
	spec := h.spec(pod, args, edits...)
	if err := h.client.CreateContainer(ctx(h.t), spec); err != nil {
		h.t.Fatal(err)
	}
	return spec.ID
}

func (h *host) spec(pod runtime.PodState, args []string, edits ...edit) runtime.ContainerSpec {
	h.t.Helper()
	h.serial++
	id := fmt.Sprintf("c%d-%d", h.serial, os.Getpid())
	config := runtime.ContainerConfig{
		ID: id, PodID: pod.ID, Pod: pod, Rootfs: built.rootfs, Args: args,
		Env: []string{"PATH=/bin"}, CgroupPath: cgroupParent + "/" + id,
		Security: runtime.Security{Seccomp: "runtime/default", NoNewPrivs: true},
	}
	spec := runtime.ContainerSpec{ID: id, PodID: pod.ID, LogPath: h.log(id)}
	for _, e := range edits {
		e(&config, &spec)
	}
	oci, err := runtime.Spec(config)
	if err != nil {
		h.t.Fatal(err)
	}
	spec.Spec = oci
	if *programFlag != "" && spec.Program == nil {
		spec.Program = h.program(filepath.Base(*programFlag), *programFlag)
	}
	return spec
}

func (h *host) log(id string) string { return filepath.Join(h.run, id+".log") }

func (h *host) start(id string) runtime.ContainerState {
	h.t.Helper()
	state, err := h.client.StartContainer(ctx(h.t), id)
	if err != nil {
		h.t.Fatal(err)
	}
	return state
}

func (h *host) wait(id string) runtime.Exit {
	h.t.Helper()
	exit, err := h.client.Wait(ctx(h.t), id)
	if err != nil {
		h.t.Fatal(err)
	}
	return exit
}

// output is the text of a stream in a container's log, with lines put together.
func (h *host) output(id, stream string) string {
	h.t.Helper()
	data, err := os.ReadFile(h.log(id))
	if err != nil {
		h.t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 {
			h.t.Fatalf("log line %.80q is not in CRI format", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil {
			h.t.Fatal(err)
		}
		if fields[1] != stream {
			continue
		}
		text.WriteString(fields[3])
		if fields[2] == "F" {
			text.WriteByte('\n')
		}
	}
	return text.String()
}

// run is create, start, wait.
func (h *host) runOnce(pod runtime.PodState, args []string, edits ...edit) (string, runtime.Exit) {
	h.t.Helper()
	id := h.container(pod, args, edits...)
	h.start(id)
	return id, h.wait(id)
}

func (h *host) exec(id string, stdin string, args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	var out, errs bytes.Buffer
	code, err := h.client.Exec(ctx(h.t), runtime.ExecSpec{ContainerID: id, Args: args},
		runtime.Stdio{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs})
	if err != nil {
		h.t.Fatalf("exec %v: %v", args, err)
	}
	return out.String(), errs.String(), code
}

// eventually gives the kernel and the keeper time for what they do behind our back.
func (h *host) eventually(what string, check func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if check() {
			return
		}
	}
	h.t.Fatalf("not within 20 s: %s", what)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return c
}

func memory(limit int64) edit {
	return func(c *runtime.ContainerConfig, _ *runtime.ContainerSpec) { c.Resources.MemoryLimit = limit }
}

// program is an OCI runtime as a handler's settings make it.
func (h *host) program(name, path string) *runtime.Program {
	h.t.Helper()
	return h.handler(name, path).Program
}

// features are those of the program that makes these tests' containers.
func (h *host) features() runtime.Features {
	h.t.Helper()
	return h.handler("program", *programFlag).Features
}

func (h *host) handler(name, path string) runtime.Handler {
	h.t.Helper()
	handlers, err := runtime.NewHandlers("", nil, runtime.Handler{Name: name, Program: &runtime.Program{Name: name, Path: path}})
	if err != nil {
		h.t.Fatal(err)
	}
	handler, err := handlers.Find(name)
	if err != nil {
		h.t.Fatal(err)
	}
	return handler
}
