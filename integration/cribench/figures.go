package main

import (
	"math"
	"slices"
	"time"
)

// timings are durations by the name of what was timed.
type timings map[string][]time.Duration

func (t timings) add(name string, d time.Duration) {
	if t != nil {
		t[name] = append(t[name], d)
	}
}

// figure sums up durations, in milliseconds.
type figure struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	Min float64 `json:"min"`
	Max float64 `json:"max"`
}

func (t timings) figures() map[string]figure {
	out := map[string]figure{}
	for name, d := range t {
		out[name] = sum(d)
	}
	return out
}

// sum expects one duration at least.
func sum(d []time.Duration) figure {
	d = slices.Sorted(slices.Values(d))
	at := func(q float64) float64 {
		return float64(d[int(math.Ceil(q*float64(len(d))))-1]) / float64(time.Millisecond)
	}
	return figure{N: len(d), P50: at(0.5), P90: at(0.9), Min: at(1 / float64(len(d))), Max: at(1)}
}
