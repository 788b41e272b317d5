package manifest

import (
	"path"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// volume checks that there is one source, and that source.
func (c *checker) volume(at string, s *corev1.PodSpec, v *corev1.Volume) {
	c.label(at+".name", v.Name)
	n := 0
	if v.EmptyDir != nil {
		n++
		c.emptyDir(at+".emptyDir", s, v.EmptyDir)
	}
	if h := v.HostPath; h != nil {
		n++
		if !strings.HasPrefix(h.Path, "/") || hasDotDot(h.Path) {
			c.fail(at+".hostPath.path", "%q is not an absolute path without \"..\"", h.Path)
		}
	}
	f := files{c, map[string]bool{}}
	if m := v.ConfigMap; m != nil {
		n++
		c.required(at+".configMap.name", m.Name)
		f.defaults(at+".configMap", m.DefaultMode, m.DefaultUser)
		f.items(at+".configMap", m.Items)
	}
	if k := v.Secret; k != nil {
		n++
		c.required(at+".secret.secretName", k.SecretName)
		f.defaults(at+".secret", k.DefaultMode, k.DefaultUser)
		f.items(at+".secret", k.Items)
	}
	if d := v.DownwardAPI; d != nil {
		n++
		f.defaults(at+".downwardAPI", d.DefaultMode, d.DefaultUser)
		f.facts(at+".downwardAPI", s, d.Items)
	}
	if p := v.Projected; p != nil {
		n++
		f.defaults(at+".projected", p.DefaultMode, p.DefaultUser)
		f.projected(at+".projected.sources", s, p.Sources)
	}
	if i := v.Image; i != nil {
		n++
		c.image(at+".image.reference", i.Reference)
	}
	switch {
	case n == 0:
		c.fail(at, "has no source; use emptyDir, hostPath, configMap, secret, downwardAPI, projected or image")
	case n > 1:
		c.fail(at, "has %d sources; use one", n)
	}
}

func (c *checker) emptyDir(at string, s *corev1.PodSpec, e *corev1.EmptyDirVolumeSource) {
	if e.SizeLimit != nil && e.SizeLimit.Sign() < 0 {
		c.fail(at+".sizeLimit", "%s is negative", e.SizeLimit)
	}
	if e.Mode != nil && (*e.Mode < 0 || *e.Mode > 0o1777) {
		c.fail(at+".mode", "%d is not a folder's mode; use 0 to 01777", *e.Mode)
	}
	medium := string(e.Medium)
	size, huge := strings.CutPrefix(medium, string(corev1.StorageMediumHugePagesPrefix))
	sizes := Hugepages(s)
	switch {
	case medium == "" || medium == string(corev1.StorageMediumMemory):
	case medium == string(corev1.StorageMediumHugePages):
		if len(sizes) != 1 {
			c.fail(at+".medium", "HugePages needs containers with huge pages of one size; they have %d", len(sizes))
		}
	case !huge:
		c.fail(at+".medium", "%q is not possible; use Memory, HugePages or HugePages-SIZE", medium)
	case !sizes[size]:
		if _, err := resource.ParseQuantity(size); err != nil {
			c.fail(at+".medium", "%q is not the size of a page; write HugePages-2Mi", size)
			return
		}
		c.fail(at+".medium", "no container has a limit for hugepages-%s", size)
	}
}

// files checks the files of one volume, whose paths are different.
type files struct {
	*checker
	paths map[string]bool
}

func (f files) defaults(at string, mode *int32, user *int64) {
	f.mode(at+".defaultMode", mode)
	if user != nil {
		f.id(at+".defaultUser", *user)
	}
}

func (f files) file(at, name string, mode *int32, user *int64) {
	if name == "" || path.IsAbs(name) || hasDotDot(name) || strings.HasPrefix(name, "..") || strings.ContainsRune(name, 0) {
		f.fail(at+".path", "%q is not a relative path without \"..\"", name)
	}
	f.once(at+".path", f.paths, name)
	f.mode(at+".mode", mode)
	if user != nil {
		f.id(at+".user", *user)
	}
}

func (f files) items(at string, items []corev1.KeyToPath) {
	for i, it := range items {
		p := at + ".items[" + strconv.Itoa(i) + "]"
		f.required(p+".key", it.Key)
		f.file(p, it.Path, it.Mode, it.User)
	}
}

// facts checks what a pod is told of itself.
func (f files) facts(at string, s *corev1.PodSpec, items []corev1.DownwardAPIVolumeFile) {
	for i, it := range items {
		p := at + ".items[" + strconv.Itoa(i) + "]"
		f.file(p, it.Path, it.Mode, it.User)
		switch {
		case (it.FieldRef == nil) == (it.ResourceFieldRef == nil):
			f.fail(p, "needs fieldRef or resourceFieldRef, and not both")
		case it.FieldRef != nil:
			f.fileFact(p+".fieldRef.fieldPath", it.FieldRef.FieldPath)
		default:
			f.resourceFact(p+".resourceFieldRef", s, it.ResourceFieldRef)
		}
	}
}

// fileFact: addresses are not known when files are written.
func (f files) fileFact(at, fieldPath string) {
	known := []string{"metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations"}
	if strings.HasPrefix(fieldPath, "spec.") || strings.HasPrefix(fieldPath, "status.") {
		f.fail(at, "%q is not possible in a file; use an environment variable", fieldPath)
		return
	}
	if !slices.Contains(known, fieldPath) {
		f.fieldPath(at, fieldPath)
	}
}

func (f files) resourceFact(at string, s *corev1.PodSpec, r *corev1.ResourceFieldSelector) {
	f.required(at+".resource", r.Resource)
	if r.Divisor.Sign() < 0 {
		f.fail(at+".divisor", "%s is negative", r.Divisor.String())
	}
	all := slices.Concat(s.Containers, s.InitContainers)
	if !slices.ContainsFunc(all, func(k corev1.Container) bool { return k.Name == r.ContainerName }) {
		f.fail(at+".containerName", "the pod has no container %q", r.ContainerName)
	}
}

func (f files) projected(at string, s *corev1.PodSpec, sources []corev1.VolumeProjection) {
	if len(sources) == 0 {
		f.fail(at, "is required: at least one source")
	}
	for i := range sources {
		p, src, n := at+"["+strconv.Itoa(i)+"]", &sources[i], 0
		if m := src.ConfigMap; m != nil {
			n++
			f.required(p+".configMap.name", m.Name)
			f.items(p+".configMap", m.Items)
		}
		if k := src.Secret; k != nil {
			n++
			f.required(p+".secret.name", k.Name)
			f.items(p+".secret", k.Items)
		}
		if d := src.DownwardAPI; d != nil {
			n++
			f.facts(p+".downwardAPI", s, d.Items)
		}
		if n != 1 {
			f.fail(p, "has %d sources; use one of configMap, secret, downwardAPI", n)
		}
	}
}
