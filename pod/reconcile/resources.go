package reconcile

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/runtime"
)

// pidsLimit is how many processes and threads a container may have: far from what
// one needs, and from what a host has (32768), so that a fork bomb hurts itself alone.
const pidsLimit = 4096

// resources turns a container's requests and limits into the cgroup's terms, as
// the kubelet does. A container that asks for no CPU gets the kernel's default share.
func (e *Engine) resources(p *corev1.Pod, c *corev1.Container) runtime.Resources {
	r := asCgroup(&c.Resources)
	r.PidsLimit = pidsLimit
	if e.opts.CgroupV2 {
		// A container that lost one of its processes may go on half dead.
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	adj := oomScoreAdj(p, c)
	r.OOMScoreAdj = &adj
	return r
}

// asCgroup gives requests and limits in the cgroup's terms.
func asCgroup(want *corev1.ResourceRequirements) runtime.Resources {
	r := runtime.Resources{}
	if q, ok := want.Requests[corev1.ResourceCPU]; ok {
		r.CPUShares = uint64(min(max(q.MilliValue()*1024/1000, 2), 262144))
	}
	if q, ok := want.Limits[corev1.ResourceCPU]; ok && !q.IsZero() {
		r.CPUPeriod = 100_000
		r.CPUQuota = max(q.MilliValue()*100, 1000)
	}
	if q, ok := want.Limits[corev1.ResourceMemory]; ok {
		r.MemoryLimit = q.Value()
	}
	for name, q := range want.Limits {
		if size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix); ok {
			if r.Hugepages == nil {
				r.Hugepages = map[string]uint64{}
			}
			r.Hugepages[strings.TrimSuffix(size, "i")+"B"] = uint64(q.Value()) // "2Mi" is the kernel's "2MB"
		}
	}
	return r
}

// qos is the class of a pod: by its own resources if it has some, else by those of
// its containers.
func qos(p *corev1.Pod) corev1.PodQOSClass {
	if r := p.Spec.Resources; r != nil && len(r.Requests)+len(r.Limits) > 0 {
		return class(*r)
	}
	var all []corev1.ResourceRequirements
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		all = append(all, c.Resources)
	}
	return class(all...)
}

func class(all ...corev1.ResourceRequirements) corev1.PodQOSClass {
	asked, complete := false, true
	for _, r := range all {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			want, most := r.Requests[name], r.Limits[name]
			asked = asked || !want.IsZero() || !most.IsZero()
			complete = complete && !most.IsZero() && want.Cmp(most) == 0
		}
	}
	switch {
	case !asked:
		return corev1.PodQOSBestEffort
	case complete:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// oomScoreAdj is the kubelet's: who asks for nothing goes first, who has all
// limits equal to requests goes last. What a pod asks for beyond its containers is
// shared by them.
func oomScoreAdj(p *corev1.Pod, c *corev1.Container) int {
	switch qos(p) {
	case corev1.PodQOSBestEffort:
		return 1000
	case corev1.PodQOSGuaranteed:
		return -997
	}
	total := hostMemory()
	if total == 0 {
		return 999
	}
	request := c.Resources.Requests.Memory().Value()
	if r := p.Spec.Resources; r != nil && len(p.Spec.Containers) > 0 {
		rest := r.Requests.Memory().Value()
		for i := range p.Spec.Containers {
			rest -= p.Spec.Containers[i].Resources.Requests.Memory().Value()
		}
		request += max(rest, 0) / int64(len(p.Spec.Containers))
	}
	return int(min(max(1000-1000*request/total, 3), 999))
}

// hostMemory in bytes, 0 if the kernel does not say.
func hostMemory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return int64(si.Totalram) * int64(si.Unit)
}
