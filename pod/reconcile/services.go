package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod/manifest"
)

// syncServices gives the table every Service with its endpoints, if anything is
// not as it was, and forgets Services that are deleted.
func (e *Engine) syncServices(ctx context.Context) error {
	e.endpoints.Lock()
	defer e.endpoints.Unlock()
	desired, gone := e.desired()
	var err error
	if e.synced == nil || !reflect.DeepEqual(desired, e.synced) {
		if err = e.opts.Services.Sync(ctx, desired); err == nil {
			e.synced = desired
		}
	}
	e.publish()
	if err != nil {
		return fmt.Errorf("write services: %w", err)
	}
	var errs []error
	for _, o := range gone {
		if err := e.objects.remove(o); err != nil {
			errs = append(errs, err)
			continue
		}
		e.releaseService(o.Namespace() + "/" + o.Name())
		e.work.add(manifest.Ref{Kind: manifest.KindNamespace, Name: o.Namespace()})
	}
	return errors.Join(errs...)
}

// healServices writes everything again after somebody changed the table.
func (e *Engine) healServices(ctx context.Context) {
	e.endpoints.Lock()
	defer e.endpoints.Unlock()
	e.log.Warn("the services in the kernel were changed by somebody else; writing them again")
	if err := e.opts.Services.Resync(ctx); err != nil && ctx.Err() == nil {
		e.log.Error("write services again", "error", err)
		e.synced = nil
		e.work.add(manifest.Ref{Kind: manifest.KindService})
	}
}

// desired lists the Services for the table, and the objects that wait to be forgotten.
func (e *Engine) desired() (list []service.Service, gone []manifest.Object) {
	list = []service.Service{}
	if s, ok := e.builtin(); ok {
		list = append(list, s)
	}
	for _, o := range e.objects.list(manifest.KindService, "") {
		s := o.Value().(*corev1.Service)
		if s.DeletionTimestamp != nil {
			gone = append(gone, o)
			continue
		}
		list = append(list, e.frontend(s))
	}
	return list, gone
}

// frontend turns a Service into what the table takes.
func (e *Engine) frontend(s *corev1.Service) service.Service {
	out := service.Service{Namespace: s.Namespace, Name: s.Name, ExternalIPs: parseAddrs(s.Spec.ExternalIPs)}
	if s.Spec.ClusterIP != corev1.ClusterIPNone {
		out.ClusterIPs = parseAddrs(s.Spec.ClusterIPs)
	}
	out.ExternalIPs = append(out.ExternalIPs, e.balancerIPs(s)...)
	if a := s.Spec.SessionAffinityConfig; s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP && a != nil && a.ClientIP != nil && a.ClientIP.TimeoutSeconds != nil {
		out.Affinity = time.Duration(*a.ClientIP.TimeoutSeconds) * time.Second
	}
	backends := e.backends(s)
	for _, p := range s.Spec.Ports {
		port := service.Port{Name: p.Name, Protocol: string(p.Protocol), Port: uint16(p.Port), NodePort: uint16(p.NodePort)}
		for _, b := range backends {
			n, ok := targetPort(b.pod, p)
			if !ok || (!b.ready && !s.Spec.PublishNotReadyAddresses) {
				continue
			}
			for _, ip := range b.ips {
				port.Endpoints = append(port.Endpoints, netip.AddrPortFrom(ip, n))
			}
		}
		slices.SortFunc(port.Endpoints, netip.AddrPort.Compare)
		out.Ports = append(out.Ports, port)
	}
	return out
}

func parseAddrs(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// backend is a pod behind a Service.
type backend struct {
	pod   *corev1.Pod
	ips   []netip.Addr
	ready bool
}

// backends are the pods with addresses that the selector matches; without a selector there are none.
func (e *Engine) backends(s *corev1.Service) []backend {
	if len(s.Spec.Selector) == 0 {
		return nil
	}
	sel := labels.SelectorFromSet(s.Spec.Selector)
	var out []backend
	for _, o := range e.objects.list(manifest.KindPod, s.Namespace) {
		p := o.Value().(*corev1.Pod)
		if !sel.Matches(labels.Set(p.Labels)) || terminal(p) {
			continue
		}
		st := e.statusOf(p)
		b := backend{pod: p, ready: isReady(p, &st)}
		for _, ip := range st.PodIPs {
			b.ips = append(b.ips, parseAddrs([]string{ip.IP})...)
		}
		if len(b.ips) > 0 {
			out = append(out, b)
		}
	}
	return out
}

// targetPort resolves a port by number or by the name that the pod's containers give it.
func targetPort(p *corev1.Pod, port corev1.ServicePort) (uint16, bool) {
	if port.TargetPort.Type == intstr.Int {
		return uint16(port.TargetPort.IntVal), true
	}
	for i := range p.Spec.Containers {
		for _, c := range p.Spec.Containers[i].Ports {
			if c.Name == port.TargetPort.StrVal && c.Protocol == port.Protocol {
				return uint16(c.ContainerPort), true
			}
		}
	}
	return 0, false
}

// endpointsOf shows what is behind a Service.
func (e *Engine) endpointsOf(s *corev1.Service) manifest.Object {
	ep := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{ //nolint:staticcheck // what people ask for with "get endpoints"
		Name: s.Name, Namespace: s.Namespace, Labels: maps.Clone(s.Labels), CreationTimestamp: s.CreationTimestamp, UID: s.UID, ResourceVersion: s.ResourceVersion,
	}}
	byPorts := map[string]*corev1.EndpointSubset{} //nolint:staticcheck // as above
	var order []string
	for _, b := range e.backends(s) {
		ports := endpointPorts(s, b.pod)
		key := fmt.Sprint(ports)
		sub := byPorts[key]
		if sub == nil {
			sub = &corev1.EndpointSubset{Ports: ports} //nolint:staticcheck // as above
			byPorts[key], order = sub, append(order, key)
		}
		for _, ip := range b.ips {
			a := corev1.EndpointAddress{IP: ip.String(), TargetRef: &corev1.ObjectReference{
				Kind: manifest.KindPod, Namespace: b.pod.Namespace, Name: b.pod.Name, UID: b.pod.UID,
			}}
			if e.opts.NodeName != "" {
				node := e.opts.NodeName
				a.NodeName = &node
			}
			if b.ready || s.Spec.PublishNotReadyAddresses {
				sub.Addresses = append(sub.Addresses, a)
			} else {
				sub.NotReadyAddresses = append(sub.NotReadyAddresses, a)
			}
		}
	}
	slices.Sort(order)
	for _, key := range order {
		ep.Subsets = append(ep.Subsets, *byPorts[key])
	}
	return manifest.New(ep)
}

