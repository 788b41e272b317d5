package cri

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// metric is one figure under the name and labels that cAdvisor gives it.
type metric struct {
	name, help string
	kind       criv1.MetricType
	labels     []string // more than the base labels
	// One of these is set. container has a line for each set of more labels.
	container func(r *reading) []sample
	network   func(d netDev) uint64
}

// reading is all that is known of one running container at one moment. The API
// has whole numbers alone: seconds are cut.
type reading struct {
	c    *pod.Container
	st   *runtime.Stats
	d    *runtime.Details
	disk images.Usage
}

type sample struct {
	labels []string
	value  uint64
}

// baseLabels come first at every metric, as a kubelet's own have them.
func baseLabels() []string { return []string{"container", "id", "image", "name", "namespace", "pod"} }

const (
	counter = criv1.MetricType_COUNTER
	gauge   = criv1.MetricType_GAUGE
)

// figure is a metric of one number without more labels.
func figure(name, help string, kind criv1.MetricType, f func(*reading) uint64) metric {
	return metric{name: "container_" + name, help: help, kind: kind, container: func(r *reading) []sample { return []sample{{value: f(r)}} }}
}

// metrics are those of cAdvisor that a kubelet serves at /metrics/cadvisor, as far
// as they are of containers and pods.
// Those that cAdvisor knows and no kernel of today counts for a cgroup, of single disks
// (sectors, merges, times, io_cost), are not among them.
func metrics() []metric {
	return slices.Concat(cpuMetrics(), memoryMetrics(), pressureMetrics(), diskMetrics(), processMetrics(), specMetrics(), networkFigures())
}

func cpuMetrics() []metric {
	return []metric{
		{
			name: "container_cpu_usage_seconds_total", help: "Cumulative cpu time consumed in seconds.", kind: counter, labels: []string{"cpu"},
			container: func(r *reading) []sample { return []sample{{[]string{"total"}, r.st.CPUNanos / 1e9}} },
		},
		figure("cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", counter, func(r *reading) uint64 { return r.d.CPUUserNanos / 1e9 }),
		figure("cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", counter, func(r *reading) uint64 { return r.d.CPUSystemNanos / 1e9 }),
		figure("cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", counter, func(r *reading) uint64 { return r.d.CPUPeriods }),
		figure("cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", counter, func(r *reading) uint64 { return r.d.CPUThrottledPeriods }),
		figure("cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", counter, func(r *reading) uint64 { return r.d.CPUThrottledNanos / 1e9 }),
		figure("cpu_cfs_burst_periods_total", "Number of periods when burst occurs.", counter, func(r *reading) uint64 { return r.d.CPUBurstPeriods }),
		figure("cpu_cfs_burst_seconds_total", "Total time duration the container has been bursted.", counter, func(r *reading) uint64 { return r.d.CPUBurstNanos / 1e9 }),
	}
}

