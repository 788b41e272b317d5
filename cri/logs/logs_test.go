package logs

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// writer writes a log as the keeper does, and is rotated as a kubelet does it.
type writer struct {
	t    *testing.T
	path string
	f    *os.File
	n    int
	turn int
}

func newWriter(t *testing.T) *writer {
	w := &writer{t: t, path: filepath.Join(t.TempDir(), "0.log")}
	w.reopen()
	t.Cleanup(func() { _ = w.f.Close() })
	return w
}

func (w *writer) reopen() {
	old := w.f
	var err error
	if w.f, err = os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if old != nil {
		_ = old.Close()
	}
}

// stamp is the time of line n.
func stamp(n int) time.Time { return time.Unix(1_000_000+int64(n), 1).UTC() }

func (w *writer) raw(text string) {
	if _, err := w.f.WriteString(text); err != nil {
		w.t.Error(err)
	}
}

// line writes "STREAM TAG TEXT" with the next time.
func (w *writer) line(text string) {
	w.n++
	w.raw(stamp(w.n).Format(time.RFC3339Nano) + " " + text + "\n")
}

// move takes the file away; the writer goes on in it until reopen.
func (w *writer) move() string {
	w.turn++
	to := fmt.Sprintf("%s.2026112%d", w.path, w.turn)
	if err := os.Rename(w.path, to); err != nil {
		w.t.Fatal(err)
	}
	return to
}

// pack compresses a rotated file as a kubelet does.
func (w *writer) pack(name string) {
	raw, err := os.ReadFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil || z.Close() != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(name+".tmp", b.Bytes(), 0o600), os.Rename(name+".tmp", name+".gz"), os.Remove(name)); err != nil {
		w.t.Fatal(err)
	}
}

