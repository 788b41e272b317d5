package atomicfile

import (
	"os"
	"path/filepath"
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
