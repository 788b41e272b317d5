package reconcile

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// security merges the pod's and the container's securityContext; the container's wins.
func security(cfg *pod.ContainerConfig, p *corev1.Pod, c *corev1.Container) {
	ps, cs := corev1.PodSecurityContext{}, corev1.SecurityContext{}
	if p.Spec.SecurityContext != nil {
		ps = *p.Spec.SecurityContext
	}
	if c.SecurityContext != nil {
		cs = *c.SecurityContext
	}
	if user := first(cs.RunAsUser, ps.RunAsUser); user != nil {
		cfg.User = strconv.FormatInt(*user, 10)
	}
	cfg.Group = first(cs.RunAsGroup, ps.RunAsGroup)
	cfg.RunAsNonRoot = isTrue(first(cs.RunAsNonRoot, ps.RunAsNonRoot))
	cfg.AdditionalGIDs = ps.SupplementalGroups
	if ps.FSGroup != nil {
		cfg.AdditionalGIDs = append(append([]int64{}, ps.SupplementalGroups...), *ps.FSGroup)
	}
	cfg.StrictGroups = ps.SupplementalGroupsPolicy != nil && *ps.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict
	cfg.ReadonlyRootfs = isTrue(cs.ReadOnlyRootFilesystem)

	sec := &cfg.Security
	sec.Privileged = isTrue(cs.Privileged)
	sec.NoNewPrivs = cs.AllowPrivilegeEscalation != nil && !*cs.AllowPrivilegeEscalation
	if caps := cs.Capabilities; caps != nil {
		for _, name := range caps.Add {
			sec.AddCaps = append(sec.AddCaps, string(name))
		}
		for _, name := range caps.Drop {
			sec.DropCaps = append(sec.DropCaps, string(name))
		}
	}
	sec.Seccomp = "runtime/default"
	profile := first(cs.SeccompProfile, ps.SeccompProfile)
	if sec.Privileged || (profile != nil && profile.Type == corev1.SeccompProfileTypeUnconfined) {
		sec.Seccomp = "unconfined"
	}
}

func first[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// pidsLimit is how many processes and threads a container may have: far from what
// one needs, and from what a host has (32768), so that a fork bomb hurts itself alone.
const pidsLimit = 4096

// resources turns requests and limits into the cgroup's terms, as the kubelet
// does. A container that asks for no CPU gets the kernel's default share.
func resources(c *corev1.Container) runtime.Resources {
	r := runtime.Resources{PidsLimit: pidsLimit}
	if q, ok := c.Resources.Requests[corev1.ResourceCPU]; ok {
		r.CPUShares = uint64(min(max(q.MilliValue()*1024/1000, 2), 262144))
	}
	if q, ok := c.Resources.Limits[corev1.ResourceCPU]; ok && !q.IsZero() {
		r.CPUPeriod = 100_000
		r.CPUQuota = max(q.MilliValue()*100, 1000)
	}
	if q, ok := c.Resources.Limits[corev1.ResourceMemory]; ok {
		r.MemoryLimit = q.Value()
	}
	adj := oomScoreAdj(c)
	r.OOMScoreAdj = &adj
	return r
}

// oomScoreAdj is the kubelet's: who asks for nothing goes first, who has all
// limits equal to requests goes last.
func oomScoreAdj(c *corev1.Container) int {
	request, limit := c.Resources.Requests, c.Resources.Limits
	if len(request)+len(limit) == 0 {
		return 1000
	}
	guaranteed := true
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		want, has := request[name]
		if most, ok := limit[name]; !ok || !has || want.Cmp(most) != 0 {
			guaranteed = false
		}
	}
	if guaranteed {
		return -997
	}
	total := hostMemory()
	if total == 0 {
		return 999
	}
	return int(min(max(1000-1000*request.Memory().Value()/total, 3), 999))
}
