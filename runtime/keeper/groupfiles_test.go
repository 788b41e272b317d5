//go:build cgo

package keeper

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pausa-run/pausa/runtime"
)

// group makes a folder with files as a cgroup has them.
func group(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// openIn is how many files below dir this process has open.
func openIn(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, dir) {
			n++
		}
	}
	return n
}

func (g *groupFiles) content(folder, name string) string {
	r := g.reader()
	defer r.unlock()
	return string(r.read(folder, name))
}

// A file that is kept open is read anew each time.
func TestGroupFilesStayOpen(t *testing.T) {
	dir := group(t, map[string]string{"a": "1\n"})
	g := &groupFiles{}
	if got := g.content(dir, "a"); got != "1\n" || openIn(t, dir) != 1 {
		t.Fatalf("%q, %d are open", got, openIn(t, dir))
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("23\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := g.content(dir, "a"); got != "23\n" || openIn(t, dir) != 1 || g.open != 1 {
		t.Errorf("read again: %q, %d are open, counted as %d", got, openIn(t, dir), g.open)
	}
	if got := g.content(dir, "none"); got != "" || g.content(dir+"/gone", "a") != "" || g.content("", "a") != "" {
		t.Errorf("what is not there: %q", got)
	}
	g.mu.Lock()
	g.forget(dir, dir+"/gone")
	g.mu.Unlock()
	if openIn(t, dir) != 0 || g.open != 0 || len(g.folders) != 0 {
		t.Errorf("forgotten: %d are open, counted as %d", openIn(t, dir), g.open)
	}
}

// What nobody reads any more is closed, the rest is not.
func TestGroupFilesAreSwept(t *testing.T) {
	old, used := group(t, map[string]string{"a": "1"}), group(t, map[string]string{"a": "2"})
	g := &groupFiles{}
	g.content(old, "a")
	then := time.Now()
	g.content(used, "a")
	g.sweep(then)
	if openIn(t, old) != 0 || openIn(t, used) != 1 || g.sweeper == nil {
		t.Errorf("open: %d of the old one, %d of the used one", openIn(t, old), openIn(t, used))
	}
	g.sweep(time.Now())
	if openIn(t, used) != 0 || g.open != 0 || g.sweeper != nil {
		t.Errorf("open: %d; %d are counted; it goes on: %v", openIn(t, used), g.open, g.sweeper != nil)
	}
}

// However many groups there are, a bounded number of files is open, and all are read.
func TestGroupFilesAreBounded(t *testing.T) {
	dir := t.TempDir()
	g := &groupFiles{open: maxGroupFiles - 2}
	for i := range 5 {
		folder := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "a"), []byte(fmt.Sprint(i)), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := g.content(folder, "a"); got != fmt.Sprint(i) {
			t.Errorf("group %d: %q", i, got)
		}
	}
	if n := openIn(t, dir); n != 2 {
		t.Errorf("%d are open, 2 may be", n)
	}
}

func TestGroupStats(t *testing.T) {
	const pressureLines = "some avg10=1.50 avg60=0.25 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n"
	waited := &runtime.Pressure{Some: runtime.Waited{TotalNanos: 7000, Avg10: 1.5, Avg60: 0.25}, Full: runtime.Waited{TotalNanos: 3000}}
	swap := uint64(40)
	v2 := group(t, map[string]string{
		"memory.stat": "anon 5\nfile 9\ninactive_file 20\npgfault 7\npgmajfault 1\n", "memory.current": "100\n", "memory.max": "max\n",
		"memory.swap.current": "4\n", "memory.swap.max": "40\n", "cpu.stat": "usage_usec 3\nuser_usec 1\n", "pids.current": "6\n",
		"cpu.pressure": pressureLines, "io.pressure": pressureLines,
	})
	memory := group(t, map[string]string{
		"memory.stat":           "rss 1\ntotal_rss 5\ntotal_inactive_file 20\ntotal_pgfault 7\ntotal_pgmajfault 1\ntotal_swap 4\nhierarchical_memory_limit 200\nhierarchical_memsw_limit 240\n",
		"memory.usage_in_bytes": "100\n",
	})
	unlimited := group(t, map[string]string{
		"memory.stat": "hierarchical_memory_limit 9223372036854771712\nhierarchical_memsw_limit 9223372036854771712\n", "memory.usage_in_bytes": "100\n",
	})
	rest := group(t, map[string]string{"cpuacct.usage": "3000\n", "pids.current": "6\n", "memory.pressure": pressureLines})
	same := runtime.Stats{CPUNanos: 3000, MemoryUsage: 100, MemoryWorkingSet: 80, MemoryRSS: 5, PageFaults: 7, MajorPageFaults: 1, SwapUsage: 4, SwapLimit: &swap, Pids: 6}
	two, one := same, same
	two.CPUPressure, two.IOPressure = waited, waited
	one.MemoryLimit, one.MemoryPressure = 200, waited
	for name, c := range map[string]struct {
		groups map[string]string
		want   runtime.Stats
	}{
		"cgroup v2":          {map[string]string{"": v2}, two},
		"hybrid":             {map[string]string{"memory": memory, "cpuacct": rest, "pids": rest, "": rest}, one},
		"v1 without a limit": {map[string]string{"memory": unlimited}, runtime.Stats{MemoryUsage: 100, MemoryWorkingSet: 100}},
		"gone":               {map[string]string{"": v2 + "/gone"}, runtime.Stats{}},
	} {
		g := &groupFiles{}
		for range 2 {
			got := g.stats("", c.groups)
			if got.Time.IsZero() {
				t.Errorf("%s: no time", name)
			}
			got.Time = time.Time{}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s: have %+v, want %+v", name, got, c.want)
			}
		}
	}
}
