package images

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// A machine that stopped before a layer's files were on its disk has them
// empty, as file systems leave them: such layers are unpacked again, and no others.
func TestLayersThatWereNotWrittenAreNotBelieved(t *testing.T) {
	ctx := context.Background()
	o := folders(t)
	s := open(t, o)
	older := load(t, s, small("localhost/older:1"))
	since := time.Now()
	young := load(t, s, image.Spec{Name: "localhost/young:1", Layers: []image.Layer{{image.Text("name", "young")}, {image.Text("b", "b")}}})
	stop(t, s)
	if _, err := os.Stat(s.markFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the layers were written back there is still a mark: %v", err)
	}
	mark, err := json.Marshal(unwritten{"another boot", since})
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.markFile(), string(mark))
	kept, emptied := layerFiles(t, s, since)
	if len(emptied) != 2 || len(kept) == 0 {
		t.Fatalf("kept %v, emptied %v", kept, emptied)
	}
	s = open(t, o)
	wantFile(t, filepath.Join(mountAs(t, s, "young", young.ID), "name"), "young")
	wantFile(t, filepath.Join(mountAs(t, s, "older", older.ID), "name"), "localhost/older:1")
	for _, f := range kept {
		if _, err := os.Stat(f); err != nil {
			t.Errorf("an older layer was unpacked again: %v", err)
		}
	}
	for _, id := range []string{"young", "older"} {
		if err := s.Unmount(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	stop(t, s)
	if _, err := os.Stat(s.markFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mark stayed: %v", err)
	}
}

func stop(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.lock = nil
}

// layerFiles empties the files of layers that were made after since, and lists all.
func layerFiles(t *testing.T, s *Store, since time.Time) (kept, emptied []string) {
	t.Helper()
	err := filepath.WalkDir(s.path("overlay/snapshots"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		layer, err := os.Stat(filepath.Dir(path))
		if err != nil {
			return err
		}
		if layer.ModTime().Before(since) {
			kept = append(kept, path)
			return nil
		}
		emptied = append(emptied, path)
		return os.Truncate(path, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	return kept, emptied
}
