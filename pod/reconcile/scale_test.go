package reconcile

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/network/dns"
	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod/manifest"
)

// anew works everything out of what is declared and runs, as a new engine would.
func (w *world) anew() (services []service.Service, names dns.Records) {
	e := &Engine{opts: w.e.opts, log: w.e.log, clock: w.e.clock, pods: w.e.pods, objects: w.e.objects, notes: w.e.notes, volumes: w.e.volumes, probes: w.e.probes, fronts: newFronts()}
	e.refresh()
	return e.allServices(), e.records()
}

// sameAsAnew compares what the table and DNS were told, bit by bit, with all of it
// worked out at once.
func (w *world) sameAsAnew(n *names) string {
	services, records := w.anew()
	w.table.mu.Lock()
	table := slices.Clone(w.table.now)
	w.table.mu.Unlock()
	n.mu.Lock()
	told := dns.Records{Services: slices.Clone(n.now.Services), Pods: slices.Clone(n.now.Pods)}
	n.mu.Unlock()
	slices.SortFunc(table, func(a, b service.Service) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	slices.SortFunc(services, func(a, b service.Service) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	if !slices.EqualFunc(table, services, service.Service.Equal) {
		return fmt.Sprintf("the table has\n%+v\nwant\n%+v", table, services)
	}
	for _, r := range []*dns.Records{&told, &records} {
		slices.SortFunc(r.Services, func(a, b dns.Service) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
		slices.SortFunc(r.Pods, func(a, b dns.Pod) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	}
	if !slices.EqualFunc(told.Services, records.Services, func(a, b dns.Service) bool { return reflect.DeepEqual(a, b) }) ||
		!slices.EqualFunc(told.Pods, records.Pods, func(a, b dns.Pod) bool { return reflect.DeepEqual(a, b) }) {
		return fmt.Sprintf("DNS has\n%+v\nwant\n%+v", told, records)
	}
	return ""
}

// randomObject is a Service, endpoints or a pod of few names.
func randomObject(r *rand.Rand) string {
	ns := []string{"default", "shop", "kube-system"}[r.IntN(3)]
	name := []string{"a", "b", "c", "kube-dns"}[r.IntN(4)]
	app := fmt.Sprint("x", r.IntN(3))
	switch r.IntN(5) {
	case 0:
		spec := []string{
			"{selector: {app: %s}, ports: [{port: 80}]}", "{selector: {app: %s}, clusterIP: None, ports: [{port: 80}]}",
			"{selector: {app: %s, tier: t}, ports: [{name: u, port: 53, protocol: UDP}]}", "{type: ExternalName, externalName: %s.example.org}",
			"{ports: [{port: 80, name: %s}]}", "{type: LoadBalancer, selector: {app: %s}, ports: [{port: 81}], publishNotReadyAddresses: true}",
		}[r.IntN(6)]
		return fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: %s}, spec: "+spec+"}", name, ns, app)
	case 1:
		return fmt.Sprintf("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: %s, namespace: %s, labels: {kubernetes.io/service-name: %s}}, addressType: IPv4, ports: [{port: 80, name: %q}], endpoints: [{addresses: [10.200.0.%d]}]}",
			name, ns, []string{"a", "b", "c"}[r.IntN(3)], []string{"", app}[r.IntN(2)], 1+r.IntN(9))
	case 2:
		return fmt.Sprintf("{apiVersion: v1, kind: Endpoints, metadata: {name: %s, namespace: %s}, subsets: [{addresses: [{ip: 10.201.0.%d}], ports: [{port: 80}]}]}", name, ns, 1+r.IntN(9))
	}
	tier := []string{"t", "u"}[r.IntN(2)]
	return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: p%d, namespace: %s, labels: {app: %s, tier: %s}}, spec: {hostname: h, subdomain: a, restartPolicy: %s, terminationGracePeriodSeconds: 0, containers: [{name: c, image: i}]}}",
		r.IntN(4), ns, app, tier, []string{"Always", "Never"}[r.IntN(2)])
}

