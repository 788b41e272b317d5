package cri

import (
	"context"
	"errors"
	"fmt"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// ContainerStats reads one container's usage.
func (s *runtimeService) ContainerStats(ctx context.Context, r *criv1.ContainerStatsRequest) (*criv1.ContainerStatsResponse, error) {
	if r.ContainerId == "" {
		return nil, invalid("container_id", "is empty")
	}
	c, err := s.o.Pods.Container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	stats, err := s.containerStats(ctx, []*pod.Container{&c})
	if err != nil {
		return nil, err
	}
	return &criv1.ContainerStatsResponse{Stats: stats[0]}, nil
}

// ListContainerStats reads the usage of many containers at once.
func (s *runtimeService) ListContainerStats(ctx context.Context, r *criv1.ListContainerStatsRequest) (*criv1.ListContainerStatsResponse, error) {
	stats, err := s.listStats(ctx, r.Filter)
	return &criv1.ListContainerStatsResponse{Stats: stats}, err
}

// StreamContainerStats is ListContainerStats in parts.
func (s *runtimeService) StreamContainerStats(r *criv1.StreamContainerStatsRequest, out criv1.RuntimeService_StreamContainerStatsServer) error {
	stats, err := s.listStats(out.Context(), r.Filter)
	if err != nil {
		return err
	}
	return inParts(stats, func(part []*criv1.ContainerStats) error {
		return out.Send(&criv1.StreamContainerStatsResponse{ContainerStats: part})
	})
}

func (s *runtimeService) listStats(ctx context.Context, f *criv1.ContainerStatsFilter) ([]*criv1.ContainerStats, error) {
	s.usage.keep(s.o.Pods.Snapshot())
	return s.containerStats(ctx, s.visibleContainers(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()))
}

// containerStats has one entry for each container, in their order. One that does not run has its disk usage alone.
func (s *runtimeService) containerStats(ctx context.Context, all []*pod.Container) ([]*criv1.ContainerStats, error) {
	readings, err := s.readings(ctx, s.o.Pods.Stats, all)
	if err != nil {
		return nil, err
	}
	out := make([]*criv1.ContainerStats, 0, len(all))
	for _, c := range all {
		out = append(out, s.oneStats(ctx, c, readings[c.ID]))
	}
	return out, nil
}

// readings are the cgroups of those containers that run, by id, as read by Stats or DetailedStats.
func (s *runtimeService) readings(ctx context.Context, read func(context.Context, ...string) ([]runtime.Stats, error), all []*pod.Container) (map[string]*runtime.Stats, error) {
	var ids []string
	for _, c := range all {
		if c.Status == runtime.Running {
			ids = append(ids, c.ID)
		}
	}
	if len(ids) == 0 {
		return nil, nil // no id would mean all
	}
	got, err := read(ctx, ids...)
	if errors.Is(err, pod.ErrNotFound) || errors.Is(err, runtime.ErrNotFound) {
		got, err = read(ctx) // one has ended since: take what there is
	}
	if err != nil {
		return nil, fmt.Errorf("read stats: %w", err)
	}
	out := make(map[string]*runtime.Stats, len(got))
	for i := range got {
		out[got[i].ID] = &got[i]
	}
	return out, nil
}

func (s *runtimeService) oneStats(ctx context.Context, c *pod.Container, st *runtime.Stats) *criv1.ContainerStats {
	out := &criv1.ContainerStats{Attributes: &criv1.ContainerAttributes{
		Id: c.ID, Metadata: &criv1.ContainerMetadata{Name: c.Config.Name, Attempt: c.Config.Attempt},
		Labels: c.Config.Labels, Annotations: c.Config.Annotations,
	}}
	if disk, at := s.usage.disk(ctx, c.ID); !at.IsZero() {
		out.WritableLayer = &criv1.FilesystemUsage{
			Timestamp: at.UnixNano(), FsId: &criv1.FilesystemIdentifier{Mountpoint: disk.Path},
			UsedBytes: u64(disk.Bytes), InodesUsed: u64(disk.Inodes),
		}
	}
	if st == nil {
		now := time.Now().UnixNano()
		out.Cpu = &criv1.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: u64(0), UsageNanoCores: u64(0)}
		out.Memory = &criv1.MemoryUsage{Timestamp: now, WorkingSetBytes: u64(0), UsageBytes: u64(0)}
		return out
	}
	at := st.Time.UnixNano()
	out.Cpu = &criv1.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: u64(st.CPUNanos), UsageNanoCores: s.usage.cpuRate(st), Psi: criPressure(st.CPUPressure)}
	out.Memory = memoryUsage(st)
	out.Swap = &criv1.SwapUsage{Timestamp: at, SwapUsageBytes: u64(st.SwapUsage)}
	if st.SwapLimit != nil {
		out.Swap.SwapAvailableBytes = u64(*st.SwapLimit - min(*st.SwapLimit, st.SwapUsage))
	}
	out.Io = ioUsage(st)
	return out
}

// ioUsage is nil where the kernel tells nothing that the API has a field for.
func ioUsage(st *runtime.Stats) *criv1.IoUsage {
	if st.IOPressure == nil {
		return nil
	}
	return &criv1.IoUsage{Timestamp: st.Time.UnixNano(), Psi: criPressure(st.IOPressure)}
}

func criPressure(p *runtime.Pressure) *criv1.PsiStats {
	if p == nil {
		return nil
	}
	data := func(w *runtime.Waited) *criv1.PsiData {
		return &criv1.PsiData{Total: w.TotalNanos, Avg10: w.Avg10, Avg60: w.Avg60, Avg300: w.Avg300}
	}
	return &criv1.PsiStats{Full: data(&p.Full), Some: data(&p.Some)}
}

// memoryUsage has what is left to the limit only where there is one.
func memoryUsage(st *runtime.Stats) *criv1.MemoryUsage {
	m := &criv1.MemoryUsage{
		Timestamp: st.Time.UnixNano(), WorkingSetBytes: u64(st.MemoryWorkingSet), UsageBytes: u64(st.MemoryUsage),
		RssBytes: u64(st.MemoryRSS), PageFaults: u64(st.PageFaults), MajorPageFaults: u64(st.MajorPageFaults), Psi: criPressure(st.MemoryPressure),
	}
	if st.MemoryLimit > 0 {
		m.AvailableBytes = u64(st.MemoryLimit - min(st.MemoryLimit, st.MemoryWorkingSet))
	}
	return m
}
