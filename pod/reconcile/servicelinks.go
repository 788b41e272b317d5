package reconcile

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
)

// serviceLinks are the variables by which a container finds the Services of its
// namespace, as Kubernetes gives them: those that are there when it is made.
func (e *Engine) serviceLinks(p *corev1.Pod) []pod.EnvVar {
	if l := p.Spec.EnableServiceLinks; l != nil && !*l {
		return nil
	}
	var out []pod.EnvVar
	for _, o := range e.objects.list(manifest.KindService, p.Namespace) {
		s := o.Value().(*corev1.Service)
		if s.DeletionTimestamp == nil && s.Spec.ClusterIP != corev1.ClusterIPNone && s.Spec.ClusterIP != "" && len(s.Spec.Ports) > 0 {
			out = append(out, linksOf(s)...)
		}
	}
	return out
}

func linksOf(s *corev1.Service) []pod.EnvVar {
	var out []pod.EnvVar
	add := func(name, value string) { out = append(out, pod.EnvVar{Name: name, Value: value}) }
	prefix, ip := envName(s.Name), s.Spec.ClusterIP
	add(prefix+"_SERVICE_HOST", ip)
	add(prefix+"_SERVICE_PORT", strconv.Itoa(int(s.Spec.Ports[0].Port)))
	for _, p := range s.Spec.Ports {
		if p.Name != "" {
			add(prefix+"_SERVICE_PORT_"+envName(p.Name), strconv.Itoa(int(p.Port)))
		}
	}
	for i, p := range s.Spec.Ports {
		proto, port := strings.ToLower(string(p.Protocol)), strconv.Itoa(int(p.Port))
		url := fmt.Sprintf("%s://%s", proto, net.JoinHostPort(ip, port))
		if i == 0 {
			add(prefix+"_PORT", url)
		}
		base := prefix + "_PORT_" + port + "_" + strings.ToUpper(proto)
		add(base, url)
		add(base+"_PROTO", proto)
		add(base+"_PORT", port)
		add(base+"_ADDR", ip)
	}
	return out
}

func envName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }
