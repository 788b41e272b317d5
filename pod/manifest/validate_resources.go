package manifest

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Hugepages are the sizes of huge pages that containers of a pod ask for, as "2Mi".
func Hugepages(s *corev1.PodSpec) map[string]bool {
	out := map[string]bool{}
	for _, k := range slices.Concat(s.InitContainers, s.Containers) {
		for name := range k.Resources.Limits {
			if size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix); ok {
				out[size] = true
			}
		}
	}
	return out
}

func (c *checker) resources(at string, r *corev1.ResourceRequirements) {
	c.amounts(at+".requests", r.Requests)
	c.amounts(at+".limits", r.Limits)
	names := map[string]bool{}
	for _, list := range []corev1.ResourceList{r.Requests, r.Limits} {
		for name := range list {
			names[string(name)] = true
		}
	}
	for _, name := range keysOf(names) {
		want, asked := r.Requests[corev1.ResourceName(name)]
		limit, limited := r.Limits[corev1.ResourceName(name)]
		p := at + ".requests[" + name + "]"
		switch {
		case isHuge(name) && !limited:
			c.fail(p, "needs a limit: huge pages are not shared")
		case isHuge(name) && asked && want.Cmp(limit) != 0:
			c.fail(p, "%s differs from the limit %s; huge pages are not shared", want.String(), limit.String())
		case asked && limited && want.Cmp(limit) > 0:
			c.fail(p, "%s is more than the limit %s", want.String(), limit.String())
		}
		if isHuge(name) && !names["cpu"] && !names["memory"] {
			c.fail(at+".limits["+name+"]", "needs cpu or memory beside it")
		}
	}
}

func isHuge(name string) bool { return strings.HasPrefix(name, corev1.ResourceHugePagesPrefix) }

func (c *checker) amounts(at string, list corev1.ResourceList) {
	byName := map[string]resource.Quantity{}
	for name, q := range list {
		byName[string(name)] = q
	}
	for _, name := range keysOf(byName) {
		q, p := byName[name], at+"["+name+"]"
		switch {
		case name == "ephemeral-storage":
			c.fail(p, "is not supported: what a container writes is not counted; use an emptyDir of medium Memory with a sizeLimit")
		case strings.Contains(name, "/"):
			c.fail(p, "is not supported: there are no device plugins; use an annotation cdi.k8s.io/NAME with the name of a CDI device")
		case isHuge(name):
			c.hugepages(p, strings.TrimPrefix(name, corev1.ResourceHugePagesPrefix), q)
		case name != "cpu" && name != "memory":
			c.fail(p, "unknown resource%s", hint(name, []string{"cpu", "memory"}))
		case q.Sign() < 0:
			c.fail(p, "%s is negative", q.String())
		case name == "memory" && q.MilliValue()%1000 != 0:
			c.fail(p, "%s is a fraction of a byte; Mi stands for mebibytes", q.String())
		}
	}
}

// hugepages wants whole pages of a size that is a power of two.
func (c *checker) hugepages(at, size string, q resource.Quantity) {
	page, err := resource.ParseQuantity(size)
	n := page.Value()
	switch {
	case err != nil || n <= 0 || n&(n-1) != 0 || page.String() != size:
		c.fail(at, "%q is not the size of a page; write one like hugepages-2Mi", size)
	case q.Sign() < 0 || q.Value()%n != 0:
		c.fail(at, "%s is not a number of pages of %s", q.String(), size)
	}
}

// podResources checks what a pod asks for besides and above its containers.
func (c *checker) podResources(at string, s *corev1.PodSpec) {
	if s.Resources == nil {
		return
	}
	c.resources(at, s.Resources)
	for i := range s.Containers {
		k := &s.Containers[i]
		for _, name := range slices.Sorted(maps.Keys(k.Resources.Limits)) {
			limit := k.Resources.Limits[name]
			if most, ok := s.Resources.Limits[name]; ok && limit.Cmp(most) > 0 {
				c.fail(strings.TrimSuffix(at, "resources")+"containers["+strconv.Itoa(i)+"].resources.limits["+string(name)+"]", "%s is more than the pod's limit %s", limit.String(), most.String())
			}
		}
	}
	total := corev1.ResourceList{}
	for i := range s.Containers {
		for name, q := range s.Containers[i].Resources.Requests {
			sum := total[name]
			sum.Add(q)
			total[name] = sum
		}
	}
	for _, name := range slices.Sorted(maps.Keys(total)) {
		sum := total[name]
		if q, ok := s.Resources.Requests[name]; ok && sum.Cmp(q) > 0 {
			c.fail(at+".requests["+string(name)+"]", "%s is less than the %s that the containers request together", q.String(), sum.String())
		}
	}
}
