package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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

// A pull that does not fit says what it needs, before it fetches what cannot be
// kept, and in the middle when only the files do not fit. It leaves no part of an image.
func TestPullThatDoesNotFit(t *testing.T) {
	ctx := context.Background()
	sparse := image.File{Path: "zeros", Data: make([]byte, 14<<20)} // small as a blob
	for name, c := range map[string]struct {
		layers  []image.Layer
		fetched bool
	}{
		"blobs": {[]image.Layer{image.Filler(1, 1<<20), image.Filler(2, 14<<20)}, false},
		"files": {[]image.Layer{image.Filler(1, 1<<20), {sparse}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			ref := r.push(t, "large", image.Spec{Layers: c.layers})
			s := openOn(t, onDisk(t, "size=12m"))
			small := load(t, s, small("localhost/a:1"))
			_, err := s.Pull(ctx, ref, PullOptions{})
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("no space: %v", err)
			}
			if n := strings.Count(fmt.Sprint(err), "free some space"); n != 1 {
				t.Errorf("the cure is told %d times: %v", n, err)
			}
			wantError(t, err, s.opts.Root, "the image needs more than", "are free")
			if got := len(r.gets) > 0; got != c.fetched {
				t.Errorf("these blobs were asked for: %v; want some: %t", r.gets, c.fetched)
			}
			if list, _ := s.List(ctx); len(list) != 1 || list[0].ID != small.ID {
				t.Errorf("list %+v", list)
			}
			load(t, s, image.Spec{Name: "localhost/b:1", Layers: []image.Layer{image.Filler(3, 4<<20)}})
		})
	}
}

// fillDisk takes all bytes, or all inodes, that are free in dir.
func fillDisk(t *testing.T, dir, what string) {
	t.Helper()
	var err error
	for n := 0; err == nil; n++ {
		data, path := []byte(nil), filepath.Join(dir, "fill"+strconv.Itoa(n))
		if what == "bytes" {
			data = make([]byte, 1<<20)
		}
		err = os.WriteFile(path, data, 0o600)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// With nothing free at all, what uses space can be seen and taken away.
func TestFullDisk(t *testing.T) {
	ctx := context.Background()
	for what, options := range map[string]string{"bytes": "size=16m", "inodes": "size=64m,nr_inodes=200"} {
		t.Run(what, func(t *testing.T) {
			o := onDisk(t, options)
			s := openOn(t, o)
			img := load(t, s, small("localhost/a:1", image.Filler(1, 1<<20)))
			mountAs(t, s, "one", img.ID)
			other := load(t, s, small("localhost/other:1", filler(2)))
			fillDisk(t, o.Root, what)
			if list, err := s.List(ctx); err != nil || len(list) != 2 {
				t.Errorf("list %v, %v", list, err)
			}
			if _, err := s.Account(ctx); err != nil {
				t.Errorf("account on a full disk: %v", err)
			}
			if err := s.Unmount(ctx, "one"); err != nil {
				t.Errorf("unmount on a full disk: %v", err)
			}
			if gone, err := s.Prune(ctx, PruneOptions{All: true}); err != nil || len(gone) != 2 {
				t.Errorf("prune on a full disk: %+v, %v; want %s and %s", gone, err, img.ID, other.ID)
			}
			nothingKept(t, s)
			load(t, s, small("localhost/b:1", filler(1)))
		})
	}
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

// What a full disk left behind is swept while others write.
func TestSweepSparesNewWriters(t *testing.T) {
	s := open(t, folders(t))
	left, begun := s.path("content", "ingest", "left"), s.path("content", "ingest", "begun")
	for _, dir := range []string{left, begun} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	swept := make(chan error)
	go func() { swept <- s.removeUnbegun(newIngest) }()
	if err := os.WriteFile(filepath.Join(begun, "data"), nil, 0o600); err != nil {
		t.Errorf("a writer lost its folder: %v", err)
	}
	if err := <-swept; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left behind is still there: %v", err)
	}
	if _, err := os.Stat(begun); err != nil {
		t.Errorf("a writer lost its folder: %v", err)
	}
}
