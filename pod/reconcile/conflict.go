package reconcile

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
)

// checkTogether refuses what is right alone and wrong beside the other objects:
// names twice, namespaces that are not there, host ports that are taken.
func (e *Engine) checkTogether(plans []*plan) {
	byRef := map[manifest.Ref]*plan{}
	for _, p := range plans {
		if first := byRef[p.Ref]; first != nil {
			p.refuse(pod.ErrInvalid, "%s is declared twice in one request, first at %s", p.Ref, first.Source)
			continue
		}
		byRef[p.Ref] = p
	}
	for _, p := range plans {
		if p.Err == nil && p.Namespace != "" && p.Namespace != defaultNamespace {
			e.checkNamespace(p, byRef)
		}
	}
	e.checkEndpoints(plans, byRef)
	e.checkHostPorts(plans, byRef)
}

func (e *Engine) checkNamespace(p *plan, byRef map[manifest.Ref]*plan) {
	ref := manifest.Ref{Kind: manifest.KindNamespace, Name: p.Namespace}
	if byRef[ref] != nil {
		return
	}
	o, ok := e.objects.get(ref)
	switch {
	case !ok:
		p.refuse(pod.ErrNotFound, "%s: namespace %s does not exist; apply a Namespace of that name first or in the same file", p.Ref, p.Namespace)
	case o.Meta().DeletionTimestamp != nil:
		p.refuse(pod.ErrState, "%s: namespace %s is being deleted", p.Ref, p.Namespace)
	}
}

// hostPort is a claim of one object.
type hostPort struct {
	owner manifest.Ref
	ip    string // "": every address of the host
	port  int32
	proto corev1.Protocol
	node  bool // a node port
	other bool // the address is not the host's own
}

func (h hostPort) clashes(o hostPort) bool {
	if h.port != o.port || h.proto != o.proto {
		return false
	}
	if h.node && o.node {
		return false // the allocator's business
	}
	a, b := hostAddr(h.ip), hostAddr(o.ip)
	if h.other || o.other {
		return a == b
	}
	return a == b || !a.IsValid() || !b.IsValid()
}

func (h hostPort) String() string {
	text := fmt.Sprintf("%d/%s", h.port, h.proto)
	if h.ip != "" {
		text = net.JoinHostPort(h.ip, text)
	}
	return text
}

// hostAddr is the address of a host port; not valid is every address.
func hostAddr(ip string) netip.Addr {
	a, err := netip.ParseAddr(ip)
	if err != nil || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}

// claimedPort is a port of the host that somebody may want, at whatever address.
type claimedPort struct {
	port  int32
	proto corev1.Protocol
}

// claimedPorts are those that hostPorts can have claims of, some perhaps twice.
func claimedPorts(o manifest.Object) (out []claimedPort) {
	var s *corev1.PodSpec
	switch v := o.Value().(type) {
	case *corev1.Service:
		if !manifest.ForOutside(&v.Spec) {
			return nil
		}
		for _, p := range v.Spec.Ports {
			out = append(out, claimedPort{p.Port, p.Protocol}, claimedPort{p.NodePort, p.Protocol})
		}
		out = append(out, claimedPort{v.Spec.HealthCheckNodePort, corev1.ProtocolTCP})
		return slices.DeleteFunc(out, func(p claimedPort) bool { return p.port == 0 })
	case *corev1.Pod:
		s = &v.Spec
	case *appsv1.Deployment:
		s = &v.Spec.Template.Spec
	default:
		return nil
	}
	for i := range s.Containers {
		for _, p := range s.Containers[i].Ports {
			if p.HostPort != 0 {
				out = append(out, claimedPort{p.HostPort, p.Protocol})
			}
		}
	}
	return out
}

// serviceClaims are the ports of a Service on addresses of this host and others.
func (e *Engine) serviceClaims(o manifest.Object, s *corev1.Service) (out []hostPort) {
	here := e.opts.NodeIPs()
	for _, p := range s.Spec.Ports {
		claim := hostPort{owner: o.Ref(), port: p.Port, proto: p.Protocol}
		for _, a := range parseAddrs(s.Spec.ExternalIPs) {
			c := claim
			c.ip, c.other = a.String(), !slices.Contains(here, a)
			out = append(out, c)
		}
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer && e.opts.Balancers == nil {
			claim.ip = s.Spec.LoadBalancerIP
			out = append(out, claim)
		}
		if p.NodePort != 0 {
			out = append(out, hostPort{owner: o.Ref(), port: p.NodePort, proto: p.Protocol, node: true})
		}
	}
	if n := s.Spec.HealthCheckNodePort; n != 0 {
		out = append(out, hostPort{owner: o.Ref(), port: n, proto: corev1.ProtocolTCP, node: true})
	}
	return out
}

