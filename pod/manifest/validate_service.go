package manifest

import (
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

func (c *checker) service(s *corev1.ServiceSpec) {
	headless := s.ClusterIP == corev1.ClusterIPNone
	external := s.Type == corev1.ServiceTypeExternalName
	switch {
	case !external && s.ExternalName != "":
		c.fail("spec.externalName", "is only possible with type: ExternalName")
	case external && s.ClusterIP != "":
		c.fail("spec.clusterIP", "is not possible with type ExternalName")
	case external && s.ExternalName == "":
		c.fail("spec.externalName", "is required with type ExternalName")
	case external:
		c.all("spec.externalName", s.ExternalName, validation.IsDNS1123Subdomain(strings.TrimSuffix(s.ExternalName, ".")))
	}
	if len(s.Ports) == 0 && !headless && !external {
		c.fail("spec.ports", "is required: at least one port")
	}
	if headless && (s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer) {
		c.fail("spec.clusterIP", "None is not possible with type %s", s.Type)
	}
	c.serviceAddresses(s)
	c.loadBalancer(s)
	c.affinity(s)
	for _, k := range keysOf(s.Selector) {
		at := "spec.selector[" + k + "]"
		c.all(at, k, validation.IsQualifiedName(k))
		c.all(at, s.Selector[k], validation.IsValidLabelValue(s.Selector[k]))
	}
	names, ports, nodePorts := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range s.Ports {
		c.servicePort("spec.ports["+strconv.Itoa(i)+"]", s, &s.Ports[i])
		p := s.Ports[i]
		proto := string(p.Protocol)
		if proto == "" {
			proto = "TCP"
		}
		c.once("spec.ports["+strconv.Itoa(i)+"].name", names, p.Name)
		c.once("spec.ports["+strconv.Itoa(i)+"].port", ports, strconv.Itoa(int(p.Port))+"/"+proto)
		if p.NodePort != 0 {
			c.once("spec.ports["+strconv.Itoa(i)+"].nodePort", nodePorts, strconv.Itoa(int(p.NodePort))+"/"+proto)
		}
	}
}

// loadBalancer is what the type LoadBalancer, and clients outside, have alone.
func (c *checker) loadBalancer(s *corev1.ServiceSpec) {
	balancer := s.Type == corev1.ServiceTypeLoadBalancer
	for path, given := range map[string]bool{
		"spec.loadBalancerSourceRanges": len(s.LoadBalancerSourceRanges) > 0, "spec.loadBalancerIP": s.LoadBalancerIP != "",
		"spec.allocateLoadBalancerNodePorts": s.AllocateLoadBalancerNodePorts != nil,
	} {
		if given && !balancer {
			c.fail(path, "is only possible with type: LoadBalancer")
		}
	}
	for i, r := range s.LoadBalancerSourceRanges {
		if _, err := netip.ParsePrefix(strings.TrimSpace(r)); err != nil {
			c.fail("spec.loadBalancerSourceRanges["+strconv.Itoa(i)+"]", "%q is not a range like 203.0.113.0/24", r)
		}
	}
	if s.LoadBalancerIP != "" {
		c.ip("spec.loadBalancerIP", s.LoadBalancerIP)
	}
	if s.ExternalTrafficPolicy != "" && !ForOutside(s) && s.Type != "" {
		c.fail("spec.externalTrafficPolicy", "is only possible with type NodePort or LoadBalancer, or with externalIPs")
	}
	switch {
	case s.HealthCheckNodePort == 0:
	case !balancer || s.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal:
		c.fail("spec.healthCheckNodePort", "is only possible with type: LoadBalancer and externalTrafficPolicy: Local")
	default:
		c.port("spec.healthCheckNodePort", s.HealthCheckNodePort)
	}
}

// affinity takes 1 second to 1 day, as Kubernetes does.
func (c *checker) affinity(s *corev1.ServiceSpec) {
	f := s.SessionAffinityConfig
	switch {
	case f == nil:
	case s.SessionAffinity != corev1.ServiceAffinityClientIP:
		c.fail("spec.sessionAffinityConfig", "is only possible with sessionAffinity: ClientIP")
	case f.ClientIP != nil && f.ClientIP.TimeoutSeconds != nil:
		if n := *f.ClientIP.TimeoutSeconds; n < 1 || n > 86400 {
			c.fail("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d is not possible; use 1 to 86400", n)
		}
	}
}

func (c *checker) once(path string, seen map[string]bool, value string) {
	if value != "" && seen[value] {
		c.fail(path, "%q is used twice", value)
	}
	seen[value] = true
}

func (c *checker) serviceAddresses(s *corev1.ServiceSpec) {
	if s.ClusterIP != "" && s.ClusterIP != corev1.ClusterIPNone {
		c.ip("spec.clusterIP", s.ClusterIP)
	}
	for i, ip := range s.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			c.ip("spec.clusterIPs["+strconv.Itoa(i)+"]", ip)
		}
		if i == 0 && ip != s.ClusterIP {
			c.fail("spec.clusterIPs[0]", "%q differs from clusterIP %q", ip, s.ClusterIP)
		}
	}
	if len(s.ClusterIPs) > 2 {
		c.fail("spec.clusterIPs", "holds %d addresses; one of each family is possible", len(s.ClusterIPs))
	} else if len(s.ClusterIPs) == 2 {
		a, err1 := netip.ParseAddr(s.ClusterIPs[0])
		b, err2 := netip.ParseAddr(s.ClusterIPs[1])
		if err1 == nil && err2 == nil && a.Is4() == b.Is4() {
			c.fail("spec.clusterIPs", "%s and %s are of the same family", a, b)
		}
	}
	given := s.ClusterIPs
	if len(given) == 0 {
		given = []string{s.ClusterIP}
	}
	for i, ip := range given {
		a, err := netip.ParseAddr(ip)
		if err == nil && i < len(s.IPFamilies) && (s.IPFamilies[i] == corev1.IPv4Protocol) != a.Is4() {
			c.fail("spec.clusterIPs["+strconv.Itoa(i)+"]", "%s is not %s, as ipFamilies says", a, s.IPFamilies[i])
		}
	}
	for i, ip := range s.ExternalIPs {
		c.ip("spec.externalIPs["+strconv.Itoa(i)+"]", ip)
	}
	for i, f := range s.IPFamilies {
		if f != corev1.IPv4Protocol && f != corev1.IPv6Protocol || i > 1 || (i == 1 && f == s.IPFamilies[0]) {
			c.fail("spec.ipFamilies["+strconv.Itoa(i)+"]", "%q is not possible; use IPv4, IPv6 or one of each", f)
		}
	}
	if p := s.IPFamilyPolicy; p != nil {
		switch *p {
		case corev1.IPFamilyPolicySingleStack:
			if len(s.IPFamilies) > 1 || len(s.ClusterIPs) > 1 {
				c.fail("spec.ipFamilyPolicy", "SingleStack is not possible with two ipFamilies or clusterIPs; use RequireDualStack")
			}
		case corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack:
		default:
			c.fail("spec.ipFamilyPolicy", "%q is not supported%s", *p, hint(string(*p), []string{"SingleStack", "PreferDualStack", "RequireDualStack"}))
		}
	}
}

