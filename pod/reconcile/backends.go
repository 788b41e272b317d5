package reconcile

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod/manifest"
)

// backend is what is behind a Service: a pod, or an endpoint of a declared
// EndpointSlice or Endpoints object.
type backend struct {
	pod  *corev1.Pod // nil: declared
	addr []netip.Addr
	// ready gets new connections; serving answers, perhaps for not much longer:
	// terminating.
	ready, serving, terminating bool
	node                        *string // nil: unknown
	hostname                    string
	ports                       []corev1.EndpointPort
}

// port is where a port of the Service leads to.
func (b *backend) port(p corev1.ServicePort) (uint16, bool) {
	for _, have := range b.ports {
		if have.Name == p.Name && have.Protocol == p.Protocol {
			return uint16(have.Port), true
		}
	}
	return 0, false
}

// backends are the pods with addresses that the selector matches, then what is
// declared. e.endpoints is held.
func (e *Engine) backends(s *corev1.Service) []backend {
	var out []backend
	if len(s.Spec.Selector) > 0 {
		for _, ref := range e.fronts.selected(s.Namespace, s.Spec.Selector) {
			if o, ok := e.objects.get(ref); ok {
				if b, ok := e.podBackend(s, o.Value().(*corev1.Pod)); ok {
					out = append(out, b)
				}
			}
		}
	}
	svc := manifest.Ref{Kind: manifest.KindService, Namespace: s.Namespace, Name: s.Name}
	for _, ref := range slices.SortedFunc(maps.Keys(e.fronts.slicesOf[svc]), compareRefs) {
		if o, ok := e.objects.get(ref); ok {
			out = append(out, sliceBackends(o.Value().(*discoveryv1.EndpointSlice))...)
		}
	}
	if len(s.Spec.Selector) == 0 {
		if o, ok := e.objects.get(manifest.Ref{Kind: manifest.KindEndpoints, Namespace: s.Namespace, Name: s.Name}); ok {
			out = append(out, endpointsBackends(o.Value().(*corev1.Endpoints))...) //nolint:staticcheck // what older manifests have
		}
	}
	return out
}

func (e *Engine) podBackend(s *corev1.Service, p *corev1.Pod) (backend, bool) {
	st := e.statusOf(p)
	b := backend{pod: p, node: &e.opts.NodeName, serving: hasCondition(&st, corev1.ContainersReady), terminating: p.DeletionTimestamp != nil}
	b.addr = addrsOf(&st)
	b.ready = isReady(p, &st) || s.Spec.PublishNotReadyAddresses
	if p.Spec.Subdomain == s.Name {
		b.hostname = p.Spec.Hostname
	}
	b.ports = endpointPorts(s, p)
	return b, len(b.addr) > 0 && !terminal(p)
}

// addrsOf are a pod's addresses, none before it has a network.
func addrsOf(st *corev1.PodStatus) []netip.Addr {
	var out []netip.Addr
	for _, ip := range st.PodIPs {
		out = append(out, parseAddrs([]string{ip.IP})...)
	}
	return out
}

func hasCondition(st *corev1.PodStatus, kind corev1.PodConditionType) bool {
	return slices.ContainsFunc(st.Conditions, func(c corev1.PodCondition) bool { return c.Type == kind && c.Status == corev1.ConditionTrue })
}

func sliceBackends(s *discoveryv1.EndpointSlice) []backend {
	var ports []corev1.EndpointPort
	for _, p := range s.Ports {
		ports = append(ports, corev1.EndpointPort{Name: *p.Name, Port: *p.Port, Protocol: *p.Protocol})
	}
	var out []backend
	for _, ep := range s.Endpoints {
		b := backend{addr: parseAddrs(ep.Addresses), node: ep.NodeName, ports: ports}
		b.ready, b.terminating = ptr.Deref(ep.Conditions.Ready, true), ptr.Deref(ep.Conditions.Terminating, false)
		b.serving, b.hostname = ptr.Deref(ep.Conditions.Serving, b.ready), ptr.Deref(ep.Hostname, "")
		out = append(out, b)
	}
	return out
}

func endpointsBackends(e *corev1.Endpoints) []backend { //nolint:staticcheck // what older manifests have
	var out []backend
	for _, s := range e.Subsets {
		for i, list := range [][]corev1.EndpointAddress{s.Addresses, s.NotReadyAddresses} {
			for _, a := range list {
				out = append(out, backend{
					addr: parseAddrs([]string{a.IP}), node: a.NodeName, hostname: a.Hostname, ports: s.Ports, ready: i == 0, serving: i == 0,
				})
			}
		}
	}
	return out
}