// hostPorts are the claims of an object; pods of a Deployment claim in its name.
func (e *Engine) hostPorts(o manifest.Object) (claims []hostPort, replicas int32) {
	var s *corev1.PodSpec
	replicas = 1
	switch v := o.Value().(type) {
	case *corev1.Pod:
		if len(v.OwnerReferences) > 0 || terminal(v) {
			return nil, 0
		}
		s = &v.Spec
	case *appsv1.Deployment:
		s, replicas = &v.Spec.Template.Spec, *v.Spec.Replicas
	case *corev1.Service:
		if v.DeletionTimestamp != nil {
			return nil, 0
		}
		return e.serviceClaims(o, v), 1
	default:
		return nil, 0
	}
	for i := range s.Containers {
		for _, p := range s.Containers[i].Ports {
			if p.HostPort != 0 {
				claims = append(claims, hostPort{owner: o.Ref(), ip: p.HostIP, port: p.HostPort, proto: p.Protocol})
			}
		}
	}
	return claims, replicas
}

// checkHostPorts refuses a host port that another object, stored or planned,
// has; node ports among themselves are the allocator's business.
func (e *Engine) checkHostPorts(plans []*plan, byRef map[manifest.Ref]*plan) {
	planned := map[claimedPort][]hostPort{}
	for _, p := range plans {
		if p.Err != nil {
			continue
		}
		claims, replicas := e.hostPorts(p.object)
		for _, c := range claims {
			if replicas > 1 {
				p.refuse(pod.ErrInvalid, "%s: %d replicas cannot all have host port %d; use a Service of type NodePort or one replica", p.Ref, replicas, c.port)
			}
			at := claimedPort{c.port, c.proto}
			for _, t := range slices.Concat(e.taken(at, byRef), planned[at]) {
				if c.clashes(t) {
					p.refuse(pod.ErrExists, "%s: host port %s is taken by %s; use another port, or delete that first", p.Ref, c, t.owner)
				}
			}
		}
		for _, c := range claims {
			at := claimedPort{c.port, c.proto}
			planned[at] = append(planned[at], c)
		}
	}
}

// taken are the claims of a port that stored objects have which are not planned anew.
func (e *Engine) taken(at claimedPort, byRef map[manifest.Ref]*plan) (out []hostPort) {
	for _, o := range e.objects.claiming(at) {
		if byRef[o.Ref()] != nil {
			continue
		}
		claims, _ := e.hostPorts(o)
		out = append(out, slices.DeleteFunc(claims, func(c hostPort) bool { return claimedPort{c.port, c.proto} != at })...)
	}
	return out
}

// allocateAll gives planned Services their addresses, those that name theirs first.
func (e *Engine) allocateAll(plans []*plan) {
	for _, named := range []bool{true, false} {
		for _, p := range plans {
			s, ok := p.object.Value().(*corev1.Service)
			if !ok || p.Err != nil || p.Outcome == Unchanged || (s.Spec.ClusterIP != "") != named {
				continue
			}
			e.releaseService(s.Namespace + "/" + s.Name)
			if err := e.allocate(s); err != nil {
				p.refuse(pod.ErrExists, "%s: %v", p.Ref, err)
			}
		}
	}
}

// reallocate takes the allocator back to what the stored Services have.
func (e *Engine) reallocate(plans []*plan) {
	for _, p := range plans {
		if p.Kind == manifest.KindService {
			e.releaseService(p.Namespace + "/" + p.Name)
		}
	}
	for _, p := range plans {
		o, ok := e.objects.get(p.Ref)
		if !ok || p.Kind != manifest.KindService {
			continue
		}
		if err := e.reserve(o.Value().(*corev1.Service)); err != nil {
			e.log.Error("reserve the addresses of a stored service again", "service", p.String(), "error", err)
		}
	}
}
