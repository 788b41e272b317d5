package reconcile

import (
	"fmt"
	"net/netip"
	"slices"

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
		return slices.DeleteFunc(slices.Clone(e.opts.NodeIPs()), func(a netip.Addr) bool {
			return !wantsFamily(s, a) || (s.Spec.LoadBalancerIP != "" && a != wantedBalancer(s))
		})
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
		if a := wantedBalancer(s); s.Spec.LoadBalancerIP != "" && e.opts.Balancers == nil && !slices.Contains(e.opts.NodeIPs(), a) {
			return fmt.Errorf("loadBalancerIP %s is not an address of this host: choose one of these or set network.load_balancer_cidrs", a)
		}
		return nil
	}
	if s.Spec.LoadBalancerIP != "" {
		e.opts.Balancers.Release(key)
		if err := e.opts.Balancers.ReserveClusterIP(key, wantedBalancer(s)); err != nil {
			return fmt.Errorf("loadBalancerIP: %w", err)
		}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: wantedBalancer(s).String()}}
		return nil
	}
	var ingress []corev1.LoadBalancerIngress
	var last error
	for _, f := range s.Spec.IPFamilies {
		ip, err := e.opts.Balancers.ClusterIP(key, familyNumber(f))
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

// wantedBalancer is the address that a Service names, not valid if it names none.
func wantedBalancer(s *corev1.Service) netip.Addr {
	a, err := netip.ParseAddr(s.Spec.LoadBalancerIP)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
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
