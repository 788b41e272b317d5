package reconcile

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/pausa-run/pausa/network/dns"
	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod/manifest"
)

// fronts is what was worked out of each Service, and which must be worked out
// again: a change costs what it concerns, not what there is.
type fronts struct {
	mu    sync.Mutex            // guards the marks
	scope scope                 // what is to be looked at besides the marks
	marks map[manifest.Ref]bool // pods, Services, Endpoints and EndpointSlices that may have changed

	// What follows is guarded by Engine.endpoints.
	services map[manifest.Ref]*front
	pods     map[manifest.Ref]*podFront
	slices   map[manifest.Ref]manifest.Ref // EndpointSlices to their Services
	podsBy   index
	frontsBy index // Services, each by one pair of its selector
	slicesOf map[manifest.Ref]refSet
	hosts    refSet // Services that have the host's own addresses, whatever they are
}

// scope is what may have changed without anybody telling.
type scope uint8

const (
	nothing  scope = iota
	hostOnly       // pods, and the host's addresses
	everything
)

// front is one Service.
type front struct {
	selector map[string]string
	pair     pair // of the selector, in frontsBy
	table    service.Service
	names    dns.Service
}

// podFront is one pod with addresses, as Services and names see it.
type podFront struct {
	labels map[string]string
	names  dns.Pod
}

// pair is a label of a namespace.
type pair struct{ namespace, key, value string }

type refSet map[manifest.Ref]struct{}

type index map[pair]refSet

func (x index) add(p pair, ref manifest.Ref) {
	if x[p] == nil {
		x[p] = refSet{}
	}
	x[p][ref] = struct{}{}
}

func (x index) remove(p pair, ref manifest.Ref) {
	delete(x[p], ref)
	if len(x[p]) == 0 {
		delete(x, p)
	}
}

func newFronts() *fronts {
	return &fronts{
		scope: everything, marks: map[manifest.Ref]bool{}, services: map[manifest.Ref]*front{}, pods: map[manifest.Ref]*podFront{},
		slices: map[manifest.Ref]manifest.Ref{}, podsBy: index{}, frontsBy: index{}, slicesOf: map[manifest.Ref]refSet{}, hosts: refSet{},
	}
}

// mark notes that an object may have changed.
func (f *fronts) mark(ref manifest.Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.marks[ref] = true
}

// widen has more than the marks looked at.
func (f *fronts) widen(to scope) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scope = max(f.scope, to)
}

func (f *fronts) take() (of scope, marks map[manifest.Ref]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	of, marks = f.scope, f.marks
	f.scope, f.marks = nothing, map[manifest.Ref]bool{}
	return of, marks
}

// frontsChange is what differs from what was worked out before.
type frontsChange struct {
	set   []service.Service
	gone  []service.ID
	names dns.Change
	ended []manifest.Object // Services to be forgotten
}

// marked are the objects to look at.
func (e *Engine) marked() map[manifest.Ref]bool {
	f := e.fronts
	of, marks := f.take()
	var kinds []string
	if of >= hostOnly {
		kinds = append(kinds, manifest.KindPod)
		mark(marks, f.pods)
		mark(marks, f.hosts)
	}
	if of == everything {
		kinds = append(kinds, manifest.KindService, manifest.KindEndpoints, manifest.KindEndpointSlice)
		mark(marks, f.services)
		mark(marks, f.slices)
	}
	for _, kind := range kinds {
		for _, o := range e.objects.unsorted(kind, "") {
			marks[o.Ref()] = true
		}
	}
	return marks
}

func mark[V any](marks map[manifest.Ref]bool, refs map[manifest.Ref]V) {
	for ref := range refs {
		marks[ref] = true
	}
}

// refresh works out again what is marked. e.endpoints is held.
func (e *Engine) refresh() frontsChange {
	var c frontsChange
	dirty := refSet{}
	for ref := range e.marked() {
		switch ref.Kind {
		case manifest.KindPod:
			e.refreshPod(ref, dirty, &c.names)
		case manifest.KindEndpointSlice:
			e.refreshSlice(ref, dirty)
		case manifest.KindEndpoints:
			dirty[manifest.Ref{Kind: manifest.KindService, Namespace: ref.Namespace, Name: ref.Name}] = struct{}{}
		case manifest.KindService:
			dirty[ref] = struct{}{}
			e.index(ref)
		}
	}
	for _, ref := range slices.SortedFunc(maps.Keys(dirty), compareRefs) {
		e.refreshService(ref, &c)
	}
	return c
}

// refreshPod looks at a pod's labels and addresses, and marks the Services that
// select it or did.
func (e *Engine) refreshPod(ref manifest.Ref, dirty refSet, c *dns.Change) {
	f := e.fronts
	old := f.pods[ref]
	var now *podFront
	if o, ok := e.objects.get(ref); ok {
		p := o.Value().(*corev1.Pod)
		if !terminal(p) {
			st := e.statusOf(p)
			now = &podFront{labels: p.Labels, names: dns.Pod{Namespace: p.Namespace, Name: p.Name, Addrs: addrsOf(&st)}}
		}
	}
	for _, pf := range []*podFront{old, now} {
		if pf != nil {
			f.selecting(ref.Namespace, pf.labels, dirty)
		}
	}
	if old != nil {
		for k, v := range old.labels {
			f.podsBy.remove(pair{ref.Namespace, k, v}, ref)
		}
		delete(f.pods, ref)
	}
	if now != nil {
		for k, v := range now.labels {
			f.podsBy.add(pair{ref.Namespace, k, v}, ref)
		}
		f.pods[ref] = now
	}
	var was, is []netip.Addr
	if old != nil {
		was = old.names.Addrs
	}
	if now != nil {
		is = now.names.Addrs
	}
	switch {
	case slices.Equal(was, is):
	case len(is) == 0:
		c.GonePods = append(c.GonePods, dns.ID{Namespace: ref.Namespace, Name: ref.Name})
	default:
		c.Set.Pods = append(c.Set.Pods, now.names)
	}
}

