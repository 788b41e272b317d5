package reconcile

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod/manifest"
)

const balanced = `
apiVersion: v1
kind: Service
metadata: {name: one}
spec:
  type: LoadBalancer
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 90}}
  externalTrafficPolicy: Local
  selector: {app: one}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec: {type: LoadBalancer, sessionAffinity: ClientIP, selector: {app: two}, ports: [{port: 81}]}
`

// written is what the table got of a Service.
func (w *world) written(name string) (found service.Service) {
	w.t.Helper()
	w.until("service "+name+" is written", func() bool {
		w.table.mu.Lock()
		defer w.table.mu.Unlock()
		i := slices.IndexFunc(w.table.now, func(s service.Service) bool { return s.Name == name })
		if i >= 0 {
			found = w.table.now[i]
		}
		return i >= 0
	})
	return found
}

func (w *world) ingress(name string) []corev1.LoadBalancerIngress {
	w.t.Helper()
	list, err := w.e.Get(manifest.KindService, "default", name, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return list[0].Value().(*corev1.Service).Status.LoadBalancer.Ingress
}

func TestLoadBalancerOnTheHostsAddresses(t *testing.T) {
	w := newWorld(t)
	w.apply(balanced)
	one := w.written("one")
	if len(one.BalancerIPs) != 1 || one.BalancerIPs[0].String() != "192.0.2.1" || one.Affinity != 90*time.Second {
		t.Errorf("written: %+v", one)
	}
	if got := w.written("two").Affinity; got != 3*time.Hour {
		t.Errorf("default affinity is %v", got)
	}
	if in := w.ingress("one"); len(in) != 1 || in[0].IP != "192.0.2.1" {
		t.Errorf("status: %+v", in)
	}
}

func TestLoadBalancerRanges(t *testing.T) {
	w := newWorldWith(t, func(o *Options) {
		o.Balancers = service.NewAllocator([]netip.Prefix{netip.MustParsePrefix("203.0.113.0/29")}, 0, 0)
	})
	w.apply(balanced)
	a, b := w.written("one").BalancerIPs, w.written("two").BalancerIPs
	pool := netip.MustParsePrefix("203.0.113.0/29")
	if len(a) != 1 || len(b) != 1 || a[0] == b[0] || !pool.Contains(a[0]) || !pool.Contains(b[0]) {
		t.Fatalf("addresses %v and %v", a, b)
	}
	w.stop()
	w.start()
	if r := w.apply(balanced); r[0].Outcome != Unchanged {
		t.Errorf("applied again after a restart: %+v", r[0])
	}
	if in := w.ingress("one"); len(in) != 1 || in[0].IP != a[0].String() {
		t.Errorf("after a restart: %+v, had %v", in, a)
	}
	// What is stored is nobody else's.
	if err := w.e.opts.Balancers.ReserveClusterIP("default/other", a[0]); err == nil {
		t.Errorf("%s was given away", a[0])
	}
}
