package manifest

import (
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

func (c *checker) container(at string, k *corev1.Container, volumes map[string]bool) {
	c.label(at+".name", k.Name)
	c.image(at+".image", k.Image)
	if k.WorkingDir != "" && !strings.HasPrefix(k.WorkingDir, "/") {
		c.fail(at+".workingDir", "%q is not an absolute path", k.WorkingDir)
	}
	for i := range k.Env {
		c.env(at+".env["+strconv.Itoa(i)+"]", &k.Env[i])
	}
	for i := range k.EnvFrom {
		c.envFrom(at+".envFrom["+strconv.Itoa(i)+"]", &k.EnvFrom[i])
	}
	c.messagePath(at+".terminationMessagePath", k.TerminationMessagePath)
	names := map[string]bool{}
	for i, p := range k.Ports {
		c.once(at+".ports["+strconv.Itoa(i)+"].name", names, p.Name)
	}
	c.resources(at+".resources", &k.Resources)
	resized := map[string]bool{}
	for i, p := range k.ResizePolicy {
		c.once(at+".resizePolicy["+strconv.Itoa(i)+"].resourceName", resized, string(p.ResourceName))
	}
	paths := map[string]bool{}
	for i := range k.VolumeMounts {
		p := at + ".volumeMounts[" + strconv.Itoa(i) + "]"
		c.volumeMount(p, &k.VolumeMounts[i], volumes)
		c.once(p+".mountPath", paths, k.VolumeMounts[i].MountPath)
	}
	if k.StdinOnce && !k.Stdin {
		c.fail(at+".stdinOnce", "is only possible with stdin")
	}
	if k.SecurityContext != nil {
		c.security(at+".securityContext", k.SecurityContext)
	}
}

func (c *checker) image(at, ref string) {
	c.required(at, ref)
	if strings.ContainsAny(ref, " \t\r\n") || len(ref) > 512 {
		c.fail(at, "%q is not a reference of an image", ref)
	}
}

func (c *checker) security(at string, s *corev1.SecurityContext) {
	c.ids(at, s.RunAsUser, s.RunAsGroup)
	if s.RunAsNonRoot != nil && *s.RunAsNonRoot && s.RunAsUser != nil && *s.RunAsUser == 0 {
		c.fail(at+".runAsUser", "0 is root, and runAsNonRoot is true")
	}
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation && s.Privileged != nil && *s.Privileged {
		c.fail(at+".allowPrivilegeEscalation", "false is not possible with privileged")
	}
}

func (c *checker) containerPort(at string, s *corev1.PodSpec, p *corev1.ContainerPort, hostPorts map[string]bool) {
	c.port(at+".containerPort", p.ContainerPort)
	if p.Name != "" {
		c.all(at+".name", p.Name, validation.IsValidPortName(p.Name))
	}
	if p.HostIP != "" {
		if _, err := netip.ParseAddr(p.HostIP); err != nil {
			c.fail(at+".hostIP", "%q is not an IP address", p.HostIP)
		}
	}
	if p.HostPort == 0 {
		return
	}
	c.port(at+".hostPort", p.HostPort)
	if s.HostNetwork && p.HostPort != p.ContainerPort {
		c.fail(at+".hostPort", "%d differs from containerPort %d; with hostNetwork they are the same", p.HostPort, p.ContainerPort)
	}
	proto := string(p.Protocol)
	if proto == "" {
		proto = "TCP"
	}
	c.once(at+".hostPort", hostPorts, strings.TrimSpace(p.HostIP+" "+strconv.Itoa(int(p.HostPort))+"/"+proto))
}

func (c *checker) env(at string, e *corev1.EnvVar) {
	if e.Name == "" {
		c.fail(at+".name", "is required")
	} else {
		c.all(at+".name", e.Name, validation.IsRelaxedEnvVarName(e.Name))
	}
	f := e.ValueFrom
	if f == nil {
		return
	}
	if e.Value != "" {
		c.fail(at+".valueFrom", "is not possible together with value")
	}
	n := 0
	if r := f.ConfigMapKeyRef; r != nil {
		n++
		c.required(at+".valueFrom.configMapKeyRef.name", r.Name)
		c.required(at+".valueFrom.configMapKeyRef.key", r.Key)
	}
	if r := f.SecretKeyRef; r != nil {
		n++
		c.required(at+".valueFrom.secretKeyRef.name", r.Name)
		c.required(at+".valueFrom.secretKeyRef.key", r.Key)
	}
	if r := f.FieldRef; r != nil {
		n++
		c.fieldPath(at+".valueFrom.fieldRef.fieldPath", r.FieldPath)
	}
	if r := f.ResourceFieldRef; r != nil {
		n++
		c.required(at+".valueFrom.resourceFieldRef.resource", r.Resource)
		if r.Divisor.Sign() < 0 {
			c.fail(at+".valueFrom.resourceFieldRef.divisor", "%s is negative", r.Divisor.String())
		}
	}
	if n != 1 {
		c.fail(at+".valueFrom", "has %d sources; use one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef", n)
	}
}

func (c *checker) fieldPath(at, path string) {
	for _, base := range []string{"metadata.labels", "metadata.annotations"} {
		if key, ok := strings.CutPrefix(path, base+"['"); ok && strings.HasSuffix(key, "']") {
			return
		}
	}
	known := []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	for _, k := range known {
		if path == k {
			return
		}
	}
	c.fail(at, "%q is not supported%s", path, hint(path, append(known, "metadata.labels['KEY']", "metadata.annotations['KEY']")))
}

func (c *checker) envFrom(at string, e *corev1.EnvFromSource) {
	switch {
	case e.ConfigMapRef != nil && e.SecretRef != nil:
		c.fail(at, "has two sources; use one")
	case e.ConfigMapRef != nil:
		c.required(at+".configMapRef.name", e.ConfigMapRef.Name)
	case e.SecretRef != nil:
		c.required(at+".secretRef.name", e.SecretRef.Name)
	default:
		c.fail(at, "has no source; use configMapRef or secretRef")
	}
}

func (c *checker) resources(at string, r *corev1.ResourceRequirements) {
	c.amounts(at+".requests", r.Requests)
	c.amounts(at+".limits", r.Limits)
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		want := r.Requests[name]
		if limit, ok := r.Limits[name]; ok && want.Cmp(limit) > 0 {
			c.fail(at+".requests["+string(name)+"]", "%s is more than the limit %s", want.String(), limit.String())
		}
	}
}

