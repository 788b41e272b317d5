package cri

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

func TestStats(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	podID := d.run(t, "web")
	running, created := d.start(t, podID, simple("a")), ""
	if r, err := d.rt.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: podID, Config: simple("b")}); err == nil {
		created = r.ContainerId
	} else {
		t.Fatal(err)
	}
	one, err := d.rt.ContainerStats(ctx, &criv1.ContainerStatsRequest{ContainerId: running})
	if err != nil {
		t.Fatal(err)
	}
	s := one.Stats
	if s.Attributes.Id != running || s.Attributes.Metadata.Name != "a" || s.Attributes.Labels["name"] != "a" || s.Cpu.UsageCoreNanoSeconds.Value != 3e9 || s.Cpu.Timestamp == 0 ||
		s.Memory.WorkingSetBytes.Value != 700 || s.Memory.AvailableBytes.Value != 300 || s.Memory.RssBytes.Value != 500 || s.WritableLayer.UsedBytes.Value != 4096 || s.WritableLayer.FsId.Mountpoint != "/" {
		t.Errorf("stats: %v", s)
	}
	list, err := d.rt.ListContainerStats(ctx, &criv1.ListContainerStatsRequest{})
	if err != nil || len(list.Stats) != 2 {
		t.Fatalf("list: %v %v", list, err)
	}
	if s := list.Stats[1]; s.Attributes.Id != created || s.Cpu.UsageCoreNanoSeconds.Value != 0 || s.WritableLayer == nil {
		t.Errorf("one that does not run: %v", s)
	}
	list, err = d.rt.ListContainerStats(ctx, &criv1.ListContainerStatsRequest{Filter: &criv1.ContainerStatsFilter{LabelSelector: map[string]string{"name": "a"}, PodSandboxId: podID, Id: running}})
	if err != nil || len(list.Stats) != 1 {
		t.Errorf("filtered: %v %v", list, err)
	}
	if d.pods.measured != 2 {
		t.Errorf("disk usage was measured %d times for 2 containers", d.pods.measured)
	}
	_, err = d.rt.ContainerStats(ctx, &criv1.ContainerStatsRequest{ContainerId: "ffff"})
	wantCode(t, err, codes.NotFound, "ffff")
}

func TestPodStats(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	podID := d.run(t, "web")
	d.start(t, podID, simple("a"))
	d.start(t, podID, simple("b"))
	one, err := d.rt.PodSandboxStats(ctx, &criv1.PodSandboxStatsRequest{PodSandboxId: podID})
	if err != nil {
		t.Fatal(err)
	}
	if l := one.Stats.Linux; l.Cpu.UsageCoreNanoSeconds.Value != 6e9 || l.Memory.WorkingSetBytes.Value != 1400 || l.Process.ProcessCount.Value != 5 || len(l.Containers) != 2 || one.Stats.Attributes.Metadata.Name != "web" {
		t.Errorf("stats: %v", one.Stats)
	}
	some := runtime.Waited{TotalNanos: 5000, Avg10: 1.5}
	d.pods.ownGroups = map[string]runtime.Stats{podID: {
		Time: time.Unix(5, 0), CPUNanos: 9e9, MemoryUsage: 90, MemoryWorkingSet: 80, MemoryLimit: 100, Pids: 7,
		CPUPressure: &runtime.Pressure{Some: some}, MemoryPressure: &runtime.Pressure{Full: some}, IOPressure: &runtime.Pressure{Some: some},
	}}
	if one, err = d.rt.PodSandboxStats(ctx, &criv1.PodSandboxStatsRequest{PodSandboxId: podID}); err != nil {
		t.Fatal(err)
	}
	if l := one.Stats.Linux; l.Cpu.UsageCoreNanoSeconds.Value != 9e9 || l.Memory.AvailableBytes.Value != 20 || l.Process.ProcessCount.Value != 8 || len(l.Containers) != 2 ||
		l.Cpu.Psi.Some.Total != 5000 || l.Memory.Psi.Full.Avg10 != 1.5 || l.Io.Psi.Some.Avg10 != 1.5 {
		t.Errorf("stats of a pod with a group to itself: %v", one.Stats)
	}
	list, err := d.rt.ListPodSandboxStats(ctx, &criv1.ListPodSandboxStatsRequest{Filter: &criv1.PodSandboxStatsFilter{Id: podID[:4]}})
	if err != nil || len(list.Stats) != 1 {
		t.Errorf("list: %v %v", list, err)
	}
	_, err = d.rt.PodSandboxStats(ctx, &criv1.PodSandboxStatsRequest{PodSandboxId: "ffff"})
	wantCode(t, err, codes.NotFound, "ffff")
	for name, recv := range map[string]func() (int, error){
		"containers": func() (int, error) {
			s, err := d.rt.StreamContainerStats(ctx, &criv1.StreamContainerStatsRequest{})
			if err != nil {
				return 0, err
			}
			r, err := s.Recv()
			return len(r.GetContainerStats()), err
		},
		"pods": func() (int, error) {
			s, err := d.rt.StreamPodSandboxStats(ctx, &criv1.StreamPodSandboxStatsRequest{})
			if err != nil {
				return 0, err
			}
			r, err := s.Recv()
			return len(r.GetPodSandboxStats()) + 1, err
		},
		"metrics": func() (int, error) {
			s, err := d.rt.StreamPodSandboxMetrics(ctx, &criv1.StreamPodSandboxMetricsRequest{})
			if err != nil {
				return 0, err
			}
			r, err := s.Recv()
			return len(r.GetPodSandboxMetrics()) + 1, err
		},
	} {
		if n, err := recv(); n != 2 || err != nil {
			t.Errorf("streamed %s: %d %v", name, n, err)
		}
	}
}

