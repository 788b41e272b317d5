package manifest

import (
	"os"
	"path/filepath"
	"testing"
)

// What the examples folder shows must be right, with and without defaults.
func TestExamples(t *testing.T) {
	paths, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(paths) < 4 {
		t.Fatalf("found %v, %v", paths, err)
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := Decode(f, filepath.Base(path))
		if err != nil || len(objects) == 0 {
			t.Errorf("%s: %d objects, %v", path, len(objects), err)
		}
		for _, o := range objects {
			Default(o)
			if err := Validate(o); err != nil {
				t.Error(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
