package manifest

import (
	"net/netip"
	"regexp"
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
		c.volume(p, &s.Volumes[i])
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
	if s.HostPID && s.ShareProcessNamespace != nil && *s.ShareProcessNamespace {
		c.fail(at+".shareProcessNamespace", "is not possible together with hostPID")
	}
	c.resolver(at, s)
	c.podSecurity(at+".securityContext", s)
}

func (c *checker) containers(at string, s *corev1.PodSpec, list []corev1.Container, names, volumes, hostPorts map[string]bool, isInit bool) {
	for i := range list {
		p, k := at+"["+strconv.Itoa(i)+"]", &list[i]
		c.container(p, k, volumes)
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

func (c *checker) podSecurity(at string, s *corev1.PodSpec) {
	sc := s.SecurityContext
	if sc == nil {
		return
	}
	c.ids(at, sc.RunAsUser, sc.RunAsGroup)
	if sc.FSGroup != nil {
		c.id(at+".fsGroup", *sc.FSGroup)
	}
	for i, g := range sc.SupplementalGroups {
		c.id(at+".supplementalGroups["+strconv.Itoa(i)+"]", g)
	}
	for i, y := range sc.Sysctls {
		p := at + ".sysctls[" + strconv.Itoa(i) + "]"
		switch name := strings.ReplaceAll(y.Name, "/", "."); {
		case !regexp.MustCompile(`^[a-z0-9]([-_a-z0-9.]*[a-z0-9])?$`).MatchString(name) || strings.Contains(name, ".."):
			c.fail(p+".name", "%q is not the name of a sysctl", y.Name)
		case strings.HasPrefix(name, "net."):
			if s.HostNetwork {
				c.fail(p+".name", "%q is not possible with hostNetwork", y.Name)
			}
		case isIPCSysctl(name):
			if s.HostIPC {
				c.fail(p+".name", "%q is not possible with hostIPC", y.Name)
			}
		default:
			c.fail(p+".name", "%q would change the whole host; only net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* are a pod's own", y.Name)
		}
	}
}

func isIPCSysctl(name string) bool {
	return strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") ||
		name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue.")
}

func (c *checker) ids(at string, user, group *int64) {
	if user != nil {
		c.id(at+".runAsUser", *user)
	}
	if group != nil {
		c.id(at+".runAsGroup", *group)
	}
}

func (c *checker) id(at string, id int64) {
	if id < 0 || id > 1<<31-1 {
		c.fail(at, "%d is not an id; use 0 to %d", id, int64(1<<31-1))
	}
}

// volume checks that there is one source, and that source.
func (c *checker) volume(at string, v *corev1.Volume) {
	c.label(at+".name", v.Name)
	n := 0
	if e := v.EmptyDir; e != nil {
		n++
		if e.SizeLimit != nil && e.SizeLimit.Sign() < 0 {
			c.fail(at+".emptyDir.sizeLimit", "%s is negative", e.SizeLimit)
		}
	}
	if h := v.HostPath; h != nil {
		n++
		if !strings.HasPrefix(h.Path, "/") || hasDotDot(h.Path) {
			c.fail(at+".hostPath.path", "%q is not an absolute path without \"..\"", h.Path)
		}
	}
	if m := v.ConfigMap; m != nil {
		n++
		c.required(at+".configMap.name", m.Name)
		c.items(at+".configMap", m.Items, m.DefaultMode)
	}
	if s := v.Secret; s != nil {
		n++
		c.required(at+".secret.secretName", s.SecretName)
		c.items(at+".secret", s.Items, s.DefaultMode)
	}
	if i := v.Image; i != nil {
		n++
		c.image(at+".image.reference", i.Reference)
	}
	switch {
	case n == 0:
		c.fail(at, "has no source; use emptyDir, hostPath, configMap, secret or image")
	case n > 1:
		c.fail(at, "has %d sources; use one", n)
	}
}

func (c *checker) items(at string, items []corev1.KeyToPath, mode *int32) {
	c.mode(at+".defaultMode", mode)
	paths := map[string]bool{}
	for i, it := range items {
		p := at + ".items[" + strconv.Itoa(i) + "]"
		c.required(p+".key", it.Key)
		if it.Path == "" || strings.HasPrefix(it.Path, "/") || hasDotDot(it.Path) || strings.HasPrefix(it.Path, "..") {
			c.fail(p+".path", "%q is not a relative path without \"..\"", it.Path)
		}
		c.once(p+".path", paths, it.Path)
		c.mode(p+".mode", it.Mode)
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
