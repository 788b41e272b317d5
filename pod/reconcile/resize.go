package reconcile

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

// resizable takes over from the new spec what a running pod can be given: the
// resources of containers and sidecars, unless the pod's class would be another.
func resizable(old, now *corev1.PodSpec) {
	if qos(&corev1.Pod{Spec: *old}) != qos(&corev1.Pod{Spec: *now}) {
		return
	}
	take := func(a, b []corev1.Container, which func(*corev1.Container) bool) {
		for i := range a {
			if i < len(b) && a[i].Name == b[i].Name && which(&b[i]) {
				a[i].Resources = b[i].Resources
			}
		}
	}
	take(old.Containers, now.Containers, func(*corev1.Container) bool { return true })
	take(old.InitContainers, now.InitContainers, manifest.IsSidecar)
}

// resized says whether any container of the new spec has other resources.
func resized(old, now *corev1.PodSpec) bool {
	had := slices.Concat(old.InitContainers, old.Containers)
	has := slices.Concat(now.InitContainers, now.Containers)
	for i := range had {
		if i < len(has) && !same(had[i].Resources, has[i].Resources) {
			return true
		}
	}
	return false
}

// resize gives a running container the resources that its manifest has now. It
// says whether that needs a restart, by the container's resizePolicy.
func (s *podSync) resize(ctx context.Context, c *corev1.Container, last pod.Container) (restart bool, err error) {
	change, cpu, memory := changes(last.Config.Resources, s.e.resources(s.pod, c))
	if !cpu && !memory {
		return false, nil
	}
	for _, p := range c.ResizePolicy {
		if p.RestartPolicy == corev1.RestartContainer && (p.ResourceName == corev1.ResourceCPU && cpu || p.ResourceName == corev1.ResourceMemory && memory) {
			return true, nil
		}
	}
	if err := s.e.pods.Update(ctx, last.ID, change); err != nil {
		return false, fmt.Errorf("resize container %s: %w", c.Name, err)
	}
	return false, nil
}

// Values that take a limit away, where zero means that it stays.
const (
	noLimit   = -1
	minShares = 2 // what a container without a request gets besides others
)

// changes is what leads from what is in force to what is wanted.
func changes(have, want runtime.Resources) (change runtime.Resources, cpu, memory bool) {
	if want.CPUShares == 0 && have.CPUShares != 0 {
		want.CPUShares = minShares
	}
	if want.CPUQuota == 0 && have.CPUQuota != 0 {
		want.CPUQuota, want.CPUPeriod = noLimit, have.CPUPeriod
	}
	if want.MemoryLimit == 0 && have.MemoryLimit != 0 {
		want.MemoryLimit = noLimit
	}
	cpu = have.CPUShares != want.CPUShares || have.CPUQuota != want.CPUQuota || have.CPUPeriod != want.CPUPeriod
	memory = have.MemoryLimit != want.MemoryLimit || have.OOMScoreAdj != nil && *have.OOMScoreAdj != *want.OOMScoreAdj
	return runtime.Resources{
		CPUShares: want.CPUShares, CPUQuota: want.CPUQuota, CPUPeriod: want.CPUPeriod, MemoryLimit: want.MemoryLimit, OOMScoreAdj: want.OOMScoreAdj,
	}, cpu, memory
}

// inForce is what a container has of the resources in its manifest. The runtime
// does not know of requested memory.
func (e *Engine) inForce(p *corev1.Pod, c *corev1.Container, have runtime.Resources) *corev1.ResourceRequirements {
	r := c.Resources.DeepCopy()
	if _, cpu, memory := changes(have, e.resources(p, c)); !cpu && !memory {
		return r
	}
	limit := func(list *corev1.ResourceList, name corev1.ResourceName, q *resource.Quantity) {
		delete(*list, name)
		if q == nil {
			return
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = *q
	}
	var shares, quota, memory *resource.Quantity
	if have.CPUShares > minShares {
		shares = resource.NewMilliQuantity(int64(have.CPUShares)*1000/1024, resource.DecimalSI)
	}
	if have.CPUQuota > 0 && have.CPUPeriod > 0 {
		quota = resource.NewMilliQuantity(have.CPUQuota*1000/int64(have.CPUPeriod), resource.DecimalSI)
	}
	if have.MemoryLimit > 0 {
		memory = resource.NewQuantity(have.MemoryLimit, resource.BinarySI)
	}
	limit(&r.Requests, corev1.ResourceCPU, shares)
	limit(&r.Limits, corev1.ResourceCPU, quota)
	limit(&r.Limits, corev1.ResourceMemory, memory)
	return r
}