// Every metric has the labels that its descriptor tells.
func TestMetrics(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	podID := d.run(t, "web")
	id := d.start(t, podID, simple("a"))
	desc, err := d.rt.ListMetricDescriptors(ctx, &criv1.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, m := range desc.Descriptors {
		if m.Help == "" || keys[m.Name] != nil {
			t.Errorf("descriptor %v", m)
		}
		keys[m.Name] = m.LabelKeys
	}
	got, err := d.rt.ListPodSandboxMetrics(ctx, &criv1.ListPodSandboxMetricsRequest{})
	if err != nil || len(got.PodMetrics) != 1 || len(got.PodMetrics[0].ContainerMetrics) != 1 || got.PodMetrics[0].ContainerMetrics[0].ContainerId != id {
		t.Fatalf("metrics: %v %v", got, err)
	}
	seen := map[string]uint64{}
	for _, m := range append(got.PodMetrics[0].Metrics, got.PodMetrics[0].ContainerMetrics[0].Metrics...) {
		if len(m.LabelValues) != len(keys[m.Name]) {
			t.Errorf("%s: values %v for keys %v", m.Name, m.LabelValues, keys[m.Name])
		}
		if i := slices.Index(keys[m.Name], "pod"); i < 0 || m.LabelValues[i] != "web" {
			t.Errorf("%s: pod is not told: %v", m.Name, m.LabelValues)
		}
		seen[m.Name] = m.Value.Value
	}
	for name, want := range map[string]uint64{
		"container_cpu_user_seconds_total": 2, "container_oom_events_total": 1, "container_threads": 7, "container_fs_usage_bytes": 4096,
		"container_fs_reads_bytes_total": 4096, "container_spec_cpu_shares": 1024, "container_spec_cpu_period": 100_000,
	} {
		if seen[name] != want {
			t.Errorf("%s is %d, want %d", name, seen[name], want)
		}
	}
	if seen["container_cpu_usage_seconds_total"] != 3 || seen["container_memory_working_set_bytes"] != 700 || seen["container_start_time_seconds"] == 0 {
		t.Errorf("values: %v", seen)
	}
}

func TestReadNetDev(t *testing.T) {
	got := readNetDev(strings.NewReader(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  net1:       9       0    0    0    0     0          0         0        9       0    0    0    0     0       0          0
  eth0:    1000      10    1    2    0     0          0         0     2000      20    3    4    0     0       0          0
 broken
`))
	want := []netDev{
		{name: "eth0", rxBytes: 1000, rxPackets: 10, rxErrors: 1, rxDrops: 2, txBytes: 2000, txPackets: 20, txErrors: 3, txDrops: 4},
		{name: "net1", rxBytes: 9, txBytes: 9},
	}
	if !slices.Equal(got, want) {
		t.Errorf("have %+v", got)
	}
}

func TestCPURate(t *testing.T) {
	u := newUsageCache(newFakePods())
	at := time.Unix(100, 0)
	read := func(after time.Duration, cpu uint64) *criv1.UInt64Value {
		return u.cpuRate(&runtime.Stats{ID: "a", Time: at.Add(after), CPUNanos: cpu})
	}
	if got := read(0, 1e9); got != nil {
		t.Errorf("one reading gives a rate: %v", got)
	}
	if got := read(2*time.Second, 2e9); got.GetValue() != 5e8 {
		t.Errorf("half a core: %v", got)
	}
	if got := read(2*time.Second+minRate/2, 9e9); got.GetValue() != 5e8 {
		t.Errorf("too soon for a new rate: %v", got)
	}
	if got := read(4*time.Second, 0); got.GetValue() != 5e8 { // the counter began anew
		t.Errorf("after a reset: %v", got)
	}
	u.keep(pod.Snapshot{})
	if len(u.all) != 0 {
		t.Error("a container that is gone is remembered")
	}
}

// slowDisk measures once at a time, as told.
type slowDisk struct {
	*fakePods
	go1 chan images.Usage
}

func (s slowDisk) WritableUsage(context.Context, string) (images.Usage, error) {
	u, ok := <-s.go1
	if !ok {
		return u, pod.ErrNotFound
	}
	return u, nil
}

func TestOldDiskUsageIsMeasuredInTheBackground(t *testing.T) {
	s := slowDisk{newFakePods(), make(chan images.Usage, 1)}
	u := newUsageCache(s)
	s.go1 <- images.Usage{Bytes: 1}
	if got, at := u.disk(t.Context(), "a"); got.Bytes != 1 || at.IsZero() {
		t.Fatalf("first: %v %v", got, at)
	}
	u.mu.Lock()
	u.all["a"].measured = time.Now().Add(-2 * usageAge)
	u.mu.Unlock()
	if got, _ := u.disk(t.Context(), "a"); got.Bytes != 1 { // returns although nothing answers
		t.Errorf("old: %v", got)
	}
	s.go1 <- images.Usage{Bytes: 2}
	for {
		u.mu.Lock()
		done := !u.all["a"].measuring
		u.mu.Unlock()
		if done {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if got, _ := u.disk(t.Context(), "a"); got.Bytes != 2 {
		t.Errorf("measured again: %v", got)
	}
}
