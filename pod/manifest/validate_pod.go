package manifest

import (
	"math"
	"net/netip"
	goruntime "runtime"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

func (c *checker) podSpec(at string, s *corev1.PodSpec) {
	if len(s.Containers) == 0 {
		c.fail(at+".containers", "is required: at least one container")
	}
	volumes := map[string]bool{}
	for i := range s.Volumes {
		p := at + ".volumes[" + strconv.Itoa(i) + "]"
		c.volume(p, s, &s.Volumes[i])
		c.once(p+".name", volumes, s.Volumes[i].Name)
	}
	names, hostPorts := map[string]bool{}, map[string]bool{}
	c.containers(at+".initContainers", s, s.InitContainers, names, volumes, map[string]bool{}, true)
	c.containers(at+".containers", s, s.Containers, names, volumes, hostPorts, false)
	for i, r := range s.ImagePullSecrets {
		p := at + ".imagePullSecrets[" + strconv.Itoa(i) + "].name"
		c.required(p, r.Name)
		if r.Name != "" {
			c.all(p, r.Name, validation.IsDNS1123Subdomain(r.Name))
		}
	}
	if g := s.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		c.fail(at+".terminationGracePeriodSeconds", "%d is negative", *g)
	}
	if s.Hostname != "" {
		c.all(at+".hostname", s.Hostname, validation.IsDNS1123Label(s.Hostname))
	}
	if s.Subdomain != "" {
		c.all(at+".subdomain", s.Subdomain, validation.IsDNS1123Label(s.Subdomain))
	}
	if s.NodeName != "" {
		c.all(at+".nodeName", s.NodeName, validation.IsDNS1123Subdomain(s.NodeName))
	}
	if s.RuntimeClassName != nil {
		c.all(at+".runtimeClassName", *s.RuntimeClassName, validation.IsDNS1123Label(*s.RuntimeClassName))
	}
	c.deadline(at, s)
	c.hostUsers(at, s)
	c.nodeSelector(at+".nodeSelector", s.NodeSelector)
	c.fullName(at, s)
	c.podResources(at+".resources", s)
	if s.HostPID && s.ShareProcessNamespace != nil && *s.ShareProcessNamespace {
		c.fail(at+".shareProcessNamespace", "is not possible together with hostPID")
	}
	c.resolver(at, s)
	c.podSecurity(at+".securityContext", s)
}

// deadline is for pods that are not made again when they end.
func (c *checker) deadline(at string, s *corev1.PodSpec) {
	d := s.ActiveDeadlineSeconds
	if d == nil {
		return
	}
	if c.o.Kind() != KindPod {
		c.fail(at+".activeDeadlineSeconds", "is not possible in a %s: its pods do not end", c.o.Kind())
	}
	if *d < 1 || *d > math.MaxInt32 {
		c.fail(at+".activeDeadlineSeconds", "%d is not possible; use 1 to %d", *d, math.MaxInt32)
	}
}

// hostUsers refuses what a pod with users of its own cannot share with the host.
func (c *checker) hostUsers(at string, s *corev1.PodSpec) {
	if s.HostUsers == nil || *s.HostUsers {
		return
	}
	for _, f := range []struct {
		name string
		set  bool
	}{{"hostNetwork", s.HostNetwork}, {"hostPID", s.HostPID}, {"hostIPC", s.HostIPC}} {
		if f.set {
			c.fail(at+"."+f.name, "is not possible with hostUsers: false")
		}
	}
}

// nodeSelector accepts what every host of this kind is.
func (c *checker) nodeSelector(at string, selector map[string]string) {
	labels := map[string]string{"kubernetes.io/os": "linux", "kubernetes.io/arch": goruntime.GOARCH}
	for _, key := range keysOf(selector) {
		switch want, known := labels[strings.TrimPrefix(key, "beta.")]; {
		case !known:
			c.fail(at+"["+key+"]", "there is one host, which has no such label; remove it%s", hint(key, keysOf(labels)))
		case selector[key] != want:
			c.fail(at+"["+key+"]", "%q is not this host, which is %s", selector[key], want)
		}
	}
}

// fullName checks what the pod calls itself.
func (c *checker) fullName(at string, s *corev1.PodSpec) {
	name := s.HostnameOverride
	if name == nil {
		return
	}
	at += ".hostnameOverride"
	c.all(at, *name, validation.IsDNS1123Subdomain(*name))
	switch {
	case len(*name) > 64:
		c.fail(at, "has %d characters; the kernel takes 64", len(*name))
	case s.HostNetwork:
		c.fail(at, "is not possible with hostNetwork")
	case s.SetHostnameAsFQDN != nil && *s.SetHostnameAsFQDN:
		c.fail(at, "is not possible with setHostnameAsFQDN")
	}
}

func (c *checker) containers(at string, s *corev1.PodSpec, list []corev1.Container, names, volumes, hostPorts map[string]bool, isInit bool) {
	for i := range list {
		p, k := at+"["+strconv.Itoa(i)+"]", &list[i]
		c.container(p, s, k, volumes)
		c.life(p, s, k, isInit)
		c.once(p+".name", names, k.Name)
		for j := range k.Ports {
			c.containerPort(p+".ports["+strconv.Itoa(j)+"]", s, &k.Ports[j], hostPorts)
		}
	}
}

func (c *checker) resolver(at string, s *corev1.PodSpec) {
	for i, a := range s.HostAliases {
		p := at + ".hostAliases[" + strconv.Itoa(i) + "]"
		if _, err := netip.ParseAddr(a.IP); err != nil {
			c.fail(p+".ip", "%q is not an IP address", a.IP)
		}
		for j, h := range a.Hostnames {
			c.all(p+".hostnames["+strconv.Itoa(j)+"]", h, validation.IsDNS1123Subdomain(h))
		}
	}
	d := s.DNSConfig
	if s.DNSPolicy == corev1.DNSNone && (d == nil || len(d.Nameservers) == 0) {
		c.fail(at+".dnsConfig.nameservers", "is required with dnsPolicy None")
	}
	if d == nil {
		return
	}
	if len(d.Nameservers) > 3 {
		c.fail(at+".dnsConfig.nameservers", "holds %d servers; a resolver uses 3 at most", len(d.Nameservers))
	}
	for i, n := range d.Nameservers {
		if _, err := netip.ParseAddr(n); err != nil {
			c.fail(at+".dnsConfig.nameservers["+strconv.Itoa(i)+"]", "%q is not an IP address", n)
		}
	}
	for i, n := range d.Searches {
		c.all(at+".dnsConfig.searches["+strconv.Itoa(i)+"]", n, validation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(n, ".")))
	}
	for i, o := range d.Options {
		if o.Name == "" || strings.ContainsAny(o.Name, " \t\n") || (o.Value != nil && strings.ContainsAny(*o.Value, " \t\n")) {
			c.fail(at+".dnsConfig.options["+strconv.Itoa(i)+"]", "needs a name, and no blanks in name and value")
		}
	}
}

func (c *checker) mode(at string, mode *int32) {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		c.fail(at, "%d is not a file mode; use 0 to 0777", *mode)
	}
}

func (c *checker) required(at, value string) {
	if value == "" {
		c.fail(at, "is required")
	}
}

func (c *checker) label(at, value string) {
	if value == "" {
		c.fail(at, "is required")
		return
	}
	c.all(at, value, validation.IsDNS1123Label(value))
}

func hasDotDot(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}
