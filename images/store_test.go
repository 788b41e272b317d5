package images

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

func filler(n int) image.Layer { return image.Filler(n, 20_000) }

// nothingKept wants no blob and no layer on the disk once nothing refers to them.
func nothingKept(t testing.TB, s *Store) {
	t.Helper()
	s.garbage()
	s.garbage() // the first may run beside one in the background that saw an older state
	for _, pattern := range []string{"content/blobs/*/*", "content/ingest/*", "overlay/snapshots/*"} {
		left, err := filepath.Glob(s.path(pattern))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestImportFormats(t *testing.T) {
	squeeze := map[string]func([]byte) []byte{
		"plain": func(b []byte) []byte { return b },
		"gzip": func(b []byte) []byte {
			var out bytes.Buffer
			w := gzip.NewWriter(&out)
			_, _ = w.Write(b)
			_ = w.Close()
			return out.Bytes()
		},
		"zstd": func(b []byte) []byte {
			w, _ := zstd.NewWriter(nil)
			return w.EncodeAll(b, nil)
		},
	}
	for _, format := range []string{image.FormatOCI, image.FormatDocker} {
		for name, squeeze := range squeeze {
			for _, plain := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s-%s-%v", format, name, plain), func(t *testing.T) {
					s := open(t, folders(t))
					spec := small("localhost/a:1", filler(1))
					spec.Format, spec.Uncompressed = format, plain
					var r io.Reader = bytes.NewReader(squeeze(packed(t, spec)))
					if plain { // where the whole archive is plain, too, its blobs are read at their places
						r = archiveFile(t, squeeze(packed(t, spec)))
					}
					got, err := s.Import(context.Background(), r, ImportOptions{})
					if err != nil {
						t.Fatal(err)
					}
					if len(got) != 1 || got[0].RepoTags[0] != "localhost/a:1" || !strings.HasPrefix(got[0].RepoDigests[0], "localhost/a@sha256:") || got[0].Size == 0 {
						t.Fatalf("got %+v", got)
					}
					root := mountAs(t, s, "c1", "localhost/a:1")
					wantFile(t, filepath.Join(root, "name"), "localhost/a:1")
				})
			}
		}
	}
}

func TestImportDir(t *testing.T) {
	s := open(t, folders(t))
	dir := t.TempDir()
	extract(t, packed(t, small("localhost/a:1", filler(1))), dir)
	got, err := s.ImportDir(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].RepoTags[0] != "localhost/a:1" {
		t.Fatalf("got %+v", got)
	}
	_, err = s.ImportDir(context.Background(), t.TempDir())
	wantError(t, err, "not an OCI layout")
}

func TestListGetRemove(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	a := load(t, s, small("localhost/a:1"))
	b := load(t, s, small("docker.io/library/b:latest"))
	spec := small("localhost/a:1")
	spec.Name = "localhost/a:2"
	if again := load(t, s, spec); again.ID != a.ID {
		t.Fatalf("the same content has ids %s and %s", a.ID, again.ID)
	}
	if list, _ := s.List(ctx); len(list) != 2 || list[0].ID != b.ID {
		t.Fatalf("list %+v", list)
	}
	for ref, want := range map[string]string{
		"localhost/a:1": a.ID, "a:1": a.ID, "b": b.ID, "library/b": b.ID, "docker.io/library/b:latest": b.ID,
		a.ID: a.ID, a.ID[7:]: a.ID, a.ID[7:20]: a.ID, a.ID[:20]: a.ID, b.RepoDigests[0]: b.ID,
		"b@" + strings.SplitN(b.RepoDigests[0], "@", 2)[1]: b.ID,
	} {
		if got, err := s.Get(ctx, ref); err != nil || got.ID != want {
			t.Errorf("get %s: %s, %v; want %s", ref, got.ID, err, want)
		}
	}
	for ref, want := range map[string]error{
		"c": ErrNotFound, "localhost/b": ErrNotFound, "sha256:" + strings.Repeat("0", 64): ErrNotFound, "abcdef0123456789": ErrNotFound,
		"": ErrInvalid, "a/UPPER": ErrInvalid, "a b": ErrInvalid, "-x": ErrInvalid, "a:": ErrInvalid,
	} {
		if _, err := s.Get(ctx, ref); !errors.Is(err, want) {
			t.Errorf("get %q: %v, want %v", ref, err, want)
		}
	}
	if err := s.Remove(ctx, "localhost/a:1"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(ctx, a.ID); err != nil || len(got.RepoTags) != 1 || got.RepoTags[0] != "localhost/a:2" {
		t.Fatalf("after the first name is gone: %+v, %v", got, err)
	}
	if err := errors.Join(s.Remove(ctx, a.ID), s.Remove(ctx, b.ID[7:19])); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, a.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove again: %v", err)
	}
	nothingKept(t, s)
}