func endpointPorts(s *corev1.Service, p *corev1.Pod) []corev1.EndpointPort {
	var out []corev1.EndpointPort
	for _, port := range s.Spec.Ports {
		if n, ok := targetPort(p, port); ok {
			out = append(out, corev1.EndpointPort{Name: port.Name, Port: int32(n), Protocol: port.Protocol})
		}
	}
	return out
}

// reserve takes the addresses and node ports that a Service names.
func (e *Engine) reserve(s *corev1.Service) error {
	key := s.Namespace + "/" + s.Name
	var errs []error
	if s.Spec.ClusterIP != corev1.ClusterIPNone {
		for _, ip := range parseAddrs(s.Spec.ClusterIPs) {
			errs = append(errs, e.opts.Alloc.ReserveClusterIP(key, ip))
		}
	}
	if e.opts.Balancers != nil {
		for _, in := range s.Status.LoadBalancer.Ingress {
			for _, ip := range parseAddrs([]string{in.IP}) {
				errs = append(errs, e.opts.Balancers.ReserveClusterIP(key, ip))
			}
		}
	}
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			errs = append(errs, e.opts.Alloc.ReserveNodePort(key, string(p.Protocol), uint16(p.NodePort)))
		}
	}
	return errors.Join(errs...)
}

// allocate fills in the addresses and node ports that a Service asks for and does not name.
func (e *Engine) allocate(s *corev1.Service) error {
	key := s.Namespace + "/" + s.Name
	if err := e.reserve(s); err != nil {
		return err
	}
	if s.Spec.ClusterIP == "" && s.Spec.Type != corev1.ServiceTypeExternalName {
		if err := e.allocateIPs(key, s); err != nil {
			return err
		}
	}
	if err := e.allocateBalancer(key, s); err != nil {
		return err
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if s.Spec.Type != corev1.ServiceTypeNodePort || p.NodePort != 0 {
			continue
		}
		n, err := e.opts.Alloc.NodePort(key, string(p.Protocol))
		if err != nil {
			return err
		}
		p.NodePort = int32(n)
	}
	return nil
}

// allocateIPs takes one address of each family that is asked for: by default one,
// IPv4 if there is a range of it.
func (e *Engine) allocateIPs(key string, s *corev1.Service) error {
	policy := corev1.IPFamilyPolicySingleStack
	if s.Spec.IPFamilyPolicy != nil {
		policy = *s.Spec.IPFamilyPolicy
	}
	families := []int{4, 6}
	if len(s.Spec.IPFamilies) > 0 && s.Spec.IPFamilies[0] == corev1.IPv6Protocol {
		families = []int{6, 4}
	}
	asked := len(s.Spec.IPFamilies)
	var ips []string
	var got []corev1.IPFamily
	var errs []error
	for i, f := range families {
		ip, err := e.opts.Alloc.ClusterIP(key, f)
		must := i < asked || policy == corev1.IPFamilyPolicyRequireDualStack
		switch {
		case err == nil:
			ips = append(ips, ip.String())
			got = append(got, map[int]corev1.IPFamily{4: corev1.IPv4Protocol, 6: corev1.IPv6Protocol}[f])
		case must:
			return err
		default:
			errs = append(errs, err)
		}
		if len(ips) == max(asked, 1) && policy == corev1.IPFamilyPolicySingleStack {
			break
		}
	}
	if len(ips) == 0 {
		return errors.Join(errs...)
	}
	s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.IPFamilies = ips[0], ips, got
	if len(ips) < 2 && policy == corev1.IPFamilyPolicySingleStack {
		s.Spec.IPFamilyPolicy = &policy
	}
	return nil
}
