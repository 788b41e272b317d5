package dns

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// schema is the version of the Kubernetes DNS specification that is served.
const schema = "1.1.0"

// zone is every name of the domain and of the addresses. A change replaces the
// names of the Services and pods that it concerns, and nothing else.
type zone struct {
	domain string // with the dot at its end

	mu     sync.RWMutex     // guards what follows, for as long as one answer takes
	serial uint32           // of the SOA record
	names  map[string]*node // lower case, with the dot at its end
	ptrs   map[netip.Addr][]string
	owned  map[owner]belongings
}

// node is what one name has. One without anything stands between the names
// below it and the domain: it exists, and has no data.
type node struct {
	data
	users int // who gave it the data
	held  int // these, and the nodes right below it
}

type data struct {
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

// owner is a Service or a pod.
type owner struct {
	pod bool
	ID
}

// belongings are what one owner has in the zone.
type belongings struct {
	names []string
	ptrs  []pointer
}

// names are those of one owner with their data.
type names struct {
	list  []named
	index map[string]int // of list; nil: it is short
	ptrs  []pointer
}

type named struct {
	name string
	data
}

type pointer struct {
	addr netip.Addr
	name string
}

// build makes the zone of the records. Names that are no DNS names are left
// out: they could not be asked for.
func build(domain string, serial uint32, r *Records) *zone {
	z := &zone{domain: domain, serial: serial, names: map[string]*node{}, ptrs: map[netip.Addr][]string{}, owned: map[owner]belongings{}}
	z.add(named{domain, data{apex: true}})
	z.add(named{name: "svc." + domain})
	z.add(named{name: "pod." + domain})
	z.add(named{"dns-version." + domain, data{text: schema}})
	z.set(r)
	return z
}

// change is build for some owners; all others keep what they have.
func (z *zone) change(serial uint32, c *Change) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.serial = serial
	for _, id := range c.GoneServices {
		z.replace(owner{ID: id}, nil)
	}
	for _, id := range c.GonePods {
		z.replace(owner{true, id}, nil)
	}
	z.set(&c.Set)
}

func (z *zone) set(r *Records) {
	for i := range r.Services {
		s := &r.Services[i]
		z.replace(owner{ID: ID{s.Namespace, s.Name}}, z.service(s))
	}
	for i := range r.Pods {
		p := &r.Pods[i]
		z.replace(owner{true, ID{p.Namespace, p.Name}}, z.pod(p))
	}
}

// replace gives an owner its names, in place of those that it had.
func (z *zone) replace(o owner, n *names) {
	had := z.owned[o]
	delete(z.owned, o)
	if n != nil {
		has := belongings{ptrs: n.ptrs}
		for _, one := range n.list {
			z.add(one)
			has.names = append(has.names, one.name)
		}
		for _, p := range n.ptrs {
			z.point(p)
		}
		z.owned[o] = has
	}
	for _, name := range had.names {
		z.remove(name)
	}
	for _, p := range had.ptrs {
		z.unpoint(p)
	}
}

// add gives a name its data; the names above it come to be with it.
func (z *zone) add(n named) {
	at := z.hold(n.name)
	at.users++
	at.data = n.data
}

func (z *zone) hold(name string) *node {
	n := z.names[name]
	if n == nil {
		n = &node{}
		z.names[name] = n
		if above, ok := z.above(name); ok {
			z.hold(above)
		}
	}
	n.held++
	return n
}

// remove is the reverse of add.
func (z *zone) remove(name string) {
	n := z.names[name]
	if n == nil {
		return
	}
	if n.users--; n.users == 0 {
		n.data = data{}
	}
	z.release(name, n)
}

func (z *zone) release(name string, n *node) {
	if n.held--; n.held > 0 {
		return
	}
	delete(z.names, name)
	if above, ok := z.above(name); ok {
		z.release(above, z.names[above])
	}
}

// above is the name one label up, within the domain.
func (z *zone) above(name string) (string, bool) {
	_, above, _ := strings.Cut(name, ".")
	return above, name != z.domain && len(above) >= len(z.domain)
}

// point and unpoint keep the names of an address sorted, each as often as it was given.
func (z *zone) point(p pointer) {
	list := z.ptrs[p.addr]
	i, _ := slices.BinarySearch(list, p.name)
	z.ptrs[p.addr] = slices.Insert(list, i, p.name)
}

func (z *zone) unpoint(p pointer) {
	list := z.ptrs[p.addr]
	if i, ok := slices.BinarySearch(list, p.name); ok {
		list = slices.Delete(list, i, i+1)
	}
	if z.ptrs[p.addr] = list; len(list) == 0 {
		delete(z.ptrs, p.addr)
	}
}

// at is the entry of a name, a new one if there is none.
func (n *names) at(name string) *data {
	i, ok := n.index[name]
	if n.index == nil {
		i = slices.IndexFunc(n.list, func(o named) bool { return o.name == name })
		ok = i >= 0
	}
	if !ok {
		i = len(n.list)
		n.list = append(n.list, named{name: name})
		if n.index != nil {
			n.index[name] = i
		}
	}
	return &n.list[i].data
}

func (n *names) addAddr(name string, a netip.Addr) {
	if d := n.at(name); !slices.Contains(d.addrs, a) {
		d.addrs = append(d.addrs, a)
	}
}

func (n *names) addPTR(a netip.Addr, name string) {
	if p := (pointer{a, name}); !slices.Contains(n.ptrs, p) {
		n.ptrs = append(n.ptrs, p)
	}
}

// service lists the names of a Service; nil if it cannot have one.
func (z *zone) service(svc *Service) *names {
	name := strings.ToLower(svc.Name + "." + svc.Namespace + ".svc." + z.domain)
	if _, ok := dns.IsDomainName(name); !ok {
		return nil
	}
	n := &names{}
	if len(svc.Endpoints) > 0 {
		n.index = map[string]int{}
	}
	own := n.at(name) // without an endpoint, it exists all the same
	switch {
	case svc.ExternalName != "":
		own.cname = strings.ToLower(dns.Fqdn(svc.ExternalName))
	case svc.headless():
		n.endpoints(name, svc.Endpoints)
	default:
		for _, a := range svc.ClusterIPs {
			n.addAddr(name, a)
			n.addPTR(a, name)
		}
		n.addPorts(name, name, svc.Ports)
	}
	return n
}

func (z *zone) pod(p *Pod) *names {
	n := &names{}
	for _, a := range p.Addrs {
		n.addAddr(strings.ToLower(dashed(a)+"."+p.Namespace+".pod."+z.domain), a)
	}
	return n
}

func (n *names) endpoints(service string, list []Endpoint) {
	for i := range list {
		e := &list[i]
		host := e.Hostname
		if host == "" {
			host = dashed(e.Addr)
		}
		name := strings.ToLower(host + "." + service)
		n.addAddr(service, e.Addr)
		n.addAddr(name, e.Addr)
		n.addPTR(e.Addr, name)
		n.addPorts(service, name, e.Ports)
	}
}

// addPorts writes the SRV records of a Service that lead to one name.
func (n *names) addPorts(service, leadsTo string, ports []Port) {
	for _, p := range ports {
		t := target{leadsTo, p.Port}
		list := []string{service}
		if p.Name != "" {
			list = append(list, strings.ToLower("_"+p.Name+"._"+p.Protocol+"."+service))
		}
		for _, name := range list {
			if d := n.at(name); !slices.Contains(d.srv, t) {
				d.srv = append(d.srv, t)
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
