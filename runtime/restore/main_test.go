package restore

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/pausa-run/pausa/runtime"
)

// dump is a folder as CRIU 3.17 has written it of a shell and its sleep, and the
// request that it belongs to.
type dump struct {
	t    testing.TB
	dir  string
	spec *specs.Spec
	host string
}

func newDump(t testing.TB) *dump {
	t.Helper()
	d := &dump{t: t, dir: t.TempDir(), host: t.TempDir()}
	rootfs := t.TempDir()
	d.must(os.Mkdir(filepath.Join(rootfs, "bin"), 0o755))
	d.must(os.WriteFile(filepath.Join(rootfs, "bin", "busybox"), nil, 0o755))
	d.must(os.Symlink("bin", filepath.Join(rootfs, "link")))
	d.must(os.WriteFile(filepath.Join(rootfs, "secret"), nil, 0o600))
	for _, dir := range []string{"sys/firmware", "proc/acpi", "proc/bus", "proc/fs", "proc/irq", "proc/sys"} {
		d.must(os.MkdirAll(filepath.Join(d.host, dir), 0o755))
	}
	for _, file := range []string{"timer_list", "keys", "kcore", "interrupts", "sysrq-trigger"} {
		d.must(os.WriteFile(filepath.Join(d.host, "proc", file), nil, 0o600))
	}
	var err error
	d.spec, err = runtime.Spec(runtime.ContainerConfig{
		ID: "c", PodID: "p", Pod: runtime.PodState{Pid: 1}, Rootfs: rootfs, Args: []string{"sh"}, CgroupPath: "/c",
		Security: runtime.Security{Seccomp: "runtime/default", NoNewPrivs: true},
	})
	d.must(err)
	d.unpack()
	return d
}

func (d *dump) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *dump) unpack() {
	f, err := os.Open("testdata/dump.tar.gz")
	d.must(err)
	defer f.Close()
	plain, err := gzip.NewReader(f)
	d.must(err)
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		d.must(err)
		data, err := io.ReadAll(r)
		d.must(err)
		d.must(os.WriteFile(d.path(h.Name), data, 0o600))
	}
}

func (d *dump) path(name string) string { return filepath.Join(d.dir, name) }

// images makes clean images, whose folder comes back.
func (d *dump) images() (to string, err error) {
	d.t.Helper()
	from, err := os.OpenRoot(d.dir)
	d.must(err)
	defer from.Close()
	to = d.t.TempDir()
	got, err := Images(from, to, Request{Spec: d.spec, Memory: 1 << 28, host: d.host, files: 100})
	if err == nil && got.Dir != to {
		d.t.Errorf("images in %q, want %q", got.Dir, to)
	}
	return to, err
}

// decode reads an image of a folder.
func decode[T any, M message[T]](t testing.TB, dir, name string, magic uint32) []M {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	all, err := entries[T, M](&cleaner{from: root, left: map[string]bool{name: true}}, name, magic)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// edit changes the entries of an image; a nil answer of change means that they were changed in place.
func edit[T any, M message[T]](d *dump, name string, magic uint32, change func(all []M) []M) {
	d.t.Helper()
	all := decode[T, M](d.t, d.dir, name, magic)
	if changed := change(all); changed != nil {
		all = changed
	}
	w := newWriter(magic)
	for _, m := range all {
		w.entry(proto.Message(m))
	}
	d.must(w.err)
	d.must(os.WriteFile(d.path(name), w.data, 0o600))
}

// tmpfs replaces the files of a tmpfs by these.
func (d *dump) tmpfs(device string, headers ...*tar.Header) {
	d.t.Helper()
	path := d.path("tmpfs-dev-" + device + ".tar.gz.img")
	d.must(os.Remove(path))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	d.must(err)
	defer f.Close()
	packed := gzip.NewWriter(f)
	w := tar.NewWriter(packed)
	for _, h := range headers {
		d.must(w.WriteHeader(h))
	}
	d.must(errors.Join(w.Close(), packed.Close()))
}
