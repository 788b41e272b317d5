package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

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
	if n := s.Spec.HealthCheckNodePort; n != 0 {
		errs = append(errs, e.opts.Alloc.ReserveNodePort(key, string(corev1.ProtocolTCP), uint16(n)))
	}
	return errors.Join(errs...)
}

// allocate fills in the addresses and node ports that a Service asks for and does not name.
func (e *Engine) allocate(s *corev1.Service) error {
	key := s.Namespace + "/" + s.Name
	if err := e.reserve(s); err != nil {
		return err
	}
	if s.Spec.ClusterIP != corev1.ClusterIPNone && s.Spec.Type != corev1.ServiceTypeExternalName {
		if err := e.allocateIPs(key, s); err != nil {
			return err
		}
	}
	if err := e.allocateBalancer(key, s); err != nil {
		return err
	}
	return e.allocateNodePorts(key, s)
}

// takesNodePorts tells whether each port of a Service gets a node port.
func takesNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort ||
		s.Spec.Type == corev1.ServiceTypeLoadBalancer && isTrue(s.Spec.AllocateLoadBalancerNodePorts)
}

// takesHealthPort tells whether a Service has a health check node port and none is named.
func takesHealthPort(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.HealthCheckNodePort == 0 &&
		s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func (e *Engine) allocateNodePorts(key string, s *corev1.Service) error {
	if takesNodePorts(s) {
		for i := range s.Spec.Ports {
			p := &s.Spec.Ports[i]
			if p.NodePort != 0 {
				continue
			}
			n, err := e.nodePort(key, s, p)
			if err != nil {
				return err
			}
			p.NodePort = int32(n)
		}
	}
	if takesHealthPort(s) {
		n, err := e.opts.Alloc.NodePort(key, string(corev1.ProtocolTCP))
		if err != nil {
			return err
		}
		s.Spec.HealthCheckNodePort = int32(n)
	}
	return nil
}

// nodePort takes the number that another protocol of the same port has, if it is
// free there: one number for both, as people expect of DNS.
func (e *Engine) nodePort(key string, s *corev1.Service, p *corev1.ServicePort) (uint16, error) {
	for _, o := range s.Spec.Ports {
		if o.NodePort != 0 && o.Port == p.Port && o.Protocol != p.Protocol &&
			e.opts.Alloc.ReserveNodePort(key, string(p.Protocol), uint16(o.NodePort)) == nil {
			return uint16(o.NodePort), nil
		}
	}
	return e.opts.Alloc.NodePort(key, string(p.Protocol))
}

// familiesOf are the families of a Service's cluster IPs, the primary one first,
// and how many are needed: the others are taken if there is a range of them.
func familiesOf(s *corev1.Service) (families []corev1.IPFamily, need int) {
	for _, ip := range parseAddrs(s.Spec.ClusterIPs) {
		families = append(families, familyOf(ip))
	}
	for _, f := range s.Spec.IPFamilies {
		if !slices.Contains(families, f) {
			families = append(families, f)
		}
	}
	need = max(len(families), 1)
	if len(families) == 0 || dualStack(s) {
		for _, f := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
			if !slices.Contains(families, f) {
				families = append(families, f)
			}
		}
	}
	if ptr.Deref(s.Spec.IPFamilyPolicy, "") == corev1.IPFamilyPolicyRequireDualStack {
		need = 2
	}
	return families, need
}

// dualStack tells whether a Service wants both families, or takes both if it can.
func dualStack(s *corev1.Service) bool {
	return ptr.Deref(s.Spec.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack) != corev1.IPFamilyPolicySingleStack
}

