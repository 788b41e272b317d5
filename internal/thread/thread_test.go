package thread

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func where(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestInNetNS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces can be made by root alone")
	}
	home := where(t)
	failed := errors.New("its own error")
	// A namespace that lives as long as somebody has it open.
	var other *os.File
	if err := Run(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			other, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	seen := ""
	if err := InNetNS(int(other.Fd()), func() error { seen = where(t); return failed }); !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
	if seen == home || seen == "" {
		t.Errorf("it ran in %q, home is %q", seen, home)
	}
	if err := InNetNSAt(filepath.Join("/proc/self/fd", filepath.Base(other.Name())), func() error { return nil }); err == nil {
		t.Error("no error for a path that is not there")
	}
	if err := InNetNSAt("/proc/self/ns/net", func() error { seen = where(t); return nil }); err != nil || seen != home {
		t.Errorf("by path: %v, in %q", err, seen)
	}
	if at := where(t); at != home {
		t.Errorf("the caller is in %q, was in %q", at, home)
	}
}

func TestNotANamespace(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := InNetNSAt(f.Name(), func() error { t.Error("called"); return nil }); err == nil {
		t.Error("a plain file was entered")
	}
}