// read collects all, with stderr in capitals.
func read(t *testing.T, path string, o Options) string {
	t.Helper()
	var b strings.Builder
	if err := Read(t.Context(), path, o, func(l Lines) error {
		if l.Data[len(l.Data)-1] != '\n' {
			t.Errorf("no whole line: %q", l.Data)
		}
		text := string(l.Data)
		if l.Stderr {
			text = strings.ToUpper(text)
		}
		b.WriteString(text)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func all() Options { return Options{Tail: -1} }

func TestRead(t *testing.T) {
	w := newWriter(t)
	w.line("stdout F one")
	w.line("stderr F two")
	w.line("stdout P thr")
	w.line("stderr F between")
	w.line("stdout P e")
	w.line("stdout F e")
	w.line("stdout F ")
	w.line("stdout F:x more tags")
	w.raw("not in the format\n")
	w.line("stdout P no end")
	if got, want := read(t, w.path, all()), "one\nTWO\nBETWEEN\nthree\n\nmore tags\nnot in the format\nno end\n"; got != want {
		t.Errorf("have %q, want %q", got, want)
	}
}

func TestTornLastLine(t *testing.T) {
	w := newWriter(t)
	w.line("stdout F one")
	w.raw(stamp(9).Format(time.RFC3339Nano) + " stdout F to")
	if got := read(t, w.path, all()); got != "one\nto\n" {
		t.Errorf("have %q", got)
	}
}

func TestTimestampsAndSince(t *testing.T) {
	w := newWriter(t)
	for _, l := range []string{"stdout F one", "stdout P tw", "stdout F o", "stdout F three"} {
		w.line(l)
	}
	if got := read(t, w.path, Options{Tail: -1, Timestamps: true, Since: stamp(2)}); got != "1970-01-12T13:46:42.000000001Z two\n1970-01-12T13:46:44.000000001Z three\n" {
		t.Errorf("have %q", got)
	}
	// a line counts by the time of its beginning
	if got := read(t, w.path, Options{Tail: -1, Since: stamp(3)}); got != "three\n" {
		t.Errorf("have %q", got)
	}
}

func TestTail(t *testing.T) {
	w := newWriter(t)
	w.line("stdout F one")
	w.line("stdout F two")
	packed := w.move()
	w.reopen()
	w.line("stdout F three")
	w.line("stdout P fo")
	w.line("stdout F ur")
	w.move()
	w.reopen()
	w.line("stdout F five")
	w.pack(packed)
	lines := []string{"one\n", "two\n", "three\n", "four\n", "five\n"}
	for n := range 8 {
		want := strings.Join(lines[max(0, len(lines)-n):], "")
		if got := read(t, w.path, Options{Tail: int64(n)}); got != want {
			t.Errorf("tail %d: %q, want %q", n, got, want)
		}
	}
	if got := read(t, w.path, all()); got != strings.Join(lines, "") {
		t.Errorf("all: %q", got)
	}
}

func TestTailOfALongFile(t *testing.T) {
	w := newWriter(t)
	for i := range 20_000 {
		w.line(fmt.Sprintf("stdout F %d %s", i, strings.Repeat("x", i%100)))
	}
	for _, n := range []int{1, 10, 3000, 19_999, 30_000} {
		got := strings.Split(strings.TrimSpace(read(t, w.path, Options{Tail: int64(n)})), "\n")
		if want := min(n, 20_000); len(got) != want || !strings.HasPrefix(got[0], fmt.Sprintf("%d ", 20_000-want)) {
			t.Errorf("tail %d: %d lines from %.20q", n, len(got), got[0])
		}
	}
}

func TestLongLines(t *testing.T) {
	w := newWriter(t)
	part := strings.Repeat("y", 16<<10)
	for range 640 { // 10 MB
		w.line("stdout P " + part)
	}
	w.line("stdout F end")
	total, largest := 0, 0
	if err := Read(t.Context(), w.path, all(), func(l Lines) error {
		total += len(l.Data)
		largest = max(largest, len(l.Data))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := 640*len(part) + len("end\n"); total != want || largest > maxLine+len(part) {
		t.Errorf("%d bytes, want %d; largest piece %d", total, want, largest)
	}
	// one line of the file itself without an end
	w.raw(strings.Repeat("z", 3*maxLine))
	total = 0
	if err := Read(t.Context(), w.path, Options{Tail: -1, Since: stamp(10_000)}, func(l Lines) error {
		total += len(l.Data)
		return nil
	}); err != nil || total < 3*maxLine {
		t.Errorf("%d bytes of it, %v", total, err)
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	if err := Read(t.Context(), filepath.Join(dir, "no", "0.log"), all(), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no log: %v", err)
	}
	secret := filepath.Join(dir, "secret")
	if err := errors.Join(os.WriteFile(secret, []byte("secret\n"), 0o600), os.Symlink(secret, filepath.Join(dir, "0.log"))); err != nil {
		t.Fatal(err)
	}
	if err := Read(t.Context(), filepath.Join(dir, "0.log"), all(), func(Lines) error { t.Error("a symlink was followed"); return nil }); err == nil {
		t.Error("a symlink is no error")
	}
	w := newWriter(t)
	w.line("stdout F x")
	gone := errors.New("client gone")
	if err := Read(t.Context(), w.path, all(), func(Lines) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("a failed emit: %v", err)
	}
}

// following collects what a follower tells, until it has n lines or ends.
type following struct {
	mu    sync.Mutex
	lines []string
	grown chan struct{}
	done  chan error
	end   chan struct{}
	stop  context.CancelFunc
}

func follow(t *testing.T, path string, tail int64) *following {
	f := &following{grown: make(chan struct{}, 1), done: make(chan error, 1), end: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	f.stop = cancel
	go func() {
		f.done <- Read(ctx, path, Options{Tail: tail, Follow: true, Ended: f.end}, func(l Lines) error {
			f.mu.Lock()
			f.lines = append(f.lines, strings.Split(strings.TrimSuffix(string(l.Data), "\n"), "\n")...)
			f.mu.Unlock()
			select {
			case f.grown <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	return f
}

func (f *following) wait(t *testing.T, n int) {
	t.Helper()
	for {
		f.mu.Lock()
		have := len(f.lines)
		f.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-f.grown:
		case err := <-f.done:
			t.Fatalf("ended with %d of %d lines: %v", have, n, err)
		}
	}
}

func (f *following) check(t *testing.T, n int) {
	t.Helper()
	close(f.end)
	if err := <-f.done; err != nil {
		t.Fatal(err)
	}
	if len(f.lines) != n {
		t.Fatalf("%d lines, want %d", len(f.lines), n)
	}
	for i, l := range f.lines {
		if l != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
}

func TestFollow(t *testing.T) {
	w := newWriter(t)
	w.line("stdout F 0")
	f := follow(t, w.path, -1)
	f.wait(t, 1)
	w.line("stdout F 1")
	w.raw(stamp(50).Format(time.RFC3339Nano) + " stdout F ")
	f.wait(t, 2)
	w.raw("2\n")
	f.wait(t, 3)
	f.check(t, 3)
}

func TestFollowBeforeTheFileIsThere(t *testing.T) {
	dir := t.TempDir()
	f := follow(t, filepath.Join(dir, "0.log"), -1)
	w := &writer{t: t, path: filepath.Join(dir, "0.log")}
	w.reopen()
	defer func() { _ = w.f.Close() }()
	w.line("stdout F 0")
	f.wait(t, 1)
	f.check(t, 1)
}

func TestFollowFromTheEnd(t *testing.T) {
	w := newWriter(t)
	w.line("stdout F old")
	w.move()
	w.reopen()
	w.line("stdout F older")
	f := follow(t, w.path, 0)
	for range 20 { // the follower may not have begun: say it until it is heard
		w.line("stdout F 0")
		select {
		case <-f.grown:
		case <-time.After(100 * time.Millisecond):
			continue
		}
		break
	}
	close(f.end)
	if err := <-f.done; err != nil {
		t.Fatal(err)
	}
	for _, l := range f.lines {
		if l != "0" {
			t.Errorf("have %q", f.lines)
		}
	}
}

// A writer at full speed, rotated all the time, with old files compressed: each
// number is told exactly once and in order. The writer goes on for a while in
// the file that was moved away, as between a kubelet's rename and its reopen.
func TestFollowAcrossRotations(t *testing.T) {
	const rotations, perFile = 50, 2000
	w := newWriter(t)
	n := 0
	write := func(lines int) {
		var b strings.Builder
		for range lines {
			w.n++
			fmt.Fprintf(&b, "%s stdout F %d\n", stamp(w.n).Format(time.RFC3339Nano), n)
			n++
		}
		w.raw(b.String())
	}
	write(1)
	f := follow(t, w.path, -1)
	var moved []string
	for range rotations {
		write(perFile)
		moved = append(moved, w.move())
		write(perFile / 10)
		w.reopen()
		if len(moved) > 1 && len(moved)%3 == 0 {
			w.pack(moved[len(moved)-2])
		}
	}
	write(10)
	f.wait(t, n)
	f.check(t, n)
}

func TestFollowTruncated(t *testing.T) {
	w := newWriter(t)
	w.line("stdout F 0")
	w.line("stdout F 1")
	f := follow(t, w.path, -1)
	f.wait(t, 2)
	if err := os.Truncate(w.path, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * pollTime) // the follower must see it empty: a refilled file cannot be told from a grown one
	w.line("stdout F 2")
	f.wait(t, 3)
	f.check(t, 3)
}

func TestFollowEndsWithItsContext(t *testing.T) {
	w := newWriter(t)
	w.line("stdout F 0")
	f := follow(t, w.path, -1)
	f.wait(t, 1)
	f.stop()
	if err := <-f.done; !errors.Is(err, context.Canceled) {
		t.Errorf("have %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-11-22T20:00:00Z stdout F text\n"))
	f.Add([]byte("x y z\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		r := parse(line)
		if !bytes.Contains(line, r.text) {
			t.Errorf("%q made %q", line, r.text)
		}
	})
}