func memoryMetrics() []metric {
	return []metric{
		figure("memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", gauge, func(r *reading) uint64 { return r.st.MemoryUsage }),
		figure("memory_working_set_bytes", "Current working set in bytes.", gauge, func(r *reading) uint64 { return r.st.MemoryWorkingSet }),
		figure("memory_rss", "Size of RSS in bytes.", gauge, func(r *reading) uint64 { return r.st.MemoryRSS }),
		figure("memory_cache", "Number of bytes of page cache memory.", gauge, func(r *reading) uint64 { return r.d.MemoryCache }),
		figure("memory_mapped_file", "Size of memory mapped files in bytes.", gauge, func(r *reading) uint64 { return r.d.MemoryMapped }),
		figure("memory_total_active_file_bytes", "Current total active file in bytes.", gauge, func(r *reading) uint64 { return r.d.MemoryActiveFile }),
		figure("memory_total_inactive_file_bytes", "Current total inactive file in bytes.", gauge, func(r *reading) uint64 { return r.d.MemoryInactiveFile }),
		figure("memory_file_dirty_bytes", "Number of bytes of file cache that has been modified but not yet written back to disk.", gauge, func(r *reading) uint64 { return r.d.MemoryDirty }),
		figure("memory_file_writeback_bytes", "Number of bytes of file cache that is currently being written back to disk.", gauge, func(r *reading) uint64 { return r.d.MemoryWriteback }),
		figure("memory_pgscan_total", "Cumulative number of pages scanned by the page reclaim algorithm.", counter, func(r *reading) uint64 { return r.d.PagesScanned }),
		figure("memory_pgsteal_total", "Cumulative number of pages reclaimed by the page reclaim algorithm.", counter, func(r *reading) uint64 { return r.d.PagesStolen }),
		figure("memory_workingset_refault_file_total", "Cumulative number of refaults of previously evicted file pages.", counter, func(r *reading) uint64 { return r.d.FileRefaults }),
		figure("memory_workingset_refault_anon_total", "Cumulative number of refaults of previously evicted anonymous pages.", counter, func(r *reading) uint64 { return r.d.AnonRefaults }),
		figure("memory_kernel_usage", "Size of kernel memory allocated in bytes.", gauge, func(r *reading) uint64 { return r.d.MemoryKernel }),
		figure("memory_swap", "Container swap usage in bytes.", gauge, func(r *reading) uint64 { return r.st.SwapUsage }),
		figure("memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", gauge, func(r *reading) uint64 { return r.d.MemoryPeak }),
		figure("memory_failcnt", "Number of memory usage hits limits.", counter, func(r *reading) uint64 { return r.d.MemoryFailures }),
		figure("memory_events_max_total", "Cumulative count of memory.max limit hit events for the container.", counter, func(r *reading) uint64 { return r.d.MemoryFailures }),
		figure("memory_events_high_total", "Cumulative count of memory.high throttle events for the container.", counter, func(r *reading) uint64 { return r.d.MemoryHighEvents }),
		figure("oom_events_total", "Count of out of memory events observed for the container.", counter, func(r *reading) uint64 { return r.d.OOMKills }),
		{
			name: "container_memory_failures_total", help: "Cumulative count of memory allocation failures.", kind: counter, labels: []string{"failure_type", "scope"},
			container: func(r *reading) []sample {
				var out []sample
				for _, scope := range []string{"container", "hierarchy"} {
					out = append(out, sample{[]string{"pgfault", scope}, r.st.PageFaults}, sample{[]string{"pgmajfault", scope}, r.st.MajorPageFaults})
				}
				return out
			},
		},
	}
}

// pressureMetrics have no samples where the kernel does not tell of pressure.
func pressureMetrics() []metric {
	var out []metric
	for _, of := range []struct {
		name, what string
		of         func(*runtime.Stats) *runtime.Pressure
	}{
		{"cpu", "CPU", func(st *runtime.Stats) *runtime.Pressure { return st.CPUPressure }},
		{"memory", "memory", func(st *runtime.Stats) *runtime.Pressure { return st.MemoryPressure }},
		{"io", "IO", func(st *runtime.Stats) *runtime.Pressure { return st.IOPressure }},
	} {
		seconds := func(waited func(*runtime.Pressure) runtime.Waited) func(*reading) []sample {
			return func(r *reading) []sample {
				p := of.of(r.st)
				if p == nil {
					return nil
				}
				return []sample{{value: waited(p).TotalNanos / 1e9}}
			}
		}
		out = append(out, metric{
			name: "container_pressure_" + of.name + "_stalled_seconds_total", help: "Total time duration no tasks in the container could make progress due to " + of.what + " congestion.",
			kind: counter, container: seconds(func(p *runtime.Pressure) runtime.Waited { return p.Full }),
		}, metric{
			name: "container_pressure_" + of.name + "_waiting_seconds_total", help: "Total time duration tasks in the container have waited due to " + of.what + " congestion.",
			kind: counter, container: seconds(func(p *runtime.Pressure) runtime.Waited { return p.Some }),
		})
	}
	return out
}

