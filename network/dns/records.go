package dns

import "net/netip"

// Records are all names of the cluster domain. Only what is ready belongs in
// here: a name leads to what the Records hold and to nothing else.
type Records struct {
	Services []Service
	Pods     []Pod
}

// Change is how the Records differ from those before: Services and pods as they
// are now, and those that are gone.
type Change struct {
	Set                    Records
	GoneServices, GonePods []ID
}

// ID names a Service or a pod.
type ID struct{ Namespace, Name string }

// Service is the names of one Service. One without cluster IPs and without an
// external name is headless: its name leads to its endpoints.
type Service struct {
	Namespace, Name string
	ClusterIPs      []netip.Addr
	ExternalName    string     // the name is another one of this
	Ports           []Port     // of the cluster IPs
	Endpoints       []Endpoint // of a headless Service
}

// Port has an SRV record. Without a name it is only told to who asks for all
// ports of a Service.
type Port struct {
	Name     string
	Protocol string // "TCP", "UDP", "SCTP"
	Port     uint16
}

// Endpoint is one address behind a headless Service.
type Endpoint struct {
	Hostname string // "": made of the address, as 10-88-0-5
	Addr     netip.Addr
	Ports    []Port
}

// Pod has a name made of each address, as 10-88-0-5.NAMESPACE.pod.
type Pod struct {
	Namespace, Name string
	Addrs           []netip.Addr
}

func (s *Service) headless() bool { return len(s.ClusterIPs) == 0 && s.ExternalName == "" }
