package main

import (
	"os"
	"testing"
	"time"
)

func TestSum(t *testing.T) {
	var d []time.Duration
	for i := 10; i > 0; i-- {
		d = append(d, time.Duration(i)*time.Millisecond)
	}
	if got, want := sum(d), (figure{N: 10, P50: 5, P90: 9, Min: 1, Max: 10}); got != want {
		t.Errorf("sum of 1 to 10 ms is %+v, want %+v", got, want)
	}
	if got, want := sum(d[:1]), (figure{N: 1, P50: 10, P90: 10, Min: 10, Max: 10}); got != want {
		t.Errorf("sum of one is %+v, want %+v", got, want)
	}
	if d[0] != 10*time.Millisecond {
		t.Error("the caller's slice was sorted")
	}
}

func TestPSS(t *testing.T) {
	if got := pss("/proc/self"); got <= 0 || got > 1000 {
		t.Errorf("this test takes %v MB", got)
	}
	if got := pss(t.TempDir()); got != 0 {
		t.Errorf("a process that is gone takes %v MB", got)
	}
}

func TestOrderNamesEveryTiming(t *testing.T) {
	b := &bench{timings: timings{}}
	for _, name := range order() {
		if err := b.timed(name, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.timed("failing", func() error { return os.ErrInvalid }); err == nil || len(b.timings["failing"]) != 0 {
		t.Errorf("a call that failed was counted: %v", err)
	}
	if len(b.timings.figures()) != len(order()) {
		t.Errorf("figures %v for %v", b.timings.figures(), order())
	}
}
