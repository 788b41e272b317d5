package images

import (
	"errors"
	"strings"
	"testing"
)

func TestNormalize(t *testing.T) {
	d := "@sha256:" + strings.Repeat("a", 64)
	for ref, want := range map[string]string{
		"busybox":                "docker.io/library/busybox:latest",
		"busybox:1.36":           "docker.io/library/busybox:1.36",
		"me/app":                 "docker.io/me/app:latest",
		"localhost/app":          "localhost/app:latest",
		"localhost:5000/app:x":   "localhost:5000/app:x",
		"example.org/a/b/c":      "example.org/a/b/c:latest",
		"busybox" + d:            "docker.io/library/busybox" + d,
		"example.org/a:tag" + d:  "example.org/a" + d,
		"[::1]:5000/app":         "[::1]:5000/app:latest",
		"index.docker.io/me/app": "docker.io/me/app:latest",
	} {
		if got, err := Normalize(ref); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", ref, got, err, want)
		}
	}
	for _, ref := range []string{"", " ", "A", "a:b:c", "a@sha256:1", "a/../b", "https://x/y", "sha256:" + strings.Repeat("a", 64), "a\x00b", "-a", strings.Repeat("a", 300)} {
		if got, err := Normalize(ref); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %q, %v", ref, got, err)
		}
	}
}

func FuzzReference(f *testing.F) {
	for _, r := range []string{"busybox", "localhost/a:1", "a@sha256:" + strings.Repeat("0", 64), "abcdef", "sha256:abcdef", "[::1]:5/x", "x/../y"} {
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		full, err := Normalize(ref)
		if err == nil {
			if again, err := Normalize(full); err != nil || again != full {
				t.Errorf("%q became %q and then %q, %v", ref, full, again, err)
			}
			if strings.ContainsAny(full, " \n\x00") || strings.Contains(full, "..") && !strings.Contains(full, "...") && strings.Contains(full, "/../") {
				t.Errorf("%q became %q", ref, full)
			}
		}
		c := &catalog{byID: map[string]*record{}, byName: map[string]*record{}}
		if _, err := c.find(ref); !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", ref, err)
		}
	})
}