func TestNameMovesAndTheOldImageStays(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	old := load(t, s, small("localhost/a:1"))
	root := mountAs(t, s, "c1", "localhost/a:1")
	fresh := load(t, s, small("localhost/a:1", filler(3)))
	s.garbage()
	wantFile(t, filepath.Join(root, "name"), "localhost/a:1")
	if got, err := s.Get(ctx, "localhost/a:1"); err != nil || got.ID != fresh.ID {
		t.Fatalf("the name stands for %s, %v", got.ID, err)
	}
	if got, err := s.Get(ctx, old.ID); err != nil || len(got.RepoTags)+len(got.RepoDigests) != 0 {
		t.Fatalf("the old image: %+v, %v", got, err)
	}
	err := s.Remove(ctx, old.ID)
	if !errors.Is(err, ErrInUse) {
		t.Fatalf("remove in use: %v", err)
	}
	wantError(t, err, "c1")
	if err := errors.Join(s.Unmount(ctx, "c1"), s.Remove(ctx, old.ID)); err != nil {
		t.Fatal(err)
	}
}

func TestImportUnderAnotherName(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	got, err := s.Import(ctx, bytes.NewReader(packed(t, small(""))), ImportOptions{Name: "mine"})
	if err != nil || got[0].RepoTags[0] != "docker.io/library/mine:latest" {
		t.Fatalf("got %+v, %v", got, err)
	}
	nameless, err := s.Import(ctx, bytes.NewReader(packed(t, small("", filler(1)))), ImportOptions{})
	if err != nil || len(nameless[0].RepoTags) != 0 {
		t.Fatalf("got %+v, %v", nameless, err)
	}
	if _, err := s.Get(ctx, nameless[0].ID); err != nil {
		t.Error(err)
	}
	_, err = s.Import(ctx, bytes.NewReader(packed(t, small(""))), ImportOptions{Name: "Not Good"})
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
}

func TestReopen(t *testing.T) {
	ctx := context.Background()
	o := folders(t)
	s := open(t, o)
	a := load(t, s, small("localhost/a:1"))
	root := mountAs(t, s, "c1", a.ID)
	if err := os.WriteFile(filepath.Join(root, "written"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, o); !errors.Is(err, ErrLocked) {
		t.Fatalf("second store on the same folder: %v", err)
	} else {
		wantError(t, err, fmt.Sprint(os.Getpid()))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.lock = nil
	s = open(t, o)
	if err := s.Remove(ctx, a.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("remove in use after reopening: %v", err)
	}
	if again := mountAs(t, s, "c1", a.ID); again != root {
		t.Errorf("root file system moved to %s", again)
	}
	wantFile(t, filepath.Join(root, "written"), "x")
	if ids, err := s.Mounted(); err != nil || len(ids) != 1 || ids[0] != "c1" {
		t.Errorf("mounted %v, %v", ids, err)
	}
}

func TestManyAtOnce(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Go(func() {
			spec := small(fmt.Sprintf("localhost/a:%d", n%3), filler(n%2))
			data, err := image.Bytes(spec)
			if err != nil {
				t.Error(err)
				return
			}
			list, err := s.Import(ctx, bytes.NewReader(data), ImportOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			id := fmt.Sprintf("c%d", n)
			if _, err := s.Mount(ctx, id, list[0].ID, MountOptions{}); err != nil {
				t.Error(err)
			}
			if err := s.Unmount(ctx, id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if err := s.Remove(ctx, i.ID); err != nil {
			t.Error(err)
		}
	}
	nothingKept(t, s)
}
