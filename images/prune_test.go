package images

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

func names(list []Removed) []string {
	var out []string
	for _, r := range list {
		out = append(out, r.Names...)
	}
	return out
}

func TestPrune(t *testing.T) {
	ctx := context.Background()
	o := folders(t)
	o.Pinned = []string{"localhost/pin*:1"}
	s := open(t, o)
	for _, n := range []string{"localhost/a:1", "localhost/b:1", "localhost/pinned:1", "localhost/used:1"} {
		load(t, s, small(n))
	}
	nameless := small("localhost/a:1", filler(9)) // takes the name away from the first
	load(t, s, nameless)
	mountAs(t, s, "c1", "localhost/used:1")
	dry, err := s.Prune(ctx, PruneOptions{DryRun: true})
	if err != nil || len(dry) != 1 || len(dry[0].Names) != 0 {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	if gone, err := s.Prune(ctx, PruneOptions{}); err != nil || !slices.EqualFunc(gone, dry, func(a, b Removed) bool { return a.ID == b.ID }) {
		t.Errorf("without a name: %+v, %v", gone, err)
	}
	if gone, err := s.Prune(ctx, PruneOptions{All: true, MinAge: time.Hour}); err != nil || len(gone) != 0 {
		t.Errorf("young: %+v, %v", gone, err)
	}
	gone, err := s.Prune(ctx, PruneOptions{All: true})
	if got := names(gone); err != nil || !slices.Equal(slices.Sorted(slices.Values(got)), []string{"localhost/a:1", "localhost/b:1"}) {
		t.Errorf("all: %v, %v", got, err)
	}
	if list, _ := s.List(ctx); len(list) != 2 {
		t.Errorf("left %+v", list)
	}
}

func TestCollectStopsAtTheLowMark(t *testing.T) {
	ctx := context.Background()
	o := folders(t)
	o.Pinned = []string{"localhost/a:1"}
	s := open(t, o)
	s.opts.GC = GC{HighPercent: 85, LowPercent: 80} // now: nothing collects by itself
	for _, n := range []string{"localhost/a:1", "localhost/b:1", "localhost/c:1", "localhost/d:1"} {
		load(t, s, small(n))
	}
	full := 84.0
	s.measure = func() (float64, error) {
		list, err := s.List(ctx)
		return full + 2*float64(len(list)), err
	}
	full = 76
	if gone, err := s.Collect(ctx); err != nil || len(gone) != 0 {
		t.Errorf("below the high mark: %v, %v", gone, err)
	}
	mountAs(t, s, "c1", "localhost/b:1")
	if err := s.Unmount(ctx, "c1"); err != nil { // used a moment ago: the last to go
		t.Fatal(err)
	}
	full = 78
	gone, err := s.Collect(ctx)
	if got := names(gone); err != nil || !slices.Equal(got, []string{"localhost/c:1", "localhost/d:1", "localhost/b:1"}) {
		t.Errorf("gone %v, %v", got, err)
	}
	full = 90
	_, err = s.Collect(ctx)
	wantError(t, err, "no further image can go")
}

func TestCollectKeepsYoungImages(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	s.opts.GC = GC{HighPercent: 85, LowPercent: 80, MinAge: time.Hour}
	load(t, s, small("localhost/a:1"))
	s.measure = func() (float64, error) { return 99, nil }
	if gone, err := s.Collect(ctx); err == nil || len(gone) != 0 {
		t.Errorf("gone %v, %v", gone, err)
	}
	s.measure = func() (float64, error) { return 0, errors.New("no such disk") }
	_, err := s.Collect(ctx)
	wantError(t, err, "no such disk")
}

func TestTheDaemonCollects(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	s.opts.GC = GC{HighPercent: 85, LowPercent: 80}
	load(t, s, small("localhost/a:1"))
	asked := make(chan struct{}, 100)
	s.measure = func() (float64, error) {
		asked <- struct{}{}
		list, err := s.List(ctx)
		return 79 + 10*float64(len(list)), err
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		s.watchDisk(ctx)
		close(done)
	}()
	for range 3 { // before, between and after
		<-asked
	}
	stop()
	<-done
	if list, _ := s.List(context.Background()); len(list) != 0 {
		t.Errorf("left %+v", list)
	}
}

func TestFullness(t *testing.T) {
	s := open(t, folders(t))
	if p, err := s.fullness(); err != nil || p < 0 || p > 100 {
		t.Errorf("%f, %v", p, err)
	}
}

func TestPinned(t *testing.T) {
	o := folders(t)
	o.Pinned = []string{"busybox", "*/pause:*"}
	s := open(t, o)
	for name, want := range map[string]bool{
		"docker.io/library/busybox:latest": true, "docker.io/library/busybox:1": false,
		"localhost/pause:3": true, "localhost/x/pause:4": true, "localhost/pauses:3": false, "localhost/pause": false,
	} {
		if s.pinned(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	if img := load(t, s, small("localhost/pause:3")); !img.Pinned {
		t.Errorf("%+v", img)
	}
	o = folders(t)
	o.Pinned = []string{"Not Good"}
	needMounts(t)
	_, err := Open(context.Background(), o)
	wantError(t, err, "pinned image")
}
