package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pausa-run/pausa/internal/loopback"
)

// healthPorts answers on the health check node ports of Services as kube-proxy
// does: 200 while this host has ready endpoints, else 503. The Table's lock guards
// it.
type healthPorts struct {
	open map[ID]*healthPort
	wg   sync.WaitGroup
}

type healthPort struct {
	port      uint16
	endpoints atomic.Int64
	server    *http.Server
}

func newHealthPorts() *healthPorts { return &healthPorts{open: map[ID]*healthPort{}} }

// follow opens, updates and closes ports. A port that cannot be had is tried
// again with the next change.
func (h *healthPorts) follow(s *state) error {
	if len(h.open)+len(s.healthy) == 0 {
		return nil
	}
	var errs []error
	for id, p := range h.open {
		if r := s.healthy[id]; r == nil || r.service.HealthPort != p.port {
			errs = append(errs, p.server.Close())
			delete(h.open, id)
		}
	}
	for id, r := range s.healthy {
		if h.open[id] == nil {
			if err := h.listen(id, r.service.HealthPort); err != nil {
				errs = append(errs, fmt.Errorf("health check node port %d of service %s: %w", r.service.HealthPort, id, err))
				continue
			}
		}
		h.open[id].endpoints.Store(int64(r.service.LocalEndpoints))
	}
	return errors.Join(errs...)
}

func (h *healthPorts) listen(id ID, port uint16) error {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("taken by %s: %w", loopback.Holder("tcp", port), err)
		}
		return err
	}
	p := &healthPort{port: port}
	p.server = &http.Server{
		ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: 8 << 10,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { p.answer(w, id) }),
	}
	h.open[id] = p
	h.wg.Go(func() { _ = p.server.Serve(ln) }) // it ends with Close
	return nil
}

func (p *healthPort) answer(w http.ResponseWriter, id ID) {
	n := p.endpoints.Load()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if n == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"service":             map[string]string{"namespace": id.Namespace, "name": id.Name},
		"localEndpoints":      n,
		"serviceProxyHealthy": true,
	})
}

func (h *healthPorts) close() error {
	var errs []error
	for id, p := range h.open {
		errs = append(errs, p.server.Close())
		delete(h.open, id)
	}
	h.wg.Wait()
	return errors.Join(errs...)
}