func diskMetrics() []metric {
	io := func(name, help string, f func(*runtime.DeviceIO) uint64) metric {
		return metric{name: "container_fs_" + name + "_total", help: help, kind: counter, labels: []string{"device"}, container: func(r *reading) []sample {
			var out []sample
			for i := range r.d.IO {
				out = append(out, sample{[]string{deviceName(r.d.IO[i].Device)}, f(&r.d.IO[i])})
			}
			return out
		}}
	}
	disk := func(name, help string, f func(images.Usage) uint64) metric {
		return metric{name: "container_fs_" + name, help: help, kind: gauge, labels: []string{"device"}, container: func(r *reading) []sample {
			return []sample{{[]string{""}, f(r.disk)}}
		}}
	}
	room := func(name, help string, f func(*unix.Statfs_t) uint64) metric {
		return metric{name: "container_fs_" + name, help: help, kind: gauge, labels: []string{"device"}, container: func(r *reading) []sample {
			var fs unix.Statfs_t
			if r.disk.Path == "" || unix.Statfs(r.disk.Path, &fs) != nil {
				return nil
			}
			return []sample{{[]string{""}, f(&fs)}}
		}}
	}
	return []metric{
		room("limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", func(fs *unix.Statfs_t) uint64 { return fs.Blocks * uint64(fs.Bsize) }),
		room("inodes_total", "Number of Inodes", func(fs *unix.Statfs_t) uint64 { return fs.Files }),
		room("inodes_free", "Number of available Inodes", func(fs *unix.Statfs_t) uint64 { return fs.Ffree }),
		disk("usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", func(u images.Usage) uint64 { return u.Bytes }),
		io("reads_bytes", "Cumulative count of bytes read.", func(io *runtime.DeviceIO) uint64 { return io.ReadBytes }),
		io("reads", "Cumulative count of reads completed.", func(io *runtime.DeviceIO) uint64 { return io.Reads }),
		io("writes_bytes", "Cumulative count of bytes written.", func(io *runtime.DeviceIO) uint64 { return io.WriteBytes }),
		io("writes", "Cumulative count of writes completed.", func(io *runtime.DeviceIO) uint64 { return io.Writes }),
		{
			name: "container_blkio_device_usage_total", help: "Blkio Device bytes usage.", kind: counter, labels: []string{"device", "major", "minor", "operation"},
			container: func(r *reading) []sample {
				var out []sample
				for i := range r.d.IO {
					major, minor, _ := strings.Cut(r.d.IO[i].Device, ":")
					name := deviceName(r.d.IO[i].Device)
					out = append(out, sample{[]string{name, major, minor, "Read"}, r.d.IO[i].ReadBytes}, sample{[]string{name, major, minor, "Write"}, r.d.IO[i].WriteBytes})
				}
				return out
			},
		},
	}
}

// deviceName is the path of a block device that the kernel calls MAJOR:MINOR; "" when it has gone.
func deviceName(number string) string {
	to, err := os.Readlink("/sys/dev/block/" + number)
	if err != nil {
		return ""
	}
	return "/dev/" + filepath.Base(to)
}

