package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

func TestWriteDiff(t *testing.T) {
	s := open(t, folders(t))
	img := load(t, s, small("localhost/a:1", image.Layer{
		image.Dir("gone"), image.Text("gone/x", "x"), image.Dir("again"), image.Text("again/old", "old"), image.Text("removed", "r"),
	}))
	root := mountAs(t, s, "one", img.ID)
	for _, err := range []error{
		os.WriteFile(filepath.Join(root, "name"), []byte("changed"), 0o600),
		os.Remove(filepath.Join(root, "removed")),
		os.RemoveAll(filepath.Join(root, "gone")),
		os.RemoveAll(filepath.Join(root, "again")),
		os.Mkdir(filepath.Join(root, "again"), 0o755),
		os.WriteFile(filepath.Join(root, "again/new"), []byte("new"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := s.WriteDiff(t.Context(), "one", &out); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, _ := io.ReadAll(r)
		found[strings.TrimSuffix(h.Name, "/")] = string(content)
	}
	want := map[string]string{"name": "changed", ".wh.removed": "", ".wh.gone": "", "again": "", "again/.wh..wh..opq": "", "again/new": "new"}
	if !maps.Equal(found, want) {
		t.Errorf("changes %v, want %v", slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(want)))
	}
	if err := s.WriteDiff(t.Context(), "two", io.Discard); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such container: %v", err)
	}
	if err := s.WriteDiff(t.Context(), "../one", io.Discard); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path: %v", err)
	}
}
