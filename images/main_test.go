package images

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// insideEnv marks the process that runs the tests in a mount namespace of its own.
const insideEnv = "PAUSA_IMAGES_TEST_INSIDE"

// TestMain runs the tests in a mount namespace of their own, so that nothing
// that they mount reaches the host or outlives them.
func TestMain(m *testing.M) {
	CheckMain()
	if os.Getenv(crashEnv) != "" {
		crash()
	}
	if os.Getenv(importEnv) != "" {
		importOnce()
		os.Exit(0)
	}
	flag.Int("tinyfiles", 10_000, "files of the layer of TestManyTinyFiles")
	flag.Parse()
	fuzzing := slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzz") })
	if os.Getenv(insideEnv) != "" || os.Geteuid() != 0 || fuzzing {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	goruntime.LockOSThread() // the signal comes when the thread that started it ends
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// needMounts skips tests that mount where that is not allowed.
func needMounts(t testing.TB) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("needs root, to mount in a mount namespace of its own")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skipf("needs mounts: %v", err)
	}
}

// logged is what a store wrote to its log.
type logged struct{ bytes.Buffer }

func folders(t testing.TB) Options {
	t.Helper()
	dir := t.TempDir()
	return Options{
		Root: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run"),
		Log: slog.New(slog.NewTextHandler(&logged{}, nil)),
	}
}

// open opens a store that is closed at the end of the test; then nothing of
// it may be mounted.
func open(t testing.TB, o Options) *Store {
	t.Helper()
	needMounts(t)
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.lock == nil {
			return
		}
		ids, err := s.Mounted()
		if err != nil {
			t.Error(err)
		}
		for _, id := range ids {
			if err := s.Unmount(context.Background(), id); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		noMounts(t, o)
	})
	return s
}

func noMounts(t testing.TB, o Options) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, o.Run) || strings.Contains(line, o.Root) {
			t.Errorf("left mounted: %s", line)
		}
	}
}

// small is an image of a few files.
func small(name string, more ...image.Layer) image.Spec {
	return image.Spec{Name: name, Layers: append([]image.Layer{{
		image.Dir("etc"), image.Text("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"),
		image.Text("etc/group", "root:x:0:\napp:x:1000:\nextra:x:2000:app\n"), image.Text("name", name),
	}}, more...)}
}

func packed(t testing.TB, s image.Spec) []byte {
	t.Helper()
	b, err := image.Bytes(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func load(t testing.TB, s *Store, spec image.Spec) Image {
	t.Helper()
	list, err := s.Import(context.Background(), bytes.NewReader(packed(t, spec)), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 {
		t.Fatalf("imported %d images: %+v", len(list), list)
	}
	return list[0]
}

func mountAs(t testing.TB, s *Store, id, ref string) string {
	t.Helper()
	root, err := s.Mount(context.Background(), id, ref, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func wantFile(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s holds %q, want %q", path, got, want)
	}
}

// wantError wants an error that names all of parts.
func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one about %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not mention %q", err, p)
		}
	}
}
