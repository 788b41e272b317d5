package images

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// crashEnv holds "ROOT:RUN:ARCHIVE" for a process that imports an image over
// and over until it is killed.
const crashEnv = "PAUSA_IMAGES_TEST_CRASH"

func crash() {
	parts := filepath.SplitList(os.Getenv(crashEnv))
	data, err := os.ReadFile(parts[2])
	if err != nil {
		panic(err)
	}
	s, err := Open(context.Background(), Options{Root: parts[0], Run: parts[1], Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	fmt.Println("open")
	for {
		list, err := s.Import(context.Background(), bytes.NewReader(data), ImportOptions{})
		if err != nil {
			panic(err)
		}
		if err := s.Remove(context.Background(), list[0].ID); err != nil {
			panic(err)
		}
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
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), crashEnv+"="+o.Root+":"+o.Run+":"+tar)
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
		time.Sleep(time.Duration(3+round*11) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
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