func (c *checker) amounts(at string, list corev1.ResourceList) {
	byName := map[string]resource.Quantity{}
	for name, q := range list {
		byName[string(name)] = q
	}
	for _, name := range keysOf(byName) {
		q, p := byName[name], at+"["+name+"]"
		switch {
		case name == "ephemeral-storage" || strings.HasPrefix(name, "hugepages-") || strings.Contains(name, "/"):
			c.fail(p, "is not supported yet")
		case name != "cpu" && name != "memory":
			c.fail(p, "unknown resource%s", hint(name, []string{"cpu", "memory"}))
		case q.Sign() < 0:
			c.fail(p, "%s is negative", q.String())
		case name == "memory" && q.MilliValue()%1000 != 0:
			c.fail(p, "%s is a fraction of a byte; Mi stands for mebibytes", q.String())
		}
	}
}

func (c *checker) volumeMount(at string, m *corev1.VolumeMount, volumes map[string]bool) {
	switch {
	case m.Name == "":
		c.fail(at+".name", "is required")
	case !volumes[m.Name]:
		c.fail(at+".name", "the pod has no volume %q%s", m.Name, hint(m.Name, keysOf(volumes)))
	}
	switch {
	case m.MountPath == "":
		c.fail(at+".mountPath", "is required")
	case !strings.HasPrefix(m.MountPath, "/"):
		c.fail(at+".mountPath", "%q is not an absolute path", m.MountPath)
	case hasDotDot(m.MountPath) || strings.ContainsAny(m.MountPath, ":\x00"):
		c.fail(at+".mountPath", "%q must not have \"..\" or \":\"", m.MountPath)
	}
	if strings.HasPrefix(m.SubPath, "/") || hasDotDot(m.SubPath) || strings.ContainsRune(m.SubPath, 0) {
		c.fail(at+".subPath", "%q is not a relative path without \"..\"", m.SubPath)
	}
}
