package images

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\nbig:x:4294967295:0::/:/bin/sh\nlow:x:-3:0::/:/bin/sh\nhomeless:x:5:5:::\n"
	testGroup  = "root:x:0:\napp:x:1001:\nextra:x:2000:app,root\nmore:x:2001:app\nhuge:x:4294967296:big\n"
)

func accountsRoot(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "etc/passwd"), testPasswd)
	write(t, filepath.Join(root, "etc/group"), testGroup)
	return root
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestResolveUser(t *testing.T) {
	root := accountsRoot(t)
	for spec, want := range map[string]User{
		"":              {0, 0, []uint32{2000}, "/root"},
		"0":             {0, 0, []uint32{2000}, "/root"},
		"root":          {0, 0, []uint32{2000}, "/root"},
		"app":           {1000, 1001, []uint32{2000, 2001}, "/home/app"},
		"1000":          {1000, 1001, []uint32{2000, 2001}, "/home/app"},
		"app:extra":     {1000, 2000, nil, "/home/app"},
		"app:7":         {1000, 7, nil, "/home/app"},
		"4242":          {4242, 0, nil, "/"},
		"4242:app":      {4242, 1001, nil, "/"},
		"2147483647:0":  {2147483647, 0, nil, "/"},
		"homeless":      {5, 5, nil, "/"},
		"homeless:0":    {5, 0, nil, "/"},
		"0:2147483647":  {0, 2147483647, nil, "/root"},
		"1000:00001001": {1000, 1001, nil, "/home/app"},
	} {
		got, err := ResolveUser(root, spec)
		if err != nil || got.UID != want.UID || got.GID != want.GID || got.Home != want.Home || !slices.Equal(got.AdditionalGIDs, want.AdditionalGIDs) {
			t.Errorf("%q: %+v, %v; want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{
		"4294967296", "-1", "2147483648", "root:x", "nobody", "big", "low", "0:-1", "0:4294967296", "99999999999999999999",
		"app:huge", "root\n", "../../etc", strings.Repeat("u", 100_000),
	} {
		if got, err := ResolveUser(root, spec); err == nil {
			t.Errorf("%q gave %+v", short(spec), got)
		} else if len(err.Error()) > 1000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
}

func TestResolveUserStaysInside(t *testing.T) {
	outside := accountsRoot(t)
	write(t, filepath.Join(outside, "etc/passwd"), "spy:x:4000:4000::/:/bin/sh\n")
	target := filepath.Join(outside, "etc/passwd")
	for name, make := range map[string]func(path string) error{
		"symlink":          func(p string) error { return os.Symlink(target, p) },
		"relative symlink": func(p string) error { return os.Symlink("../../../../../../../.."+target, p) },
		"magic link":       func(p string) error { return os.Symlink("/proc/self/fd/0", p) },
		"fifo":             func(p string) error { return unix.Mkfifo(p, 0o600) },
		"folder":           func(p string) error { return os.Mkdir(p, 0o700) },
		"device":           func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) },
		"huge":             func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("a:x:1:1::/:\n"), 1<<20), 0o600) },
		"loop":             func(p string) error { return os.Symlink("passwd", p) },
	} {
		root := accountsRoot(t)
		path := filepath.Join(root, "etc/passwd")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := make(path); err != nil {
			if name == "device" {
				t.Logf("no devices here: %v", err)
				continue
			}
			t.Fatal(err)
		}
		if got, err := ResolveUser(root, "spy"); err == nil {
			t.Errorf("%s: found %+v", name, got)
		}
	}
	root := accountsRoot(t)
	if err := os.Rename(filepath.Join(root, "etc/passwd"), filepath.Join(root, "accounts")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/accounts", filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if got, err := ResolveUser(root, "app"); err != nil || got.UID != 1000 {
		t.Errorf("a link inside the image: %+v, %v", got, err)
	}
	if got, err := ResolveUser(t.TempDir(), "77:88"); err != nil || got.UID != 77 || got.GID != 88 {
		t.Errorf("ids without files: %+v, %v", got, err)
	}
	_, err := ResolveUser(filepath.Join(root, "gone"), "0")
	wantError(t, err, "gone")
}

func FuzzResolveUser(f *testing.F) {
	for _, spec := range []string{"", "app", "0:0", "app:extra", "-1", "4294967296:1", ":", "a:b:c"} {
		f.Add(spec, []byte(testPasswd), []byte(testGroup))
	}
	f.Fuzz(func(t *testing.T, spec string, passwd, group []byte) {
		u, err := lookUp(spec, passwd, group)
		if err != nil {
			return
		}
		for _, id := range append([]uint32{u.UID, u.GID}, u.AdditionalGIDs...) {
			if id > maxID {
				t.Errorf("%q gave id %d", spec, id)
			}
		}
		if u.Home == "" {
			t.Errorf("%q has no home", spec)
		}
	})
}
