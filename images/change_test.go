package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

func TestTag(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	img := load(t, s, small("localhost/a:1"))
	got, err := s.Tag(ctx, img.ID, "localhost/b:2")
	if err != nil || !slices.Equal(got.RepoTags, []string{"localhost/a:1", "localhost/b:2"}) {
		t.Errorf("tagged %+v, %v", got.RepoTags, err)
	}
	if err := s.Remove(ctx, "localhost/a:1"); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(mountAs(t, s, "c1", "localhost/b:2"), "name"), "localhost/a:1")
	_, err = s.Tag(ctx, "localhost/none:1", "localhost/c:1")
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	_, err = s.Tag(ctx, img.ID, "Not Good")
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
}

func TestExportComesBackTheSame(t *testing.T) {
	ctx := context.Background()
	from := open(t, folders(t))
	one := load(t, from, small("localhost/a:1", filler(1)))
	two := load(t, from, small("localhost/b:1", filler(2)))
	if _, err := from.Tag(ctx, one.ID, "localhost/a:2"); err != nil {
		t.Fatal(err)
	}
	for format, file := range map[string]string{FormatOCI: "index.json", FormatDocker: "manifest.json"} {
		var out bytes.Buffer
		if err := from.Export(ctx, &out, []string{one.ID, "localhost/b:1"}, format); err != nil {
			t.Fatal(err)
		}
		if has := bytes.Contains(out.Bytes(), []byte("manifest.json")); has != (file == "manifest.json") {
			t.Errorf("%s: has a docker manifest: %v", format, has)
		}
		to := open(t, folders(t))
		got, err := to.Import(ctx, &out, ImportOptions{})
		if err != nil || len(got) != 2 {
			t.Fatalf("%s: %+v, %v", format, got, err)
		}
		back, err := to.Get(ctx, one.ID)
		if err != nil || !slices.Equal(back.RepoTags, []string{"localhost/a:1", "localhost/a:2"}) {
			t.Errorf("%s: %+v, %v", format, back.RepoTags, err)
		}
		if _, err := to.Get(ctx, two.ID); err != nil {
			t.Error(err)
		}
	}
	wantError(t, from.Export(ctx, &bytes.Buffer{}, []string{one.ID}, "zip"), "unknown format", "oci")
	if err := from.Export(ctx, &bytes.Buffer{}, []string{"localhost/none"}, ""); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestPushAndPullBack(t *testing.T) {
	ctx := context.Background()
	r, s := newRegistry(t), open(t, folders(t))
	img := load(t, s, small("localhost/a:1", image.Filler(1, 2<<20)))
	to := r.host() + "/team/pushed:1"
	done := map[string]int64{}
	tell := func(p Progress) {
		if p.Done {
			done[p.Digest] = p.Bytes
		}
	}
	digest, err := s.Push(ctx, "localhost/a:1", PushOptions{To: to, Progress: tell})
	if err != nil || len(done) != 4 {
		t.Fatalf("pushed %v, %v", done, err)
	}
	if again, err := s.Push(ctx, img.ID, PushOptions{To: to}); err != nil || again != digest {
		t.Errorf("once more: %s, %v", again, err)
	}
	other := open(t, folders(t))
	got, err := other.Pull(ctx, to, PullOptions{})
	if err != nil || got.ID != img.ID || !strings.HasSuffix(got.RepoDigests[0], digest) {
		t.Errorf("back: %+v, %v", got, err)
	}
	if _, err := s.Tag(ctx, img.ID, "localhost/a:2"); err != nil {
		t.Fatal(err)
	}
	if _, err = s.Push(ctx, img.ID, PushOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("by an id that has two names: %v", err)
	}
}

func TestInspect(t *testing.T) {
	ctx := context.Background()
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "team/app:1", small("x", filler(1)))
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	mountAs(t, s, "c1", ref)
	got, err := s.Inspect(ctx, ref)
	if err != nil || len(got.Layers) != 2 || got.Layers[1].Unpacked < 20_000 || !slices.Equal(got.UsedBy, []string{"c1"}) ||
		!slices.Equal(got.Sources["127.0.0.1"], []string{"team/app"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if data, err := json.Marshal(got); err != nil || !bytes.Contains(data, []byte(`"diffID":"sha256:`)) {
		t.Errorf("%s, %v", data, err)
	}
}

// du is what the tool says of a folder, in bytes.
func du(t *testing.T, dir string) uint64 {
	t.Helper()
	out, err := exec.Command("du", "-s", "--block-size=1", dir).Output()
	if err != nil {
		t.Skipf("needs du: %v", err)
	}
	n, err := strconv.ParseUint(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAccountNamesEveryByte(t *testing.T) {
	ctx := context.Background()
	o := folders(t)
	s := open(t, o)
	load(t, s, small("localhost/a:1", filler(1)))
	load(t, s, small("localhost/b:1", filler(1), filler(2)))
	root := mountAs(t, s, "c1", "localhost/a:1")
	write(t, filepath.Join(root, "written"), strings.Repeat("x", 100_000))
	write(t, filepath.Join(o.Root, "stranger"), "who put this here?")
	if err := os.MkdirAll(filepath.Join(o.Root, "overlay", "snapshots", "999", "fs"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(o.Root, "overlay", "snapshots", "999", "fs", "lost"), strings.Repeat("x", 5000))
	s.garbage()
	s.closeSpares() // nothing changes in the background from here on
	for left := []string{""}; len(left) > 0; {
		left, _ = filepath.Glob(s.path("trash", "*"))
	}
	items, err := s.Account(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var sum uint64
	by := map[string]Item{}
	for _, i := range items {
		sum += i.Bytes
		by[i.Path] = i
	}
	if want := du(t, o.Root); sum != want {
		t.Errorf("sum %d, du says %d", sum, want)
	}
	for path, want := range map[string]string{"stranger": KindUnknown, "overlay/snapshots/999": KindLayer} {
		if i, ok := by[path]; !ok || i.Kind != want || !i.Orphan() || i.Bytes == 0 {
			t.Errorf("%s: %+v", path, i)
		}
	}
	if w := by["rw/c1"]; w.Orphan() || w.UsedBy[0] != "container c1" || w.Bytes < 100_000 {
		t.Errorf("writable: %+v", w)
	}
	shared := 0
	for _, i := range items {
		if i.Kind == KindLayer && slices.Equal(i.UsedBy, []string{"localhost/a:1", "localhost/b:1"}) {
			shared++
		}
		if i.Orphan() && i.Path != "stranger" && i.Path != "overlay/snapshots/999" {
			t.Errorf("orphan %+v", i)
		}
	}
	if shared != 0 { // the first layers differ by a file, so that nothing below is shared
		t.Errorf("%d layers are shared", shared)
	}
}

func TestView(t *testing.T) {
	ctx := context.Background()
	o := folders(t)
	s := open(t, o)
	img := load(t, s, small("localhost/a:1"))
	path, err := s.View(ctx, "localhost/a:1")
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(path, "name"), "localhost/a:1")
	if err := os.WriteFile(filepath.Join(path, "name"), nil, 0o600); err == nil {
		t.Error("it can be written")
	}
	if again, err := s.View(ctx, img.ID); err != nil || again != path {
		t.Errorf("again %s, %v", again, err)
	}
	if ids, err := s.Mounted(); err != nil || len(ids) != 0 {
		t.Errorf("containers %v, %v", ids, err)
	}
	err = s.Remove(ctx, img.ID)
	if !errors.Is(err, ErrInUse) {
		t.Errorf("remove: %v", err)
	}
	wantError(t, err, "pausa images unmount")
	for range 2 {
		if err := s.Unview(ctx, "localhost/a:1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(ctx, img.ID); err != nil {
		t.Error(err)
	}
}

func TestViewIsForgottenAfterAReboot(t *testing.T) {
	ctx := context.Background()
	o := folders(t)
	s := open(t, o)
	load(t, s, small("localhost/a:1"))
	path, err := s.View(ctx, "localhost/a:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.lock = nil
	if err := detach(path); err != nil { // a reboot takes the mounts
		t.Fatal(err)
	}
	s = open(t, o)
	if err := s.Remove(ctx, "localhost/a:1"); err != nil {
		t.Error(err)
	}
}
