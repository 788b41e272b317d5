package cri

import (
	"context"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// metric is one figure under the name and labels that cAdvisor gives it.
type metric struct {
	name, help string
	kind       criv1.MetricType
	labels     []string // more than the base labels
	// One of these is set. container has a line for each set of more labels.
	container func(c *pod.Container, st *runtime.Stats) []sample
	network   func(d netDev) uint64
}

type sample struct {
	labels []string
	value  uint64
}

// baseLabels come first at every metric, as a kubelet's own have them.
func baseLabels() []string { return []string{"container", "id", "image", "name", "namespace", "pod"} }

func metrics() []metric {
	const counter, gauge = criv1.MetricType_COUNTER, criv1.MetricType_GAUGE
	one := func(f func(*runtime.Stats) uint64) func(*pod.Container, *runtime.Stats) []sample {
		return func(_ *pod.Container, st *runtime.Stats) []sample { return []sample{{value: f(st)}} }
	}
	network := func(name, help string, f func(netDev) uint64) metric {
		return metric{"container_network_" + name + "_total", help, counter, []string{"interface"}, nil, f}
	}
	return []metric{
		{"container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", counter, []string{"cpu"}, func(_ *pod.Container, st *runtime.Stats) []sample {
			return []sample{{[]string{"total"}, st.CPUNanos / 1e9}}
		}, nil},
		{"container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", gauge, nil, one(func(st *runtime.Stats) uint64 { return st.MemoryUsage }), nil},
		{"container_memory_working_set_bytes", "Current working set in bytes.", gauge, nil, one(func(st *runtime.Stats) uint64 { return st.MemoryWorkingSet }), nil},
		{"container_memory_rss", "Size of RSS in bytes.", gauge, nil, one(func(st *runtime.Stats) uint64 { return st.MemoryRSS }), nil},
		{"container_memory_swap", "Container swap usage in bytes.", gauge, nil, one(func(st *runtime.Stats) uint64 { return st.SwapUsage }), nil},
		{"container_memory_failures_total", "Cumulative count of memory allocation failures.", counter, []string{"failure_type", "scope"}, func(_ *pod.Container, st *runtime.Stats) []sample {
			return []sample{{[]string{"pgfault", "container"}, st.PageFaults}, {[]string{"pgmajfault", "container"}, st.MajorPageFaults}}
		}, nil},
		{"container_spec_memory_limit_bytes", "Memory limit for the container, 0 for none.", gauge, nil, one(func(st *runtime.Stats) uint64 { return st.MemoryLimit }), nil},
		{"container_processes", "Number of processes running inside the container.", gauge, nil, one(func(st *runtime.Stats) uint64 { return st.Pids }), nil},
		{"container_start_time_seconds", "Start time of the container since unix epoch in seconds.", gauge, nil, func(c *pod.Container, _ *runtime.Stats) []sample {
			return []sample{{value: uint64(max(0, c.StartedAt.Unix()))}}
		}, nil},
		network("receive_bytes", "Cumulative count of bytes received.", func(d netDev) uint64 { return d.rxBytes }),
		network("receive_packets", "Cumulative count of packets received.", func(d netDev) uint64 { return d.rxPackets }),
		network("receive_errors", "Cumulative count of errors encountered while receiving.", func(d netDev) uint64 { return d.rxErrors }),
		network("receive_packets_dropped", "Cumulative count of packets dropped while receiving.", func(d netDev) uint64 { return d.rxDrops }),
		network("transmit_bytes", "Cumulative count of bytes transmitted.", func(d netDev) uint64 { return d.txBytes }),
		network("transmit_packets", "Cumulative count of packets transmitted.", func(d netDev) uint64 { return d.txPackets }),
		network("transmit_errors", "Cumulative count of errors encountered while transmitting.", func(d netDev) uint64 { return d.txErrors }),
		network("transmit_packets_dropped", "Cumulative count of packets dropped while transmitting.", func(d netDev) uint64 { return d.txDrops }),
	}
}

// ListMetricDescriptors describes what ListPodSandboxMetrics gives.
func (s *runtimeService) ListMetricDescriptors(context.Context, *criv1.ListMetricDescriptorsRequest) (*criv1.ListMetricDescriptorsResponse, error) {
	out := &criv1.ListMetricDescriptorsResponse{}
	for _, m := range metrics() {
		out.Descriptors = append(out.Descriptors, &criv1.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(baseLabels(), m.labels...)})
	}
	return out, nil
}

// ListPodSandboxMetrics reads all metrics of all pods.
func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context, _ *criv1.ListPodSandboxMetricsRequest) (*criv1.ListPodSandboxMetricsResponse, error) {
	all, err := s.podMetrics(ctx)
	return &criv1.ListPodSandboxMetricsResponse{PodMetrics: all}, err
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in parts.
func (s *runtimeService) StreamPodSandboxMetrics(_ *criv1.StreamPodSandboxMetricsRequest, out criv1.RuntimeService_StreamPodSandboxMetricsServer) error {
	all, err := s.podMetrics(out.Context())
	if err != nil {
		return err
	}
	return inParts(all, func(part []*criv1.PodSandboxMetrics) error {
		return out.Send(&criv1.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}

func (s *runtimeService) podMetrics(ctx context.Context) ([]*criv1.PodSandboxMetrics, error) {
	containers := s.visibleContainers("", "", nil)
	readings, err := s.readings(ctx, containers)
	if err != nil {
		return nil, err
	}
	table := metrics()
	var out []*criv1.PodSandboxMetrics
	for _, p := range s.visible() {
		if !p.Ready {
			continue
		}
		pm := &criv1.PodSandboxMetrics{PodSandboxId: p.ID, Metrics: networkMetrics(table, &p)}
		for i := range containers {
			c := &containers[i]
			if st := readings[c.ID]; c.PodID == p.ID && st != nil {
				pm.ContainerMetrics = append(pm.ContainerMetrics, &criv1.ContainerMetrics{ContainerId: c.ID, Metrics: containerMetrics(table, &p, c, st)})
			}
		}
		out = append(out, pm)
	}
	return out, nil
}

func containerMetrics(table []metric, p *pod.Pod, c *pod.Container, st *runtime.Stats) []*criv1.Metric {
	base := []string{c.Config.Name, c.ID, imageSpec(c).Image, c.Config.Name, p.Config.Namespace, p.Config.Name}
	var out []*criv1.Metric
	for _, m := range table {
		if m.container == nil {
			continue
		}
		for _, v := range m.container(c, st) {
			out = append(out, &criv1.Metric{
				Name: m.name, MetricType: m.kind, Timestamp: st.Time.UnixNano(), LabelValues: append(base[:len(base):len(base)], v.labels...), Value: u64(v.value),
			})
		}
	}
	return out
}

func networkMetrics(table []metric, p *pod.Pod) []*criv1.Metric {
	devs := podDevs(p)
	var out []*criv1.Metric
	for _, m := range table {
		if m.network == nil {
			continue
		}
		for _, d := range devs {
			out = append(out, &criv1.Metric{
				Name: m.name, MetricType: m.kind, LabelValues: []string{"", p.ID, "", "", p.Config.Namespace, p.Config.Name, d.name}, Value: u64(m.network(d)),
			})
		}
	}
	return out
}
