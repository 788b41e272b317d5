package images

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// safeBuffer is a log that several goroutines write.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestDamagedDatabasesAreMadeAgain(t *testing.T) {
	ctx := context.Background()
	damages := map[string]func(t *testing.T, path string){
		"cut off": func(t *testing.T, path string) { truncate(t, path, 9000) },
		"empty":   func(t *testing.T, path string) { truncate(t, path, 0) },
		"gone": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
		"nonsense": func(t *testing.T, path string) { write(t, path, strings.Repeat("nonsense", 10_000)) },
	}
	for _, stride := range []int{13, 41, 97, 211} { // each makes other nonsense of the pages
		damages[fmt.Sprintf("flipped each %d", stride)] = func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i := 2 * 4096; i < len(data); i += stride {
				data[i] ^= 0xff
			}
			write(t, path, string(data))
		}
	}
	for name, damage := range damages {
		for _, db := range []string{"meta.db", "overlay/metadata.db"} {
			t.Run(name+" "+db, func(t *testing.T) {
				o := folders(t)
				var log safeBuffer
				o.Log = slog.New(slog.NewTextHandler(&log, nil))
				s := open(t, o)
				img := load(t, s, small("localhost/a:1", filler(1)))
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s.lock = nil
				damage(t, filepath.Join(o.Root, db))
				s = open(t, o)
				got, err := s.Get(ctx, "localhost/a:1")
				if err != nil || got.ID != img.ID {
					t.Fatalf("after the damage: %+v, %v\n%s", got, err, log.String())
				}
				wantFile(t, filepath.Join(mountAs(t, s, "c1", img.ID), "name"), "localhost/a:1")
				if !strings.Contains(log.String(), "damaged") {
					t.Errorf("the log says nothing of it:\n%s", log.String())
				}
				if left, _ := filepath.Glob(s.path(brokenPrefix + "*")); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		}
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedContentIsNamed(t *testing.T) {
	ctx := context.Background()
	o := folders(t)
	var log safeBuffer
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	s := open(t, o)
	a, b := load(t, s, small("localhost/a:1")), load(t, s, small("localhost/b:1"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.lock = nil
	if err := os.Remove(s.path("content/blobs/sha256", a.ID[7:])); err != nil {
		t.Fatal(err)
	}
	s = open(t, o)
	list, err := s.List(ctx)
	if err != nil || len(list) != 1 || list[0].ID != b.ID {
		t.Fatalf("list %+v, %v", list, err)
	}
	if !strings.Contains(log.String(), "localhost/a:1") {
		t.Errorf("the log does not name the image:\n%s", log.String())
	}
	load(t, s, small("localhost/a:1"))
	if got, err := s.Get(ctx, "localhost/a:1"); err != nil || got.ID != a.ID {
		t.Errorf("imported again: %+v, %v", got, err)
	}
}

func TestLostLayersAreUnpackedAgain(t *testing.T) {
	o := folders(t)
	s := open(t, o)
	img := load(t, s, small("localhost/a:1", filler(1)))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.lock = nil
	if err := os.RemoveAll(s.path("overlay/snapshots")); err != nil {
		t.Fatal(err)
	}
	s = open(t, o)
	wantFile(t, filepath.Join(mountAs(t, s, "c1", img.ID), "name"), "localhost/a:1")
}

func TestForeignFilesInTheWay(t *testing.T) {
	o := folders(t)
	if err := os.MkdirAll(filepath.Join(o.Root, "rw", "ghost"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(o.Root, "rw", "ghost", "image.json"), "{")
	s := open(t, o)
	if ids, err := s.Mounted(); err != nil || len(ids) != 1 || ids[0] != "ghost" {
		t.Errorf("mounted %v, %v", ids, err)
	}
	_, err := Open(context.Background(), Options{Root: "state", Run: "run"})
	wantError(t, err, "absolute")
}
