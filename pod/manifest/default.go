package manifest

import (
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Default fills in what Kubernetes fills in: namespace, restartPolicy,
// replicas, protocols, target ports and so on. It changes the object in place and
// does nothing the second time.
func Default(o Object) {
	if Namespaced(o.Kind()) && o.Namespace() == "" {
		o.value.SetNamespace("default")
	}
	switch v := o.value.(type) {
	case *corev1.Pod:
		defaultPod(&v.Spec)
	case *appsv1.Deployment:
		defaultDeployment(&v.Spec)
	case *corev1.Service:
		defaultService(&v.Spec)
	case *discoveryv1.EndpointSlice:
		for i := range v.Ports {
			setPointer(&v.Ports[i].Name, "")
			setPointer(&v.Ports[i].Protocol, corev1.ProtocolTCP)
		}
	case *corev1.Endpoints: //nolint:staticcheck // what older manifests have
		for i := range v.Subsets {
			for j := range v.Subsets[i].Ports {
				setDefault(&v.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
			}
		}
	case *corev1.Secret:
		setDefault(&v.Type, corev1.SecretTypeOpaque)
		for key, value := range v.StringData {
			if v.Data == nil {
				v.Data = map[string][]byte{}
			}
			v.Data[key] = []byte(value)
		}
		v.StringData = nil
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func setPointer[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

// defaultDeadline is how many seconds a Deployment may be without progress.
const defaultDeadline = 600

func defaultDeployment(s *appsv1.DeploymentSpec) {
	setPointer(&s.Replicas, 1)
	setPointer(&s.ProgressDeadlineSeconds, defaultDeadline)
	setDefault(&s.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if s.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		setPointer(&s.Strategy.RollingUpdate, appsv1.RollingUpdateDeployment{})
		setPointer(&s.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
		setPointer(&s.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
	}
	defaultPod(&s.Template.Spec)
}

func defaultService(s *corev1.ServiceSpec) {
	setDefault(&s.Type, corev1.ServiceTypeClusterIP)
	setDefault(&s.SessionAffinity, corev1.ServiceAffinityNone)
	setPointer(&s.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	if ForOutside(s) {
		setDefault(&s.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if s.Type == corev1.ServiceTypeLoadBalancer {
		setPointer(&s.AllocateLoadBalancerNodePorts, true)
	}
	if s.SessionAffinity == corev1.ServiceAffinityClientIP {
		setPointer(&s.SessionAffinityConfig, corev1.SessionAffinityConfig{})
		setPointer(&s.SessionAffinityConfig.ClientIP, corev1.ClientIPConfig{})
		setPointer(&s.SessionAffinityConfig.ClientIP.TimeoutSeconds, corev1.DefaultClientIPServiceAffinitySeconds)
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		setDefault(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == (intstr.IntOrString{}) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if s.ClusterIP == "" && len(s.ClusterIPs) > 0 {
		s.ClusterIP = s.ClusterIPs[0]
	}
	if s.ClusterIP != "" && len(s.ClusterIPs) == 0 {
		s.ClusterIPs = []string{s.ClusterIP}
	}
}

// ForOutside tells whether a Service has frontends for clients outside the cluster.
func ForOutside(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer ||
		(s.Type == corev1.ServiceTypeClusterIP && len(s.ExternalIPs) > 0)
}

func defaultPod(s *corev1.PodSpec) {
	setDefault(&s.RestartPolicy, corev1.RestartPolicyAlways)
	setDefault(&s.DNSPolicy, corev1.DNSClusterFirst)
	setPointer(&s.TerminationGracePeriodSeconds, int64(corev1.DefaultTerminationGracePeriodSeconds))
	setPointer(&s.SecurityContext, corev1.PodSecurityContext{})
	if s.Resources != nil {
		defaultRequests(s.Resources)
	}
	for i := range s.Volumes {
		defaultVolume(&s.Volumes[i])
	}
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			defaultContainer(&list[i], s.HostNetwork)
		}
	}
}

func defaultVolume(v *corev1.Volume) {
	if v.HostPath != nil {
		setPointer(&v.HostPath.Type, corev1.HostPathUnset)
	}
	if v.ConfigMap != nil {
		setPointer(&v.ConfigMap.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
	}
	if v.Image != nil {
		setDefault(&v.Image.PullPolicy, pullPolicy(v.Image.Reference))
	}
	if v.Secret != nil {
		setPointer(&v.Secret.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
	}
	if d := v.DownwardAPI; d != nil {
		setPointer(&d.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		defaultFacts(d.Items)
	}
	if p := v.Projected; p != nil {
		setPointer(&p.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
		for i := range p.Sources {
			if d := p.Sources[i].DownwardAPI; d != nil {
				defaultFacts(d.Items)
			}
		}
	}
}

func defaultFacts(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		if f := items[i].FieldRef; f != nil {
			setDefault(&f.APIVersion, "v1")
		}
	}
}

// defaultRequests takes a limit for a request that is not there.
func defaultRequests(r *corev1.ResourceRequirements) {
	for name, limit := range r.Limits {
		if _, set := r.Requests[name]; !set {
			if r.Requests == nil {
				r.Requests = corev1.ResourceList{}
			}
			r.Requests[name] = limit.DeepCopy()
		}
	}
}

func defaultContainer(c *corev1.Container, hostNetwork bool) {
	setDefault(&c.ImagePullPolicy, pullPolicy(c.Image))
	for i := range c.Ports {
		p := &c.Ports[i]
		setDefault(&p.Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			setDefault(&p.HostPort, p.ContainerPort)
		}
	}
	for i := range c.Env {
		if f := c.Env[i].ValueFrom; f != nil && f.FieldRef != nil {
			setDefault(&f.FieldRef.APIVersion, "v1")
		}
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		defaultProbe(p)
	}
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil {
				defaultHTTP(h.HTTPGet)
			}
		}
	}
	defaultRequests(&c.Resources)
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	setDefault(&p.TimeoutSeconds, 1)
	setDefault(&p.PeriodSeconds, 10)
	setDefault(&p.SuccessThreshold, 1)
	setDefault(&p.FailureThreshold, 3)
	defaultHTTP(p.HTTPGet)
	if p.GRPC != nil {
		setPointer(&p.GRPC.Service, "")
	}
}

func defaultHTTP(h *corev1.HTTPGetAction) {
	if h != nil {
		setDefault(&h.Path, "/")
		setDefault(&h.Scheme, corev1.URISchemeHTTP)
	}
}

// pullPolicy is Always for the tag latest, given or implied, else IfNotPresent.
func pullPolicy(image string) corev1.PullPolicy {
	if strings.Contains(image, "@") {
		return corev1.PullIfNotPresent
	}
	last := image[strings.LastIndex(image, "/")+1:]
	if _, tag, ok := strings.Cut(last, ":"); ok && tag != "latest" {
		return corev1.PullIfNotPresent
	}
	return corev1.PullAlways
}

// Sort puts objects in the order in which they are stored: by kind as in Kinds,
// then namespace and name.
func Sort(objects []Object) {
	rank := map[string]int{}
	for i, k := range kinds() {
		rank[k.name] = i
	}
	slices.SortStableFunc(objects, func(a, b Object) int {
		if d := rank[a.Kind()] - rank[b.Kind()]; d != 0 {
			return d
		}
		if d := strings.Compare(a.Namespace(), b.Namespace()); d != 0 {
			return d
		}
		return strings.Compare(a.Name(), b.Name())
	})
}