// frontend turns a Service into what the table takes.
func (e *Engine) frontend(s *corev1.Service, backends []backend) service.Service {
	out := service.Service{Namespace: s.Namespace, Name: s.Name, ExternalIPs: parseAddrs(s.Spec.ExternalIPs), BalancerIPs: e.balancerIPs(s)}
	if s.Spec.ClusterIP != corev1.ClusterIPNone {
		out.ClusterIPs = parseAddrs(s.Spec.ClusterIPs)
	}
	for _, r := range s.Spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(r)); err == nil {
			out.AllowFrom = append(out.AllowFrom, p)
		}
	}
	if a := s.Spec.SessionAffinityConfig; s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP && a != nil && a.ClientIP != nil && a.ClientIP.TimeoutSeconds != nil {
		out.Affinity = time.Duration(*a.ClientIP.TimeoutSeconds) * time.Second
	}
	out.HealthPort = uint16(s.Spec.HealthCheckNodePort)
	remote := map[netip.Addr]bool{}
	for _, b := range backends {
		here := e.isHere(&b)
		for _, a := range b.addr {
			remote[a] = !here
		}
		if here && b.ready && out.HealthPort != 0 {
			out.LocalEndpoints++
		}
	}
	for a, is := range remote {
		if is {
			out.Remote = append(out.Remote, a)
		}
	}
	slices.SortFunc(out.Remote, netip.Addr.Compare)
	within := s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	outside := s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	for _, p := range s.Spec.Ports {
		port := service.Port{Name: p.Name, Protocol: string(p.Protocol), Port: uint16(p.Port), NodePort: uint16(p.NodePort)}
		port.Endpoints = e.pick(p, backends, within)
		if within != outside {
			port.External = slices.Concat([]netip.AddrPort{}, e.pick(p, backends, outside))
		}
		port.Draining = addresses(p, backends, func(b *backend) bool { return b.serving && b.terminating })
		out.Ports = append(out.Ports, port)
	}
	return out
}

// isHere tells whether a backend is on this host.
func (e *Engine) isHere(b *backend) bool { return b.node != nil && *b.node == e.opts.NodeName }

// pick takes the ready backends, or if there are none those that still serve
// though their end has been asked for: rather these than nobody.
func (e *Engine) pick(p corev1.ServicePort, backends []backend, here bool) []netip.AddrPort {
	usable := func(b *backend) bool { return !here || e.isHere(b) }
	if list := addresses(p, backends, func(b *backend) bool { return b.ready && usable(b) }); len(list) > 0 {
		return list
	}
	return addresses(p, backends, func(b *backend) bool { return b.serving && b.terminating && usable(b) })
}

func addresses(p corev1.ServicePort, backends []backend, take func(*backend) bool) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range backends {
		b := &backends[i]
		n, ok := b.port(p)
		if !ok || !take(b) {
			continue
		}
		for _, a := range b.addr {
			out = append(out, netip.AddrPortFrom(a, n))
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

func parseAddrs(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// targetPort resolves a port by number or by the name that the pod's containers,
// or its sidecars, give it.
func targetPort(p *corev1.Pod, port corev1.ServicePort) (uint16, bool) {
	if port.TargetPort.Type == intstr.Int {
		return uint16(port.TargetPort.IntVal), true
	}
	find := func(c *corev1.Container) (uint16, bool) {
		for _, have := range c.Ports {
			if have.Name == port.TargetPort.StrVal && have.Protocol == port.Protocol {
				return uint16(have.ContainerPort), true
			}
		}
		return 0, false
	}
	for i := range p.Spec.Containers {
		if n, ok := find(&p.Spec.Containers[i]); ok {
			return n, true
		}
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; manifest.IsSidecar(c) {
			if n, ok := find(c); ok {
				return n, true
			}
		}
	}
	return 0, false
}

func endpointPorts(s *corev1.Service, p *corev1.Pod) []corev1.EndpointPort {
	var out []corev1.EndpointPort
	for _, port := range s.Spec.Ports {
		if n, ok := targetPort(p, port); ok {
			out = append(out, corev1.EndpointPort{Name: port.Name, Port: int32(n), Protocol: port.Protocol, AppProtocol: port.AppProtocol})
		}
	}
	return out
}
