package reconcile

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// A Service of type LoadBalancer has addresses of the configured ranges, which
// are kept in its status; without ranges it has those of the host, whatever
// they are at the time.

// balancerIPs are a Service's addresses for the outside.
func (e *Engine) balancerIPs(s *corev1.Service) []netip.Addr {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	if e.opts.Balancers == nil {
		return e.opts.NodeIPs()
	}
	var out []netip.Addr
	for _, in := range s.Status.LoadBalancer.Ingress {
		out = append(out, parseAddrs([]string{in.IP})...)
	}
	return out
}

// allocateBalancer takes an address for each family of the cluster IPs that the
// ranges have.
func (e *Engine) allocateBalancer(key string, s *corev1.Service) error {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || e.opts.Balancers == nil {
		s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		return nil
	}
	var ingress []corev1.LoadBalancerIngress
	var last error
	for _, f := range s.Spec.IPFamilies {
		ip, err := e.opts.Balancers.ClusterIP(key, map[corev1.IPFamily]int{corev1.IPv4Protocol: 4, corev1.IPv6Protocol: 6}[f])
		if err != nil {
			last = err
			continue
		}
		ingress = append(ingress, corev1.LoadBalancerIngress{IP: ip.String()})
	}
	if len(ingress) == 0 && last != nil {
		return fmt.Errorf("address of the load balancer: %w", last)
	}
	s.Status.LoadBalancer.Ingress = ingress
	return nil
}

// balancerStatus is what people see.
func (e *Engine) balancerStatus(s *corev1.Service) corev1.LoadBalancerStatus {
	var out corev1.LoadBalancerStatus
	for _, ip := range e.balancerIPs(s) {
		out.Ingress = append(out.Ingress, corev1.LoadBalancerIngress{IP: ip.String()})
	}
	return out
}

// releaseService gives back all that a Service had.
func (e *Engine) releaseService(key string) {
	e.opts.Alloc.Release(key)
	if e.opts.Balancers != nil {
		e.opts.Balancers.Release(key)
	}
}