// ip takes addresses that can be somebody's: not 0.0.0.0, loopback or multicast.
func (c *checker) ip(path, value string) {
	addr, err := netip.ParseAddr(value)
	if err != nil || addr.Zone() != "" {
		c.fail(path, "%q is not an IP address", value)
		return
	}
	if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
		c.fail(path, "%s cannot be the address of a Service", addr)
	}
}

func (c *checker) servicePort(at string, s *corev1.ServiceSpec, p *corev1.ServicePort) {
	switch {
	case p.Name != "":
		c.all(at+".name", p.Name, validation.IsDNS1123Label(p.Name))
	case len(s.Ports) > 1:
		c.fail(at+".name", "is required when there are several ports")
	}
	c.port(at+".port", p.Port)
	switch {
	case p.NodePort == 0:
	case s.Type != corev1.ServiceTypeNodePort && s.Type != corev1.ServiceTypeLoadBalancer:
		c.fail(at+".nodePort", "is only possible with type: NodePort or LoadBalancer")
	default:
		c.port(at+".nodePort", p.NodePort)
	}
	switch t := p.TargetPort; {
	case t.Type == intstr.Int && t.IntVal != 0:
		c.port(at+".targetPort", t.IntVal)
	case t.Type == intstr.String && t.StrVal != "":
		c.all(at+".targetPort", t.StrVal, validation.IsValidPortName(t.StrVal))
	}
}

// port takes 1 to 65535.
func (c *checker) port(path string, p int32) {
	switch {
	case p == 0:
		c.fail(path, "is required: a port from 1 to 65535")
	case p < 0 || p > 65535:
		c.fail(path, "%d is not a port; use 1 to 65535", p)
	}
}
