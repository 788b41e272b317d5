package images

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// crashEnv holds "ROOT:RUN:SOURCE" for a process that takes an image over and
// over until it is killed: SOURCE is an archive, or "REF" of a registry at "HOST/…".
const crashEnv = "PAUSA_IMAGES_TEST_CRASH"

func crash() {
	parts := strings.SplitN(os.Getenv(crashEnv), ":", 3)
	s, err := Open(context.Background(), Options{Root: parts[0], Run: parts[1], Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	fmt.Println("open")
	for {
		id, err := take(s, parts[2])
		if err != nil {
			panic(err)
		}
		if err := s.Remove(context.Background(), id); err != nil {
			panic(err)
		}
	}
}

// take imports or pulls the image that crashEnv names.
func take(s *Store, source string) (id string, err error) {
	if !filepath.IsAbs(source) {
		img, err := s.Pull(context.Background(), source, PullOptions{})
		return img.ID, err
	}
	f, err := os.Open(source)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	list, err := s.Import(context.Background(), f, ImportOptions{})
	if err != nil {
		return "", err
	}
	return list[0].ID, nil
}

// killed runs a process that takes the image of source over and over, and
// kills it after each of the times.
func killed(t *testing.T, o Options, source string, after ...time.Duration) {
	t.Helper()
	for _, d := range after {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), crashEnv+"="+o.Root+":"+o.Run+":"+source)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(d)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
}

// A pull that is killed while layers come and are unpacked leaves nothing that
// is believed and not whole; the next one goes on and ends with all files.
func TestKilledPullIsNotBelieved(t *testing.T) {
	needMounts(t)
	r, o := newRegistry(t), folders(t)
	layers := make([]image.Layer, 8)
	for i := range layers {
		layers[i] = slices.Concat(many(150), image.Filler(i, 300_000), image.Layer{image.Text(fmt.Sprintf("last%d", i), "whole")})
	}
	ref := r.push(t, "app:1", image.Spec{Layers: layers})
	killed(t, o, ref, 20*time.Millisecond, 60*time.Millisecond, 120*time.Millisecond, 200*time.Millisecond, 350*time.Millisecond)
	s := open(t, o)
	list, err := s.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) > 0 {
		wholeLayers(t, mountAs(t, s, "believed", ref), len(layers))
		if err := s.Unmount(context.Background(), "believed"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	wholeLayers(t, mountAs(t, s, "after", ref), len(layers))
	if err := s.Unmount(context.Background(), "after"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(context.Background(), ref); err != nil {
		t.Fatal(err)
	}
	nothingKept(t, s)
}

func wholeLayers(t *testing.T, root string, n int) {
	t.Helper()
	for i := range n {
		wantFile(t, filepath.Join(root, fmt.Sprintf("last%d", i)), "whole")
	}
	files, err := filepath.Glob(filepath.Join(root, "d*", "f*"))
	if err != nil || len(files) != 150 {
		t.Errorf("%d small files, %v", len(files), err)
	}
}

func TestKilledImportLeavesAUsableStore(t *testing.T) {
	needMounts(t)
	o := folders(t)
	tar := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(tar, packed(t, small("localhost/a:1", filler(1), filler(2))), 0o600); err != nil {
		t.Fatal(err)
	}
	for round := range 6 {
		killed(t, o, tar, time.Duration(3+round*11)*time.Millisecond)
	}
	s := open(t, o)
	list, err := s.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		mountAs(t, s, "check", i.ID) // what is listed works
		if err := s.Unmount(context.Background(), "check"); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(context.Background(), i.ID); err != nil {
			t.Fatal(err)
		}
	}
	load(t, s, small("localhost/a:1"))
	if err := s.Remove(context.Background(), "localhost/a:1"); err != nil {
		t.Fatal(err)
	}
	nothingKept(t, s)
}

// A download that was killed while its folder was being made is swept away,
// whatever of it was there.
func TestHalfMadeIngestsAreSwept(t *testing.T) {
	o := folders(t)
	for _, files := range [][]string{{}, {"ref"}, {"ref", "startedat"}, {"ref", "startedat", "updatedat", "total"}} {
		dir := filepath.Join(o.Root, "content", "ingest", "half"+strconv.Itoa(len(files)))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(o.Root, "lock"), []byte("1"), 0o600); err != nil { // as a killed daemon leaves it
		t.Fatal(err)
	}
	nothingKept(t, open(t, o))
}
