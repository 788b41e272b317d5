package atomicfile

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestWriteReplaces(t *testing.T) {
	for name, write := range map[string]func(string, []byte) error{
		"plain":  func(p string, b []byte) error { return Write(p, b, 0o640) },
		"synced": func(p string, b []byte) error { return WriteSync(p, b, 0o640) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			for _, want := range []string{"one", "", "a longer third"} {
				if err := write(path, []byte(want)); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(path)
				if err != nil || string(got) != want {
					t.Fatalf("read %q, %v; want %q", got, err, want)
				}
			}
			st, err := os.Stat(path)
			if err != nil || st.Mode().Perm() != 0o640 {
				t.Fatalf("mode %v, %v; want 0640", st.Mode(), err)
			}
			left, err := os.ReadDir(filepath.Dir(path))
			if err != nil || len(left) != 1 {
				t.Fatalf("folder holds %v, %v; want the file alone", left, err)
			}
		})
	}
}

func TestWriteRelative(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := WriteSync("f", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWriteFailsWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	err := Write(path, []byte("x"), 0o600) // a folder is in the way of the rename
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("error %v; want one that names %s", err, path)
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 1 {
		t.Fatalf("folder holds %v; want no temporary file left", left)
	}
}

func TestJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.json")
	type rec struct{ A, B string }
	want := rec{"x", "y\n"}
	if err := WriteJSON(path, want); err != nil {
		t.Fatal(err)
	}
	var got rec
	if err := ReadJSON(path, &got); err != nil || got != want {
		t.Fatalf("got %+v, %v; want %+v", got, err, want)
	}
	if err := Write(path, []byte(`{"A":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadJSON(path, &got); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("error %v; want one that names %s", err, path)
	}
}

func TestIsTemp(t *testing.T) {
	if IsTemp("pod.json") || !IsTemp(".tmp-pod.json-123") {
		t.Fatal("IsTemp is wrong about its own names")
	}
}

func TestWriteAll(t *testing.T) {
	dir := t.TempDir()
	var files []File
	for i := range 100 {
		sub := filepath.Join(dir, "abc"[i%3:i%3+1])
		if err := os.MkdirAll(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		files = append(files, File{filepath.Join(sub, strconv.Itoa(i)), []byte(strconv.Itoa(i)), 0o600})
	}
	if done, err := WriteAllSync(files); done != len(files) || err != nil {
		t.Fatalf("wrote %d of %d, %v", done, len(files), err)
	}
	for _, f := range files {
		if got, err := os.ReadFile(f.Path); err != nil || !bytes.Equal(got, f.Data) {
			t.Errorf("%s holds %q, %v", f.Path, got, err)
		}
	}
}

// One that cannot be written keeps all others from being changed; one whose place
// is taken, those behind it.
func TestWriteAllFails(t *testing.T) {
	for name, c := range map[string]struct {
		bad  string
		done int
	}{"no folder": {"none/file", 0}, "a folder in the way": {"taken", 2}} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "taken", "in"), 0o700); err != nil {
			t.Fatal(err)
		}
		var files []File
		for _, base := range []string{"a", "b", c.bad, "c"} {
			files = append(files, File{filepath.Join(dir, base), []byte(base), 0o600})
		}
		done, err := WriteAllSync(files)
		if done != c.done || err == nil || !strings.Contains(err.Error(), files[2].Path) {
			t.Errorf("%s: wrote %d, %v; want %d and an error that names %s", name, done, err, c.done, files[2].Path)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 1+c.done {
			t.Errorf("%s: the folder holds %v, %v", name, left, err)
		}
	}
}