func processMetrics() []metric {
	return []metric{
		figure("last_seen", "Last time a container was seen by the exporter.", gauge, func(r *reading) uint64 { return uint64(max(0, r.st.Time.Unix())) }),
		figure("start_time_seconds", "Start time of the container since unix epoch in seconds.", gauge, func(r *reading) uint64 { return uint64(max(0, r.c.StartedAt.Unix())) }),
		figure("creation_time_seconds", "Container creation time since unix epoch in seconds.", gauge, func(r *reading) uint64 { return uint64(max(0, r.c.CreatedAt.Unix())) }),
		figure("processes", "Number of processes running inside the container.", gauge, func(r *reading) uint64 { return r.d.Processes }),
		figure("threads", "Number of threads running inside the container.", gauge, func(r *reading) uint64 { return r.d.Threads }),
		figure("threads_max", "Maximum number of threads allowed inside the container, infinity if value is zero.", gauge, func(r *reading) uint64 { return r.d.PidsLimit }),
		figure("file_descriptors", "Number of open file descriptors for the container.", gauge, func(r *reading) uint64 { return r.d.OpenFiles }),
		figure("sockets", "Number of open sockets for the container.", gauge, func(r *reading) uint64 { return r.d.Sockets }),
		{
			name: "container_ulimits_soft", help: "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice.", kind: gauge, labels: []string{"ulimit"},
			container: func(r *reading) []sample { return []sample{{[]string{"max_open_files"}, r.d.MaxOpenFiles}} },
		},
	}
}

func specMetrics() []metric {
	asked := func(name, help string, f func(*runtime.Resources) int64) metric {
		return figure("spec_"+name, help, gauge, func(r *reading) uint64 { return uint64(max(0, f(&r.c.Config.Resources))) })
	}
	return []metric{
		asked("cpu_period", "CPU period of the container.", func(r *runtime.Resources) int64 { return int64(orElse(r.CPUPeriod, 100_000)) }),
		asked("cpu_quota", "CPU quota of the container, 0 for none.", func(r *runtime.Resources) int64 { return r.CPUQuota }),
		asked("cpu_shares", "CPU share of the container.", func(r *runtime.Resources) int64 { return int64(orElse(r.CPUShares, 1024)) }),
		figure("spec_memory_limit_bytes", "Memory limit for the container, 0 for none.", gauge, func(r *reading) uint64 { return r.st.MemoryLimit }),
		asked("memory_swap_limit_bytes", "Memory swap limit for the container.", func(r *runtime.Resources) int64 { return r.MemorySwap }),
		asked("memory_reservation_limit_bytes", "Memory reservation limit for the container.", func(*runtime.Resources) int64 { return 0 }),
	}
}

func orElse(v, standard uint64) uint64 {
	if v == 0 {
		return standard
	}
	return v
}

func networkFigures() []metric {
	network := func(name, help string, f func(netDev) uint64) metric {
		return metric{"container_network_" + name + "_total", help, counter, []string{"interface"}, nil, f}
	}
	return []metric{
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
	readings, err := s.readings(ctx, s.o.Pods.DetailedStats, containers)
	if err != nil {
		return nil, err
	}
	table := metrics()
	var out []*criv1.PodSandboxMetrics
	for _, p := range s.visible() {
		if !p.Ready {
			continue
		}
		pm := &criv1.PodSandboxMetrics{PodSandboxId: p.ID, Metrics: networkMetrics(table, p)}
		for _, c := range containers {
			st := readings[c.ID]
			if c.PodID != p.ID || st == nil || st.Details == nil {
				continue
			}
			disk, _ := s.usage.disk(ctx, c.ID)
			r := &reading{c, st, st.Details, disk}
			pm.ContainerMetrics = append(pm.ContainerMetrics, &criv1.ContainerMetrics{ContainerId: c.ID, Metrics: containerMetrics(table, p, r)})
		}
		out = append(out, pm)
	}
	return out, nil
}

// containerMetrics have no timestamp: they are read now.
func containerMetrics(table []metric, p *pod.Pod, r *reading) []*criv1.Metric {
	c := r.c
	base := []string{c.Config.Name, c.ID, imageSpec(c).Image, c.Config.Name, p.Config.Namespace, p.Config.Name}
	var out []*criv1.Metric
	for _, m := range table {
		if m.container == nil {
			continue
		}
		for _, v := range m.container(r) {
			out = append(out, &criv1.Metric{
				Name: m.name, MetricType: m.kind, LabelValues: append(base[:len(base):len(base)], v.labels...), Value: u64(v.value),
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
