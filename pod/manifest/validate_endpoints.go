package manifest

import (
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Bounds of an EndpointSlice, those of Kubernetes.
const (
	maxEndpoints     = 1000
	maxEndpointPorts = 100
)

func (c *checker) endpointSlice(s *discoveryv1.EndpointSlice) {
	if s.Labels[discoveryv1.LabelServiceName] == "" {
		c.fail("metadata.labels", "the label %s is required: the name of the Service", discoveryv1.LabelServiceName)
	}
	if s.AddressType != discoveryv1.AddressTypeIPv4 && s.AddressType != discoveryv1.AddressTypeIPv6 {
		c.fail("addressType", "is required: IPv4 or IPv6")
	}
	if len(s.Endpoints) > maxEndpoints {
		c.fail("endpoints", "holds %d; the limit is %d: use several EndpointSlices", len(s.Endpoints), maxEndpoints)
	}
	for i := range s.Endpoints {
		e, at := &s.Endpoints[i], "endpoints["+strconv.Itoa(i)+"]"
		if len(e.Addresses) != 1 {
			c.fail(at+".addresses", "holds %d; one is possible: the others are endpoints of their own", len(e.Addresses))
		}
		for j, a := range e.Addresses {
			c.endpointIP(at+".addresses["+strconv.Itoa(j)+"]", a, s.AddressType)
		}
		if e.Hostname != nil {
			c.all(at+".hostname", *e.Hostname, validation.IsDNS1123Label(*e.Hostname))
		}
	}
	if len(s.Ports) > maxEndpointPorts {
		c.fail("ports", "holds %d; the limit is %d", len(s.Ports), maxEndpointPorts)
	}
	names := map[string]bool{}
	for i := range s.Ports {
		p, at := &s.Ports[i], "ports["+strconv.Itoa(i)+"]"
		name, port := "", int32(0)
		if p.Name != nil {
			name = *p.Name
		}
		if p.Port != nil {
			port = *p.Port
		}
		c.endpointPort(at, name, port, len(s.Ports), names)
	}
}

func (c *checker) endpoints(e *corev1.Endpoints) { //nolint:staticcheck // what older manifests have
	for i := range e.Subsets {
		s, at := &e.Subsets[i], "subsets["+strconv.Itoa(i)+"]"
		if len(s.Addresses)+len(s.NotReadyAddresses) == 0 {
			c.fail(at, "addresses or notReadyAddresses is required")
		}
		for name, list := range map[string][]corev1.EndpointAddress{"addresses": s.Addresses, "notReadyAddresses": s.NotReadyAddresses} {
			for j := range list {
				p := at + "." + name + "[" + strconv.Itoa(j) + "]"
				c.endpointIP(p+".ip", list[j].IP, "")
				if h := list[j].Hostname; h != "" {
					c.all(p+".hostname", h, validation.IsDNS1123Label(h))
				}
			}
		}
		names := map[string]bool{}
		for j := range s.Ports {
			c.endpointPort(at+".ports["+strconv.Itoa(j)+"]", s.Ports[j].Name, s.Ports[j].Port, len(s.Ports), names)
		}
	}
}

func (c *checker) endpointPort(at, name string, port int32, of int, names map[string]bool) {
	switch {
	case name != "":
		c.all(at+".name", name, validation.IsDNS1123Label(name))
	case of > 1:
		c.fail(at+".name", "is required when there are several ports")
	}
	c.once(at+".name", names, name)
	c.port(at+".port", port)
}

// endpointIP takes addresses of other machines and of pods: not loopback or
// link-local ones, which would lead to this host itself.
func (c *checker) endpointIP(path, value string, family discoveryv1.AddressType) {
	a, err := netip.ParseAddr(value)
	switch {
	case err != nil || a.Zone() != "":
		c.fail(path, "%q is not an IP address", value)
	case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
		c.fail(path, "%s cannot be the address of an endpoint", a)
	case (family == discoveryv1.AddressTypeIPv4 && !a.Is4()) || (family == discoveryv1.AddressTypeIPv6 && !a.Is6()):
		c.fail(path, "%s is not of addressType %s", a, family)
	}
}
