package reconcile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/network/dns"
	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
)

// ClusterDNS is the server that answers for Services and pods.
type ClusterDNS struct {
	Domain    string
	Addrs     []netip.Addr   // cluster IPs of its Service; pods ask the first
	Listeners []dns.Listener // what is behind them
	Set       func(dns.Records)
	Update    func(dns.Change) // after Set
	// Reachable is false while pods cannot reach the server, so that they get the
	// host's resolver instead.
	Reachable func() bool
}

// The built-in Service of the DNS server. One of the same name may be declared:
// then the name is that one's, and the server keeps its address.
const (
	dnsNamespace = "kube-system"
	dnsName      = "kube-dns"
	dnsTitle     = dnsName + ", the built-in one" // no name that can be declared
	dnsKey       = dnsNamespace + "/" + dnsTitle
)

// reserveDNS keeps the built-in Service's addresses from others.
func (e *Engine) reserveDNS() {
	if e.opts.DNS == nil {
		return
	}
	for _, a := range e.opts.DNS.Addrs {
		if err := e.opts.Alloc.ReserveClusterIP(dnsKey, a); err != nil {
			e.log.Error("the address of cluster DNS is not to be had", "error", err)
		}
	}
}

// builtin is the Service of the DNS server, if there is one.
func (e *Engine) builtin() (service.Service, bool) {
	d := e.opts.DNS
	if d == nil {
		return service.Service{}, false
	}
	s := service.Service{Namespace: dnsNamespace, Name: dnsTitle, ClusterIPs: d.Addrs}
	for _, p := range []service.Port{{Name: "dns", Protocol: "UDP", Port: 53}, {Name: "dns-tcp", Protocol: "TCP", Port: 53}} {
		for _, l := range d.Listeners {
			if l.Protocol == p.Protocol {
				p.Endpoints = append(p.Endpoints, l.Addr)
			}
		}
		s.Ports = append(s.Ports, p)
	}
	return s, true
}

// builtinNames are those of the DNS server's Service, while none of its name is declared.
func (e *Engine) builtinNames() (dns.Service, bool) {
	s, ok := e.builtin()
	out := dns.Service{Namespace: dnsNamespace, Name: dnsName, ClusterIPs: s.ClusterIPs}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, dns.Port{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	return out, ok
}

func builtinRef() manifest.Ref {
	return manifest.Ref{Kind: manifest.KindService, Namespace: dnsNamespace, Name: dnsName}
}

// names turns a Service into what the DNS server takes.
func (e *Engine) names(s *corev1.Service, backends []backend) dns.Service {
	out := dns.Service{Namespace: s.Namespace, Name: s.Name}
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		out.ExternalName = s.Spec.ExternalName
		return out
	case s.Spec.ClusterIP != corev1.ClusterIPNone:
		out.ClusterIPs = parseAddrs(s.Spec.ClusterIPs)
		for _, p := range s.Spec.Ports {
			out.Ports = append(out.Ports, dns.Port{Name: p.Name, Protocol: string(p.Protocol), Port: uint16(p.Port)})
		}
		return out
	}
	for _, b := range backends {
		if !b.ready {
			continue
		}
		one := dns.Endpoint{Hostname: b.hostname}
		for _, p := range b.ports {
			one.Ports = append(one.Ports, dns.Port{Name: p.Name, Protocol: string(p.Protocol), Port: uint16(p.Port)})
		}
		for _, ip := range b.addr {
			if one.Addr = ip; wantsFamily(s, ip) {
				out.Endpoints = append(out.Endpoints, one)
			}
		}
	}
	return out
}

// wantsFamily tells whether a headless Service leads to addresses of this family:
// to both, unless it names one.
func wantsFamily(s *corev1.Service, ip netip.Addr) bool {
	return len(s.Spec.IPFamilies) == 0 || slices.Contains(s.Spec.IPFamilies, familyOf(ip))
}

// domain is what follows a pod's hostname in its full name, "" if it has none.
func (e *Engine) domain(p *corev1.Pod) string {
	if e.opts.DNS == nil || p.Spec.Subdomain == "" {
		return ""
	}
	return p.Spec.Subdomain + "." + p.Namespace + ".svc." + e.opts.DNS.Domain
}

// maxHostname is the longest name that the kernel takes.
const maxHostname = 64

// fullName is what a pod calls itself and the domain of that name: its own
// hostname or its name, cut to a label's length. On the host's network it is still
// the pod's: UTS is not shared.
func (e *Engine) fullName(p *corev1.Pod) (hostname, domain string, err error) {
	if o := p.Spec.HostnameOverride; o != nil {
		return *o, "", nil
	}
	hostname = p.Spec.Hostname
	if hostname == "" {
		hostname = p.Name
	}
	hostname, domain = strings.TrimRight(hostname[:min(len(hostname), 63)], "-."), e.domain(p)
	if !isTrue(p.Spec.SetHostnameAsFQDN) || domain == "" {
		return hostname, domain, nil
	}
	hostname += "." + domain
	if len(hostname) > maxHostname {
		return "", "", fmt.Errorf("setHostnameAsFQDN: %s has %d characters, and the kernel takes %d; shorten hostname or subdomain", hostname, len(hostname), maxHostname)
	}
	return hostname, "", nil
}

// usesClusterDNS tells whether a pod asks the cluster's server.
func (e *Engine) usesClusterDNS(s *corev1.PodSpec) bool {
	d := e.opts.DNS
	if d == nil || len(d.Addrs) == 0 || (d.Reachable != nil && !d.Reachable()) {
		return false
	}
	return s.DNSPolicy == corev1.DNSClusterFirstWithHostNet || (s.DNSPolicy == corev1.DNSClusterFirst && !s.HostNetwork)
}

// clusterDNS is the resolver configuration of policy ClusterFirst: the host's
// search domains come after the cluster's.
func (e *Engine) clusterDNS(namespace string, host *pod.DNS) *pod.DNS {
	d := e.opts.DNS
	return &pod.DNS{
		Servers:  []string{d.Addrs[0].String()},
		Searches: appendNew([]string{namespace + ".svc." + d.Domain, "svc." + d.Domain, d.Domain}, host.Searches...),
		Options:  []string{"ndots:5"},
	}
}
