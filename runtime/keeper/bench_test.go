//go:build cgo

package keeper_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pausa-run/pausa/runtime"
)

// report gives the median and the least of what was measured, in milliseconds.
func report(b *testing.B, name string, all []time.Duration) {
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name+"-p50-ms")
	b.ReportMetric(float64(all[0].Microseconds())/1000, name+"-min-ms")
}

// BenchmarkPod is the whole path: pause, container, first byte in the log.
func BenchmarkPod(b *testing.B) {
	h := newHost(b)
	h.cacheFile(h.pod())
	var whole, gone []time.Duration
	for i := 0; b.Loop(); i++ {
		begin := time.Now()
		pod, err := h.client.StartPod(ctx(b), runtime.PodSpec{ID: fmt.Sprintf("bench%d", i)})
		if err != nil {
			b.Fatal(err)
		}
		id := h.container(pod, []string{"sh", "-c", "echo x; exec sleep 1000"})
		h.start(id)
		for size := int64(0); size == 0; time.Sleep(100 * time.Microsecond) {
			st, err := os.Stat(h.log(id))
			if err != nil {
				b.Fatal(err)
			}
			size = st.Size()
		}
		whole = append(whole, time.Since(begin))
		begin = time.Now()
		if err := h.client.RemoveContainer(ctx(b), id); err != nil {
			b.Fatal(err)
		}
		if err := h.client.RemovePod(ctx(b), pod.ID); err != nil {
			b.Fatal(err)
		}
		gone = append(gone, time.Since(begin))
	}
	report(b, "ready", whole)
	report(b, "gone", gone)
}

func BenchmarkExec(b *testing.B) {
	h := newHost(b)
	pod := h.pod()
	h.cacheFile(pod)
	id := h.container(pod, []string{"sleep", "1000"})
	h.start(id)
	var all []time.Duration
	for b.Loop() {
		begin := time.Now()
		if code, err := h.client.Exec(ctx(b), runtime.ExecSpec{ContainerID: id, Args: []string{"true"}}, runtime.Stdio{}); code != 0 || err != nil {
			b.Fatal(code, err)
		}
		all = append(all, time.Since(begin))
	}
	report(b, "exec", all)
}

// BenchmarkMemory is how much keeper and pauses grow by a pod with one idle container.
func BenchmarkMemory(b *testing.B) {
	h := newHost(b)
	h.cacheFile(h.pod())
	const pods = 40
	for b.Loop() {
		before := pss(b, h.info().Pid)
		pauses := 0
		for i := range pods {
			pod := h.pod()
			h.start(h.container(pod, []string{"sleep", "1000"}))
			if i < pods {
				pauses += pss(b, pod.Pid)
			}
		}
		b.ReportMetric(float64(pss(b, h.info().Pid)-before)/pods, "keeper-kB/pod")
		b.ReportMetric(float64(pauses)/pods, "pause-kB/pod")
	}
}

func pss(b *testing.B, pid int) (kilobytes int) {
	data, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "smaps_rollup"))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "\nPss:")
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		b.Fatal(err)
	}
	return kilobytes
}

func BenchmarkStats(b *testing.B) {
	h := newHost(b)
	pod := h.pod()
	h.cacheFile(pod)
	for range 50 {
		h.start(h.container(pod, []string{"sleep", "1000"}))
	}
	var all []time.Duration
	for b.Loop() {
		begin := time.Now()
		if got, err := h.client.Stats(ctx(b)); err != nil || len(got) != 50 {
			b.Fatal(len(got), err)
		}
		all = append(all, time.Since(begin))
	}
	report(b, "stats50", all)
}
