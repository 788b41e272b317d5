package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// schema is the version of the Kubernetes DNS specification that is served.
const schema = "1.1.0"

// snapshot is every name of the domain and of the addresses. It is never changed.
type snapshot struct {
	domain string           // with the dot at its end
	serial uint32           // of the SOA record
	names  map[string]*node // lower case, with the dot at its end
	ptrs   map[netip.Addr][]string
}

// node is what one name has. One without anything stands between the names
// below it and the domain: it exists, and has no data.
type node struct {
	addrs []netip.Addr
	srv   []target
	cname string
	text  string
	apex  bool
}

// target is the other half of an SRV record.
type target struct {
	name string
	port uint16
}

// build makes the snapshot of the records. Names that are no DNS names are left
// out: they could not be asked for.
func build(domain string, serial uint32, r *Records) *snapshot {
	s := &snapshot{domain: domain, serial: serial, names: map[string]*node{}, ptrs: map[netip.Addr][]string{}}
	s.node(domain).apex = true
	s.node("svc." + domain)
	s.node("pod." + domain)
	s.node("dns-version." + domain).text = schema
	for i := range r.Services {
		s.service(&r.Services[i])
	}
	for _, p := range r.Pods {
		for _, a := range p.Addrs {
			s.addAddr(dashed(a)+"."+p.Namespace+".pod."+domain, a)
		}
	}
	for _, list := range s.ptrs {
		slices.Sort(list)
	}
	return s
}

// node is that of a name within the domain; the names above it come to be with it.
func (s *snapshot) node(name string) *node {
	name = strings.ToLower(name)
	n := s.names[name]
	if n == nil {
		n = &node{}
		s.names[name] = n
		if _, above, _ := strings.Cut(name, "."); name != s.domain && len(above) >= len(s.domain) {
			s.node(above)
		}
	}
	return n
}

func (s *snapshot) addAddr(name string, a netip.Addr) {
	n := s.node(name)
	if !slices.Contains(n.addrs, a) {
		n.addrs = append(n.addrs, a)
	}
}

func (s *snapshot) addPTR(a netip.Addr, name string) {
	if !slices.Contains(s.ptrs[a], name) {
		s.ptrs[a] = append(s.ptrs[a], name)
	}
}

func (s *snapshot) service(svc *Service) {
	name := strings.ToLower(svc.Name + "." + svc.Namespace + ".svc." + s.domain)
	if _, ok := dns.IsDomainName(name); !ok {
		return
	}
	n := s.node(name) // without an endpoint, it exists all the same
	switch {
	case svc.ExternalName != "":
		n.cname = strings.ToLower(dns.Fqdn(svc.ExternalName))
	case svc.headless():
		for i := range svc.Endpoints {
			s.endpoint(name, &svc.Endpoints[i])
		}
	default:
		for _, a := range svc.ClusterIPs {
			s.addAddr(name, a)
			s.addPTR(a, name)
		}
		s.addPorts(name, name, svc.Ports)
	}
}

func (s *snapshot) endpoint(service string, e *Endpoint) {
	host := e.Hostname
	if host == "" {
		host = dashed(e.Addr)
	}
	name := strings.ToLower(host + "." + service)
	s.addAddr(service, e.Addr)
	s.addAddr(name, e.Addr)
	s.addPTR(e.Addr, name)
	s.addPorts(service, name, e.Ports)
}

// addPorts writes the SRV records of a Service that lead to one name.
func (s *snapshot) addPorts(service, leadsTo string, ports []Port) {
	for _, p := range ports {
		t := target{leadsTo, p.Port}
		names := []string{service}
		if p.Name != "" {
			names = append(names, "_"+p.Name+"._"+strings.ToLower(p.Protocol)+"."+service)
		}
		for _, name := range names {
			n := s.node(name)
			if !slices.Contains(n.srv, t) {
				n.srv = append(n.srv, t)
			}
		}
	}
}

// dashed is an address as a label: 10-88-0-5, fd88--5.
func dashed(a netip.Addr) string {
	text := strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
	if a.Is6() { // a label neither begins nor ends with a dash
		if strings.HasPrefix(text, "-") {
			text = "0" + text
		}
		if strings.HasSuffix(text, "-") {
			text += "0"
		}
	}
	return text
}

// within tells whether a name in lower case is the domain or below it.
func within(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}

// reverseAddr is the address that a whole name of in-addr.arpa or ip6.arpa stands for.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		octets := strings.Split(rest, ".")
		slices.Reverse(octets)
		a, err := netip.ParseAddr(strings.Join(octets, "."))
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	nibbles := strings.Split(rest, ".")
	if !ok || len(nibbles) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(nibbles)
	var b strings.Builder
	for i, n := range nibbles {
		if len(n) != 1 {
			return netip.Addr{}, false
		}
		if i > 0 && i%4 == 0 {
			b.WriteByte(':')
		}
		b.WriteString(n)
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && a.Zone() == ""
}
