package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

func TestWritableLayer(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	img := load(t, s, small("localhost/a:1", image.Layer{{Path: "etc/.wh.group"}}))
	one, two := mountAs(t, s, "one", img.ID), mountAs(t, s, "two", img.ID)
	if err := os.WriteFile(filepath.Join(one, "name"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(two, "name"), "localhost/a:1")
	if _, err := os.Stat(filepath.Join(one, "etc/group")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a removed file of a lower layer: %v", err)
	}
	if again := mountAs(t, s, "one", img.ID); again != one {
		t.Errorf("mounted again at %s", again)
	}
	wantFile(t, filepath.Join(one, "name"), "changed")
	u, err := s.WritableUsage(ctx, "one")
	if err != nil || u.Inodes != 2 || u.Bytes == 0 || u.Path != s.path("rw", "one", "upper") {
		t.Errorf("usage %+v, %v", u, err)
	}
	for range 2 {
		if err := s.Unmount(ctx, "one"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(one); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("mount point: %v", err)
	}
	if _, err := s.WritableUsage(ctx, "one"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("usage of nothing: %v", err)
	}
	one = mountAs(t, s, "one", img.ID)
	wantFile(t, filepath.Join(one, "name"), "localhost/a:1")
}

func TestMountAgainAfterTheHostTookItAway(t *testing.T) {
	s := open(t, folders(t))
	img := load(t, s, small("localhost/a:1"))
	root := mountAs(t, s, "one", img.ID)
	if err := os.WriteFile(filepath.Join(root, "kept"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(root, 0); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(mountAs(t, s, "one", img.ID), "kept"), "x")
}

func TestMountRefusals(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	a, b := load(t, s, small("localhost/a:1")), load(t, s, small("localhost/b:1"))
	for _, id := range []string{"", ".", "..", "a/b", "a\nb", strings.Repeat("x", 129)} {
		if _, err := s.Mount(ctx, id, a.ID, MountOptions{}); err == nil {
			t.Errorf("container id %q was accepted", id)
		}
		if err := s.Unmount(ctx, id); err == nil {
			t.Errorf("container id %q was accepted", id)
		}
	}
	if _, err := s.Mount(ctx, "one", "localhost/c", MountOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown image: %v", err)
	}
	mountAs(t, s, "one", a.ID)
	_, err := s.Mount(ctx, "one", b.ID, MountOptions{})
	wantError(t, err, "already")
	if ids, err := s.Mounted(); err != nil || !slices.Equal(ids, []string{"one"}) {
		t.Errorf("mounted %v, %v", ids, err)
	}
}

func TestUnmountInUse(t *testing.T) {
	s := open(t, folders(t))
	root := mountAs(t, s, "one", load(t, s, small("localhost/a:1")).ID)
	f, err := os.Open(filepath.Join(root, "name"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := os.Mkdir(filepath.Join(root, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(root, "sub"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(context.Background(), "one"); err != nil {
		t.Fatal(err)
	}
	if isMount(root) {
		t.Error("still mounted")
	}
}

func TestManyLayers(t *testing.T) {
	s := open(t, folders(t))
	spec := small("localhost/a:1")
	for n := len(spec.Layers); n < maxLayers; n++ {
		spec.Layers = append(spec.Layers, image.Layer{image.Text(fmt.Sprintf("f%d", n), fmt.Sprint(n)), image.Text("last", fmt.Sprint(n))})
	}
	img := load(t, s, spec)
	root := mountAs(t, s, "one", img.ID)
	wantFile(t, filepath.Join(root, "f1"), "1")
	wantFile(t, filepath.Join(root, "last"), fmt.Sprint(maxLayers-1))

	base, err := s.layersOf(context.Background(), s.cache.Load().byID[img.ID])
	if err != nil {
		t.Fatal(err)
	}
	dir, at := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "upper"), 0o755), os.Mkdir(filepath.Join(dir, "work"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := s.mountByString(base.dirs, dir, at, false); err != nil {
		t.Fatalf("as older kernels want it: %v", err)
	}
	wantFile(t, filepath.Join(at, "last"), fmt.Sprint(maxLayers-1))
	if err := detach(at); err != nil {
		t.Fatal(err)
	}
	spec.Layers = append(spec.Layers, image.Layer{image.Text("x", "y")})
	_, err = s.Import(context.Background(), bytes.NewReader(packed(t, spec)), ImportOptions{})
	wantError(t, err, "128 layers")
}

func TestReadOnlyViews(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	for n, layers := range [][]image.Layer{{{image.Text("name", "0")}}, {{image.Text("name", "1")}, {image.Text("more", "x")}}} {
		img := load(t, s, image.Spec{Name: fmt.Sprintf("localhost/v:%d", n), Layers: layers})
		root, err := s.Mount(ctx, fmt.Sprintf("v%d", n), img.ID, MountOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		wantFile(t, filepath.Join(root, "name"), fmt.Sprint(n))
		if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to a view: %v", err)
		}
	}
}

func TestShiftedOwners(t *testing.T) {
	s := open(t, folders(t))
	img := load(t, s, image.Spec{Name: "localhost/u:1", Layers: []image.Layer{
		{image.File{Path: "root", Mode: 0o4755}, image.File{Path: "app", UID: 1000, GID: 1000}},
		{image.Text("x", "")},
	}})
	ids := []IDMap{{Container: 0, Host: 100_000, Size: 65536}}
	root, err := s.Mount(context.Background(), "one", img.ID, MountOptions{UIDMaps: ids, GIDMaps: ids})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][3]uint32{"root": {100_000, 100_000, 0o4755}, "app": {101_000, 101_000, 0o644}, ".": {100_000, 100_000, 0o755}} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(root, path), &st); err != nil {
			t.Fatal(err)
		}
		if got := [3]uint32{st.Uid, st.Gid, st.Mode & 0o7777}; got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
}

func TestTrashIsEmptiedAtTheNextStart(t *testing.T) {
	o := folders(t)
	s := open(t, o)
	if err := errors.Join(os.MkdirAll(s.path("trash", "old.1", "upper", "deep"), 0o700), s.Close()); err != nil {
		t.Fatal(err)
	}
	s.lock = nil
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // waits for it
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.path("trash")); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestSpares(t *testing.T) {
	ctx := context.Background()
	o := folders(t)
	s := open(t, o)
	img := load(t, s, small("localhost/a:1"))
	first := mountAs(t, s, "one", img.ID)
	if err := os.WriteFile(filepath.Join(first, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	awaitSpares(t, s, img.ID)
	second := mountAs(t, s, "two", img.ID)
	if _, err := os.Stat(filepath.Join(second, "mine")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of another container: %v", err)
	}
	if err := os.WriteFile(filepath.Join(second, "yours"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := s.WritableUsage(ctx, "two"); err != nil || u.Inodes != 2 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if s.used["two"] != img.ID {
		t.Errorf("used %v", s.used)
	}
	awaitSpares(t, s, img.ID)
	if err := errors.Join(s.Unmount(ctx, "one"), s.Unmount(ctx, "two"), s.Remove(ctx, img.ID)); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.spares.take(img.ID); ok {
		t.Error("an image that is gone has a spare")
	}
	nothingKept(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.lock = nil
	if left, err := os.ReadDir(s.path("trash")); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// awaitSpares waits until the spares of an image are made.
func awaitSpares(t *testing.T, s *Store, image string) {
	t.Helper()
	for range 5000 {
		s.spares.mu.Lock()
		n := len(s.spares.ready[image])
		s.spares.mu.Unlock()
		if n == sparesPerImage {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("no spare was made")
}