// selecting adds the Services whose selector matches the labels.
func (f *fronts) selecting(namespace string, of map[string]string, dirty refSet) {
	for k, v := range of {
		for ref := range f.frontsBy[pair{namespace, k, v}] {
			if labels.SelectorFromSet(f.services[ref].selector).Matches(labels.Set(of)) {
				dirty[ref] = struct{}{}
			}
		}
	}
}

// refreshSlice looks at which Service an EndpointSlice is for.
func (e *Engine) refreshSlice(ref manifest.Ref, dirty refSet) {
	f := e.fronts
	if old, ok := f.slices[ref]; ok {
		dirty[old] = struct{}{}
		delete(f.slicesOf[old], ref)
		if len(f.slicesOf[old]) == 0 {
			delete(f.slicesOf, old)
		}
		delete(f.slices, ref)
	}
	o, ok := e.objects.get(ref)
	if !ok {
		return
	}
	svc := manifest.Ref{Kind: manifest.KindService, Namespace: ref.Namespace, Name: o.Meta().Labels[discoveryv1.LabelServiceName]}
	dirty[svc] = struct{}{}
	f.slices[ref] = svc
	if f.slicesOf[svc] == nil {
		f.slicesOf[svc] = refSet{}
	}
	f.slicesOf[svc][ref] = struct{}{}
}

// index notes a Service's selector.
func (e *Engine) index(ref manifest.Ref) {
	f := e.fronts
	fr := f.services[ref]
	if fr != nil && fr.selector != nil {
		f.frontsBy.remove(fr.pair, ref)
		fr.selector = nil
	}
	delete(f.hosts, ref)
	o, ok := e.objects.get(ref)
	if !ok {
		return
	}
	if e.opts.Balancers == nil && o.Value().(*corev1.Service).Spec.Type == corev1.ServiceTypeLoadBalancer {
		f.hosts[ref] = struct{}{}
	}
	if fr == nil {
		fr = &front{}
		f.services[ref] = fr
	}
	if fr.selector = o.Value().(*corev1.Service).Spec.Selector; len(fr.selector) == 0 {
		fr.selector = nil
		return
	}
	// By the pair that the fewest others have.
	best := -1
	for _, k := range slices.Sorted(maps.Keys(fr.selector)) {
		p := pair{ref.Namespace, k, fr.selector[k]}
		if n := len(f.frontsBy[p]); best < 0 || n < best {
			best, fr.pair = n, p
		}
	}
	f.frontsBy.add(fr.pair, ref)
}

// selected are the pods with addresses that the selector of a Service matches, by name.
func (f *fronts) selected(namespace string, selector map[string]string) []manifest.Ref {
	var fewest refSet
	first := true
	for k, v := range selector {
		if set := f.podsBy[pair{namespace, k, v}]; first || len(set) < len(fewest) {
			fewest, first = set, false
		}
	}
	sel := labels.SelectorFromSet(selector)
	var out []manifest.Ref
	for ref := range fewest {
		if sel.Matches(labels.Set(f.pods[ref].labels)) {
			out = append(out, ref)
		}
	}
	slices.SortFunc(out, compareRefs)
	return out
}

// refreshService works out one Service.
func (e *Engine) refreshService(ref manifest.Ref, c *frontsChange) {
	f := e.fronts
	fr := f.services[ref]
	o, ok := e.objects.get(ref)
	var s *corev1.Service
	if ok {
		s = o.Value().(*corev1.Service)
	}
	if s == nil || s.DeletionTimestamp != nil {
		if ok {
			c.ended = append(c.ended, o)
		}
		if fr != nil {
			if fr.selector != nil {
				f.frontsBy.remove(fr.pair, ref)
			}
			delete(f.services, ref)
			c.gone = append(c.gone, service.ID{Namespace: ref.Namespace, Name: ref.Name})
			e.unname(ref, &c.names)
		}
		return
	}
	if fr == nil { // what is marked is indexed before
		return
	}
	backends := e.backends(s)
	table, names := e.frontend(s, backends), e.names(s, backends)
	if fr.table.Name == "" || !table.Equal(fr.table) {
		c.set = append(c.set, table)
	}
	if !reflect.DeepEqual(names, fr.names) {
		c.names.Set.Services = append(c.names.Set.Services, names)
	}
	e.tellEndpoints(o, fr.table, table)
	fr.table, fr.names = table, names
}

// unname takes the names of a Service away, which may uncover those of the built-in one.
func (e *Engine) unname(ref manifest.Ref, c *dns.Change) {
	if own, ok := e.builtinNames(); ok && ref == builtinRef() {
		c.Set.Services = append(c.Set.Services, own)
		return
	}
	c.GoneServices = append(c.GoneServices, dns.ID{Namespace: ref.Namespace, Name: ref.Name})
}

// allServices is everything for the table, with the Service of the DNS server, which
// has no object.
func (e *Engine) allServices() []service.Service {
	out := []service.Service{}
	if s, ok := e.builtin(); ok {
		out = append(out, s)
	}
	for _, ref := range slices.SortedFunc(maps.Keys(e.fronts.services), compareRefs) {
		out = append(out, e.fronts.services[ref].table)
	}
	return out
}

func compareRefs(a, b manifest.Ref) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