// randomStep changes what is declared, or what runs. What is refused is no change.
func (w *world) randomStep(r *rand.Rand) {
	ctx := context.Background()
	switch r.IntN(6) {
	case 0, 1, 2:
		_, _ = w.e.Apply(ctx, w.decode(randomObject(r)), false)
	case 3, 4:
		kind := []string{manifest.KindService, manifest.KindPod, manifest.KindEndpointSlice, manifest.KindEndpoints}[r.IntN(4)]
		if all := w.e.objects.list(kind, ""); len(all) > 0 {
			o := all[r.IntN(len(all))]
			_, _ = w.e.Delete(ctx, DeleteOptions{Kind: kind, Namespace: o.Namespace(), Name: o.Name()})
		}
	default:
		w.pods.mu.Lock()
		for _, c := range w.pods.ctrs {
			w.pods.exit(c, r.IntN(2))
			break
		}
		w.pods.mu.Unlock()
	}
}

// TestChangesAreAsWorkedOutAnew: whatever happens, in whatever order, the table and
// DNS have what they would have if all was worked out from nothing.
func TestChangesAreAsWorkedOutAnew(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w, n := newNamedWorld(t)
			w.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}")
			r := rand.New(rand.NewPCG(seed, 7))
			for step := range 60 {
				for range 1 + r.IntN(4) {
					w.randomStep(r)
				}
				wrong := ""
				w.until(fmt.Sprintf("step %d is through", step), func() bool {
					wrong = w.sameAsAnew(n)
					return wrong == ""
				})
			}
			w.quiet()
			if wrong := w.sameAsAnew(n); wrong != "" {
				t.Error(wrong)
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.updates == 0 {
				t.Error("DNS was never told of a single change")
			}
		})
	}
}

// noTable costs nothing.
type noTable struct{ done chan int }

func (t noTable) Sync(context.Context, []service.Service) error { return nil }
func (t noTable) Update(_ context.Context, set []service.Service, gone []service.ID) error {
	t.done <- len(set) + len(gone)
	return nil
}
func (t noTable) Resync(context.Context) error        { return nil }
func (t noTable) Watch(context.Context) <-chan string { return nil }

func manyServices(from, to, variant int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Service, metadata: {name: s%d, namespace: default}, spec: {ports: [{port: 80}]}}\n---\n"+
			"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s%[1]d, namespace: default, labels: {kubernetes.io/service-name: s%[1]d}}, addressType: IPv4, ports: [{port: 8080}], "+
			"endpoints: [{addresses: [10.1.%d.%d]}, {addresses: [10.2.%[2]d.%[3]d]}, {addresses: [10.3.%[2]d.%[3]d]}, {addresses: [10.4.%[4]d.%[3]d]}]}\n", i, i>>8, i&255, variant%200)
	}
	return b.String()
}

// newMany is a world with n Services with four endpoints each.
func newMany(b *testing.B, n int) (*world, chan int) {
	done := make(chan int, 100)
	w := &world{t: b, state: b.TempDir(), run: b.TempDir(), clock: newFakeClock(), table: &fakeTable{}}
	w.pods = newFakePods(w.clock)
	w.change = func(o *Options) {
		o.Services = noTable{done}
		o.Alloc = service.NewAllocator([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, 30000, 32767)
		o.DNS = &ClusterDNS{Domain: "cluster.local", Set: func(dns.Records) {}, Update: func(dns.Change) {}}
	}
	w.start()
	b.Cleanup(func() { w.stop() })
	w.load(0, n, done)
	return w, done
}

func (w *world) load(from, to int, done chan int) {
	for ; from < to; from += 1000 {
		w.apply(manyServices(from, min(from+1000, to), 0))
		for told := from; told < min(from+1000, to); {
			told += <-done
		}
	}
}

func BenchmarkChangeOneEndpoint(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w, done := newMany(b, n)
			for i := 1; b.Loop(); i++ {
				w.apply(manyServices(n/2, n/2+1, i))
				<-done
			}
		})
	}
}

func BenchmarkLoad10000(b *testing.B) {
	for b.Loop() {
		newMany(b, 10000)
	}
}