// policyFor is the policy of a Service that names none, by its number of families.
func policyFor(families int) *corev1.IPFamilyPolicy {
	if families == 2 {
		return ptr.To(corev1.IPFamilyPolicyRequireDualStack)
	}
	return ptr.To(corev1.IPFamilyPolicySingleStack)
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func familyNumber(f corev1.IPFamily) int {
	if f == corev1.IPv4Protocol {
		return 4
	}
	return 6
}

// allocateIPs takes one address of each family that is asked for: by default one,
// IPv4 if there is a range of it.
func (e *Engine) allocateIPs(key string, s *corev1.Service) error {
	families, need := familiesOf(s)
	var ips []string
	var got []corev1.IPFamily
	var errs []error
	for _, f := range families {
		if len(ips) >= need && !dualStack(s) {
			break
		}
		ip, err := e.opts.Alloc.ClusterIP(key, familyNumber(f))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ips, got = append(ips, ip.String()), append(got, f)
	}
	asked := len(s.Spec.IPFamilies) > 0 && !slices.Contains(got, s.Spec.IPFamilies[0])
	if len(ips) < need || asked {
		return errors.Join(errs...)
	}
	s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.IPFamilies = ips[0], ips, got
	if s.Spec.IPFamilyPolicy == nil {
		s.Spec.IPFamilyPolicy = policyFor(len(ips))
	}
	return nil
}

// mergeAddresses keeps the cluster IPs that were given before. The primary one
// stays; a second one may come and go with the policy, as in Kubernetes.
func mergeAddresses(s, old *corev1.Service) error {
	if s.Spec.ClusterIP == "" && old.Spec.ClusterIP != corev1.ClusterIPNone {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = old.Spec.ClusterIP, slices.Clone(old.Spec.ClusterIPs)
	}
	if s.Spec.ClusterIP != old.Spec.ClusterIP {
		given := s.Spec.ClusterIP
		if given == "" {
			given = "an address"
		}
		return fmt.Errorf("clusterIP cannot be changed from %s to %s; delete the Service first", old.Spec.ClusterIP, given)
	}
	if len(s.Spec.ClusterIPs) > 1 && len(old.Spec.ClusterIPs) > 1 && s.Spec.ClusterIPs[1] != old.Spec.ClusterIPs[1] {
		return fmt.Errorf("clusterIPs[1] cannot be changed from %s to %s; delete the Service first", old.Spec.ClusterIPs[1], s.Spec.ClusterIPs[1])
	}
	if len(s.Spec.IPFamilies) > 0 && len(old.Spec.IPFamilies) > 0 && s.Spec.IPFamilies[0] != old.Spec.IPFamilies[0] {
		return fmt.Errorf("ipFamilies[0] cannot be changed from %s to %s; delete the Service first", old.Spec.IPFamilies[0], s.Spec.IPFamilies[0])
	}
	if s.Spec.IPFamilyPolicy == nil && len(s.Spec.IPFamilies) == 0 {
		s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = old.Spec.IPFamilyPolicy, old.Spec.IPFamilies
		if len(s.Spec.ClusterIPs) < len(old.Spec.ClusterIPs) {
			s.Spec.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
		}
		return nil
	}
	if s.Spec.IPFamilyPolicy == nil {
		s.Spec.IPFamilyPolicy = policyFor(len(s.Spec.IPFamilies))
	}
	if len(s.Spec.IPFamilies) == 0 {
		s.Spec.IPFamilies = slices.Clone(old.Spec.IPFamilies)
	}
	if *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack {
		s.Spec.ClusterIPs = s.Spec.ClusterIPs[:min(1, len(s.Spec.ClusterIPs))]
		s.Spec.IPFamilies = s.Spec.IPFamilies[:min(1, len(s.Spec.IPFamilies))]
	}
	return nil
}

// mergeService keeps the addresses and node ports that were given before, where the new one names none.
func mergeService(s, old *corev1.Service) error {
	if is, was := s.Spec.Type, old.Spec.Type; is != was && (is == corev1.ServiceTypeExternalName || was == corev1.ServiceTypeExternalName) {
		return fmt.Errorf("type cannot be changed from %s to %s; delete the Service first", was, is)
	}
	if err := mergeAddresses(s, old); err != nil {
		return err
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		s.Status.LoadBalancer = old.Status.LoadBalancer
	}
	if takesHealthPort(s) {
		s.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
	}
	if !takesNodePorts(s) {
		return nil
	}
	for i := range s.Spec.Ports {
		n := &s.Spec.Ports[i]
		for _, o := range old.Spec.Ports {
			if n.NodePort == 0 && n.Port == o.Port && n.Protocol == o.Protocol {
				n.NodePort = o.NodePort
			}
		}
	}
	return nil
}
