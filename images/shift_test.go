package images

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCanShiftLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	dir := t.TempDir()
	s := &Store{opts: Options{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")}}
	if err := s.CanShift(); err == nil {
		t.Error("a folder that is not there can be mounted")
	}
	if err := os.Mkdir(s.opts.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.CanShift(); err != nil {
			t.Skip("not on this host:", err)
		}
	}
	if left, err := os.ReadDir(s.opts.Run); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
