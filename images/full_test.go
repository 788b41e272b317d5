package images

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// small disk of the given size, "8m" and the like, for a store.
func onDisk(t *testing.T, options string) Options {
	t.Helper()
	needMounts(t)
	o := folders(t)
	if err := os.MkdirAll(o.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", o.Root, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(o.Root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return o
}

// openOn is open, without the check for mounts: the disk itself is one.
func openOn(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestImportThatDoesNotFit(t *testing.T) {
	ctx := context.Background()
	for name, options := range map[string]string{"bytes": "size=12m", "inodes": "size=64m,nr_inodes=300"} {
		t.Run(name, func(t *testing.T) {
			s := openOn(t, onDisk(t, options))
			small := load(t, s, small("localhost/a:1"))
			large := image.Spec{Name: "localhost/large:1", Layers: []image.Layer{image.Filler(1, 1<<20), image.Filler(2, 6<<20), many(400)}}
			_, err := s.Import(ctx, bytes.NewReader(packed(t, large)), ImportOptions{})
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("no space: %v", err)
			}
			wantError(t, err, "free some space", s.opts.Root)
			if list, _ := s.List(ctx); len(list) != 1 || list[0].ID != small.ID {
				t.Errorf("list %+v", list)
			}
			if err := s.Remove(ctx, small.ID); err != nil {
				t.Fatal(err)
			}
			nothingKept(t, s)
			load(t, s, image.Spec{Name: "localhost/b:1", Layers: []image.Layer{{image.Text("a", "b")}}})
		})
	}
}

func TestFullDisk(t *testing.T) {
	ctx := context.Background()
	o := onDisk(t, "size=16m")
	s := openOn(t, o)
	img := load(t, s, small("localhost/a:1", image.Filler(1, 1<<20)))
	mountAs(t, s, "one", img.ID)
	fill := filepath.Join(o.Root, "fill")
	f, err := os.OpenFile(fill, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for err = error(nil); err == nil; {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(ctx); err != nil || len(list) != 1 {
		t.Errorf("list %v, %v", list, err)
	}
	if err := s.Unmount(ctx, "one"); err != nil {
		t.Errorf("unmount on a full disk: %v", err)
	}
	if err := s.Remove(ctx, img.ID); err != nil {
		t.Errorf("remove on a full disk: %v", err)
	}
	nothingKept(t, s)
	load(t, s, small("localhost/b:1", image.Filler(1, 1<<20)))
}

func TestUsage(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	empty, err := s.FSUsage(ctx)
	if err != nil || empty.Path != s.opts.Root {
		t.Fatalf("usage %+v, %v", empty, err)
	}
	s.garbage() // so that the collector of the start does not run in between
	img := load(t, s, small("localhost/a:1", image.Filler(1, 1<<20)))
	full, err := s.FSUsage(ctx)
	if err != nil || full.Bytes < 2<<20 || full.Inodes < empty.Inodes+7 {
		t.Errorf("usage %+v, %v", full, err)
	}
	if err := s.Remove(ctx, img.ID); err != nil {
		t.Fatal(err)
	}
	s.garbage()
	if after, err := s.FSUsage(ctx); err != nil || after.Bytes != empty.Bytes {
		t.Errorf("usage %+v, %v; want %+v", after, err, empty)
	}
}
