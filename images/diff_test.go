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

// Changes that were written are the same once they are applied; what a stranger adds is not.
func TestApplyDiff(t *testing.T) {
	s := open(t, folders(t))
	img := load(t, s, small("localhost/a:1", image.Layer{image.Dir("gone"), image.Text("gone/x", "x"), image.Text("removed", "r")}))
	one := mountAs(t, s, "one", img.ID)
	for _, err := range []error{
		os.WriteFile(filepath.Join(one, "name"), []byte("changed"), 0o600), os.Remove(filepath.Join(one, "removed")), os.RemoveAll(filepath.Join(one, "gone")),
		os.Symlink("/etc/passwd", filepath.Join(one, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var changes bytes.Buffer
	if err := s.WriteDiff(t.Context(), "one", &changes); err != nil {
		t.Fatal(err)
	}
	two := mountAs(t, s, "two", img.ID)
	if err := s.ApplyDiff(t.Context(), "two", &changes); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(two, "name")); err != nil || string(got) != "changed" {
		t.Errorf("%q, %v", got, err)
	}
	for _, name := range []string{"removed", "gone"} {
		if _, err := os.Lstat(filepath.Join(two, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	outside := filepath.Join(t.TempDir(), "canary")
	for what, headers := range map[string][]*tar.Header{
		"a device": {{Name: "disk", Typeflag: tar.TypeBlock, Mode: 0o666, Devmajor: 8}},
		"a pipe":   {{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o666}},
		"dots":     {{Name: "../../../../../../../.." + outside, Typeflag: tar.TypeReg, Mode: 0o644}},
		"a link":   {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: filepath.Dir(outside)}, {Name: "out/canary", Typeflag: tar.TypeReg, Mode: 0o644}},
	} {
		var hostile bytes.Buffer
		w := tar.NewWriter(&hostile)
		for _, h := range headers {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		err := errors.Join(w.Close(), s.ApplyDiff(t.Context(), "two", &hostile))
		if device := len(headers) == 1 && headers[0].Typeflag != tar.TypeReg; device && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s came out of the root: %v", what, err)
		}
	}
	if err := s.ApplyDiff(t.Context(), "three", &changes); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such container: %v", err)
	}
}
