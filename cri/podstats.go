package cri

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// PodSandboxStats reads one pod's usage.
func (s *runtimeService) PodSandboxStats(ctx context.Context, r *criv1.PodSandboxStatsRequest) (*criv1.PodSandboxStatsResponse, error) {
	p, err := s.o.Pods.Pod(r.PodSandboxId)
	if err != nil {
		return nil, err
	}
	stats, err := s.podStats(ctx, []*pod.Pod{&p})
	if err != nil {
		return nil, err
	}
	return &criv1.PodSandboxStatsResponse{Stats: stats[0]}, nil
}

// ListPodSandboxStats reads the usage of many pods at once.
func (s *runtimeService) ListPodSandboxStats(ctx context.Context, r *criv1.ListPodSandboxStatsRequest) (*criv1.ListPodSandboxStatsResponse, error) {
	stats, err := s.listPodStats(ctx, r.Filter)
	return &criv1.ListPodSandboxStatsResponse{Stats: stats}, err
}

// StreamPodSandboxStats is ListPodSandboxStats in parts.
func (s *runtimeService) StreamPodSandboxStats(r *criv1.StreamPodSandboxStatsRequest, out criv1.RuntimeService_StreamPodSandboxStatsServer) error {
	stats, err := s.listPodStats(out.Context(), r.Filter)
	if err != nil {
		return err
	}
	return inParts(stats, func(part []*criv1.PodSandboxStats) error {
		return out.Send(&criv1.StreamPodSandboxStatsResponse{PodSandboxStats: part})
	})
}

func (s *runtimeService) listPodStats(ctx context.Context, f *criv1.PodSandboxStatsFilter) ([]*criv1.PodSandboxStats, error) {
	s.usage.keep(s.o.Pods.Snapshot())
	return s.podStats(ctx, slices.DeleteFunc(s.visible(), func(p *pod.Pod) bool {
		return !p.Ready || !strings.HasPrefix(p.ID, f.GetId()) || !labelsMatch(f.GetLabelSelector(), p.Config.Labels)
	}))
}

// podStats has one entry for each pod: the sums of its containers, and its network.
func (s *runtimeService) podStats(ctx context.Context, pods []*pod.Pod) ([]*criv1.PodSandboxStats, error) {
	byPod := make([][]*pod.Container, len(pods))
	var all []*pod.Container
	for i, p := range pods {
		byPod[i] = s.o.Pods.ContainersOf(p.ID)
		all = append(all, byPod[i]...)
	}
	readings, err := s.readings(ctx, s.o.Pods.Stats, all)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(pods))
	for i, p := range pods {
		ids[i] = p.ID
	}
	own, err := s.o.Pods.PodStats(ctx, ids...)
	if err != nil {
		return nil, fmt.Errorf("read stats of pods: %w", err)
	}
	out := make([]*criv1.PodSandboxStats, 0, len(pods))
	for i, p := range pods {
		st, ok := own[p.ID]
		if !ok {
			st = sum(p, byPod[i], readings)
		}
		out = append(out, s.onePodStats(ctx, p, &st, byPod[i], readings))
	}
	return out, nil
}

// sum stands for the reading of a pod's cgroup where it has none to itself.
func sum(p *pod.Pod, containers []*pod.Container, readings map[string]*runtime.Stats) runtime.Stats {
	all := runtime.Stats{ID: p.ID, Time: time.Now()}
	for _, c := range containers {
		st := readings[c.ID]
		if st == nil {
			continue
		}
		all.CPUNanos += st.CPUNanos
		all.MemoryUsage += st.MemoryUsage
		all.MemoryWorkingSet += st.MemoryWorkingSet
		all.MemoryRSS += st.MemoryRSS
		all.PageFaults += st.PageFaults
		all.MajorPageFaults += st.MajorPageFaults
		all.Pids += st.Pids
	}
	return all
}

func (s *runtimeService) onePodStats(ctx context.Context, p *pod.Pod, own *runtime.Stats, containers []*pod.Container, readings map[string]*runtime.Stats) *criv1.PodSandboxStats {
	at := own.Time.UnixNano()
	linux := &criv1.LinuxPodSandboxStats{
		Network: podNetwork(p, at), Memory: memoryUsage(own), Io: ioUsage(own),
		Cpu: &criv1.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: u64(own.CPUNanos), UsageNanoCores: s.usage.cpuRate(own), Psi: criPressure(own.CPUPressure)},
	}
	for _, c := range containers {
		linux.Containers = append(linux.Containers, s.oneStats(ctx, c, readings[c.ID]))
	}
	processes := own.Pids
	if p.Ready {
		processes++ // pause, which is in no cgroup of the pod's
	}
	linux.Process = &criv1.ProcessUsage{Timestamp: at, ProcessCount: u64(processes)}
	return &criv1.PodSandboxStats{
		Attributes: &criv1.PodSandboxAttributes{Id: p.ID, Metadata: podMetadata(&p.Config), Labels: p.Config.Labels, Annotations: p.Config.Annotations},
		Linux:      linux,
	}
}

// podNetwork is nil for a pod that has no interfaces of its own.
func podNetwork(p *pod.Pod, now int64) *criv1.NetworkUsage {
	all := podDevs(p)
	if len(all) == 0 {
		return nil
	}
	return &criv1.NetworkUsage{Timestamp: now, DefaultInterface: all[0].usage(), Interfaces: usages(all[1:])}
}

// podDevs reads the counters of the pod's interfaces through its pause process,
// without entering its namespace. A pod on the host's network has none of its own.
func podDevs(p *pod.Pod) []netDev {
	if p.Config.HostNetwork || p.Pid == 0 {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/dev", p.Pid))
	if err != nil {
		return nil // it has just ended
	}
	defer func() { _ = f.Close() }()
	return readNetDev(f)
}

// netDev is one line of /proc/PID/net/dev.
type netDev struct {
	name                                                                         string
	rxBytes, rxPackets, rxErrors, rxDrops, txBytes, txPackets, txErrors, txDrops uint64
}

func (d netDev) usage() *criv1.NetworkInterfaceUsage {
	return &criv1.NetworkInterfaceUsage{
		Name: d.name, RxBytes: u64(d.rxBytes), RxErrors: u64(d.rxErrors), TxBytes: u64(d.txBytes), TxErrors: u64(d.txErrors),
	}
}

func usages(all []netDev) []*criv1.NetworkInterfaceUsage {
	var out []*criv1.NetworkInterfaceUsage
	for _, d := range all {
		out = append(out, d.usage())
	}
	return out
}

// readNetDev returns all interfaces but loopback, eth0 first.
func readNetDev(r io.Reader) []netDev {
	var out []netDev
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, counters, ok := strings.Cut(lines.Text(), ":")
		f := strings.Fields(counters)
		if name = strings.TrimSpace(name); !ok || len(f) < 16 || name == "lo" {
			continue
		}
		n := make([]uint64, 16)
		for i := range n {
			n[i], _ = strconv.ParseUint(f[i], 10, 64)
		}
		out = append(out, netDev{
			name: name, rxBytes: n[0], rxPackets: n[1], rxErrors: n[2], rxDrops: n[3],
			txBytes: n[8], txPackets: n[9], txErrors: n[10], txDrops: n[11],
		})
	}
	slices.SortStableFunc(out, func(a, b netDev) int {
		switch {
		case a.name == "eth0" && b.name != "eth0":
			return -1
		case b.name == "eth0" && a.name != "eth0":
			return 1
		}
		return 0
	})
	return out
}
