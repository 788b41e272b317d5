package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/internal/unixsocket"
	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/network/dns"
	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/reconcile"
	"github.com/pausa-run/pausa/runtime"
)

// meters are the daemon's own figures, for Prometheus. Every label has few
// values that are known beforehand: no pod, image or address is among them.
type meters struct {
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
	pulls    *prometheus.HistogramVec
	network  *prometheus.HistogramVec
	services *prometheus.HistogramVec
	dns      *prometheus.CounterVec
	heals    *prometheus.CounterVec
	keepers  prometheus.Counter
}

func newMeters() *meters {
	m := &meters{registry: prometheus.NewRegistry()}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(h)
		return h
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	m.calls = histogram("pausa_call_duration_seconds", "Time that calls on the socket took, by method and gRPC code. Streams are counted when they end.",
		prometheus.ExponentialBuckets(0.0005, 2.5, 14), "method", "code")
	m.pulls = histogram("pausa_image_pull_duration_seconds", "Time that image pulls took.", prometheus.ExponentialBuckets(0.1, 2.5, 9), "result")
	m.network = histogram("pausa_network_duration_seconds", "Time that attaching pods to the network, and detaching them, took.",
		prometheus.ExponentialBuckets(0.001, 2.5, 12), "operation", "result")
	m.services = histogram("pausa_service_write_duration_seconds", "Time that writing Services into the kernel took: changes of some, or all of them.",
		prometheus.ExponentialBuckets(0.0005, 2.5, 12), "operation", "result")
	m.dns = counter("pausa_dns_answers_total", "Answers to questions of DNS, by where they came from (cluster, cache, upstream, none) and their code.", "source", "code")
	m.heals = counter("pausa_network_heals_total", "Times that links (with addresses, routes and settings) or rules were made again after somebody had changed them, by what came of it.", "what", "result")
	m.keepers = counter("pausa_keeper_restarts_total", "Keepers that were started because the one before had gone.").WithLabelValues()
	for _, what := range []string{healLinks, healRules} { // an increase is seen from the first time on
		m.heals.WithLabelValues(what, "ok")
		m.heals.WithLabelValues(what, "error")
	}
	for _, from := range []dns.Source{dns.FromCluster, dns.FromCache, dns.FromUpstream} {
		m.dns.WithLabelValues(string(from), "NOERROR")
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "pausa_build_info", Help: "Always 1.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	m.registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// call counts one call on the socket.
func (m *meters) call(method string, code codes.Code, took time.Duration) {
	m.calls.WithLabelValues(method, code.String()).Observe(took.Seconds())
}

// outcome is the label of what came to nothing, or did not.
func outcome(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

// pull measures pulls.
func (m *meters) pull(pull func() (images.Image, error)) (images.Image, error) {
	began := time.Now()
	img, err := pull()
	m.pulls.WithLabelValues(outcome(err)).Observe(time.Since(began).Seconds())
	return img, err
}

// relaunch counts keepers that take another one's place.
func (m *meters) relaunch(launch func(context.Context) (pod.Runtime, error)) func(context.Context) (pod.Runtime, error) {
	return func(ctx context.Context) (pod.Runtime, error) {
		rt, err := launch(ctx)
		if err == nil {
			m.keepers.Inc()
		}
		return rt, err
	}
}

// meteredNetwork measures what is done to pods' networks.
type meteredNetwork struct {
	pod.Network
	meters *meters
}

func (n meteredNetwork) Attach(ctx context.Context, p network.Pod) (network.Result, error) {
	began := time.Now()
	res, err := n.Network.Attach(ctx, p)
	n.meters.network.WithLabelValues("attach", outcome(err)).Observe(time.Since(began).Seconds())
	return res, err
}

func (n meteredNetwork) Detach(ctx context.Context, id string) error {
	began := time.Now()
	err := n.Network.Detach(ctx, id)
	n.meters.network.WithLabelValues("detach", outcome(err)).Observe(time.Since(began).Seconds())
	return err
}

// answered counts answers of DNS.
func (m *meters) answered(from dns.Source, code string) {
	m.dns.WithLabelValues(string(from), code).Inc()
}

// healed counts damages of the network that were looked after.
func (m *meters) healed(what string, err error) { m.heals.WithLabelValues(what, outcome(err)).Inc() }

// meteredServices measures what is written of Services.
type meteredServices struct {
	reconcile.ServiceTable
	meters *meters
}

func (s meteredServices) measure(operation string, write func() error) error {
	began := time.Now()
	err := write()
	s.meters.services.WithLabelValues(operation, outcome(err)).Observe(time.Since(began).Seconds())
	return err
}

func (s meteredServices) Sync(ctx context.Context, desired []service.Service) error {
	return s.measure("all", func() error { return s.ServiceTable.Sync(ctx, desired) })
}

func (s meteredServices) Update(ctx context.Context, set []service.Service, gone []service.ID) error {
	return s.measure("change", func() error { return s.ServiceTable.Update(ctx, set, gone) })
}

// census counts what is there when it is asked.
type census struct {
	pods     *pod.Manager
	services func() (map[string]int, error)

	podsDesc, containersDesc, problemsDesc, servicesDesc *prometheus.Desc
}

// count registers gauges of what there is.
func (m *meters) count(pods *pod.Manager, services func() (map[string]int, error)) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	m.registry.MustRegister(&census{
		pods, services,
		desc("pausa_pods", "Pods, by who made them and whether they are ready.", "origin", "state"),
		desc("pausa_containers", "Containers, by who made their pods and what became of them.", "origin", "state"),
		desc("pausa_pods_with_problems", "Pods that could not be removed whole; it is tried again."),
		desc("pausa_service_elements", "Entries of the tables of Services in the kernel.", "kind"),
	})
}

// Describe is prometheus.Collector's.
func (c *census) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.podsDesc, c.containersDesc, c.problemsDesc, c.servicesDesc} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (c *census) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	origin := map[string]string{} // of pods by id
	pods := map[[2]string]int{}
	containers := map[[2]string]int{}
	for _, o := range []string{"cri", "declared"} {
		pods[[2]string{o, "ready"}], pods[[2]string{o, "notready"}] = 0, 0
		for _, s := range []runtime.Status{runtime.Created, runtime.Running, runtime.Exited} {
			containers[[2]string{o, string(s)}] = 0
		}
	}
	problems := 0
	for _, p := range c.pods.Pods() {
		origin[p.ID] = "cri"
		if p.Config.Declared {
			origin[p.ID] = "declared"
		}
		state := "notready"
		if p.Ready {
			state = "ready"
		}
		pods[[2]string{origin[p.ID], state}]++
		if p.Problem != "" {
			problems++
		}
	}
	for _, ctr := range c.pods.Containers() {
		if o, ok := origin[ctr.PodID]; ok {
			containers[[2]string{o, string(ctr.Status)}]++
		}
	}
	for k, n := range pods {
		gauge(c.podsDesc, n, k[0], k[1])
	}
	for k, n := range containers {
		gauge(c.containersDesc, n, k[0], k[1])
	}
	gauge(c.problemsDesc, problems)
	if counts, err := c.services(); err == nil {
		for kind, n := range counts {
			gauge(c.servicesDesc, n, kind)
		}
	}
}

// serve answers for /metrics at an address of the settings until ctx ends.
func (m *meters) serve(ctx context.Context, address string, log *slog.Logger) error {
	l, err := listenAt(address)
	if err != nil {
		return fmt.Errorf("listen for metrics (setting metrics.address): %w", err)
	}
	if socket, ok := l.(*unixsocket.Listener); ok {
		defer socket.Remove()
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	log.Info("serving metrics", "address", address)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// listenAt listens at unix://PATH or ADDRESS:PORT.
func listenAt(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		return unixsocket.Listen(path)
	}
	return net.Listen("tcp", address)
}
