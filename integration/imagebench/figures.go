package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
)

// figures are all measurements, in the order in which they were made.
type figures struct{ list []measurement }

func (f *figures) add(m measurement) { f.list = append(f.list, m) }

// medians of each kind and runtime; the first runtime's figures are also given
// as a share of each other's.
func (f *figures) print(w io.Writer) {
	fmt.Fprintf(w, "\n%-8s %-12s %8s %8s %8s %8s   %s\n", "medians", "", "s", "CPU s", "MB peak", "MB sent", "share of it that "+f.list[0].Runtime+" takes: time, CPU, memory")
	for _, kind := range f.names(func(m measurement) string { return m.Kind }) {
		var own measurement
		for _, r := range f.names(func(m measurement) string { return m.Runtime }) {
			m := f.median(kind, r)
			fmt.Fprintf(w, "%-8s %-12s %8.2f %8.2f %8.1f %8.1f", kind, r, m.Seconds, m.CPU, m.PeakMB, m.SentMB)
			if own.Runtime == "" {
				own = m
			} else {
				fmt.Fprintf(w, "   %.2f %.2f %.2f", own.Seconds/m.Seconds, own.CPU/m.CPU, own.PeakMB/m.PeakMB)
			}
			fmt.Fprintln(w)
		}
	}
}

// names are the different values of one field, in the order of their coming.
func (f *figures) names(of func(measurement) string) []string {
	var out []string
	for _, m := range f.list {
		if !slices.Contains(out, of(m)) {
			out = append(out, of(m))
		}
	}
	return out
}

func (f *figures) median(kind, runtime string) measurement {
	middle := func(of func(measurement) float64) float64 {
		var all []float64
		for _, m := range f.list {
			if m.Kind == kind && m.Runtime == runtime {
				all = append(all, of(m))
			}
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	return measurement{
		Runtime: runtime, Kind: kind,
		Seconds: middle(func(m measurement) float64 { return m.Seconds }),
		CPU:     middle(func(m measurement) float64 { return m.CPU }),
		PeakMB:  middle(func(m measurement) float64 { return m.PeakMB }),
		SentMB:  middle(func(m measurement) float64 { return m.SentMB }),
	}
}

func (f *figures) save(path string) error {
	if path == "" {
		return nil
	}
	raw, err := json.MarshalIndent(f.list, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the figures: %w", err)
	}
	if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("save the figures: %w", err)
	}
	return nil
}
