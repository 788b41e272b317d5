package manifest

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

func (c *checker) container(at string, s *corev1.PodSpec, k *corev1.Container, volumes map[string]bool) {
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
		c.mountMode(p, s, k, &k.VolumeMounts[i])
		c.once(p+".mountPath", paths, k.VolumeMounts[i].MountPath)
	}
	if k.StdinOnce && !k.Stdin {
		c.fail(at+".stdinOnce", "is only possible with stdin")
	}
	if k.SecurityContext != nil {
		c.security(at+".securityContext", k.SecurityContext, s)
	}
}

func (c *checker) image(at, ref string) {
	c.required(at, ref)
	if strings.ContainsAny(ref, " \t\r\n") || len(ref) > 512 {
		c.fail(at, "%q is not a reference of an image", ref)
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
	c.below(at+".subPath", m.SubPath)
	c.below(at+".subPathExpr", m.SubPathExpr)
	if m.SubPath != "" && m.SubPathExpr != "" {
		c.fail(at+".subPathExpr", "is not possible together with subPath")
	}
}

// below wants a path below another one, or none.
func (c *checker) below(at, sub string) {
	if strings.HasPrefix(sub, "/") || hasDotDot(sub) || strings.ContainsRune(sub, 0) {
		c.fail(at, "%q is not a relative path without \"..\"", sub)
	}
}

// mountMode checks how a volume is mounted.
func (c *checker) mountMode(at string, s *corev1.PodSpec, k *corev1.Container, m *corev1.VolumeMount) {
	image := slices.ContainsFunc(s.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name && v.Image != nil })
	propagation := corev1.MountPropagationNone
	if m.MountPropagation != nil {
		propagation = *m.MountPropagation
	}
	if propagation == corev1.MountPropagationBidirectional && !isPrivileged(k) {
		c.fail(at+".mountPropagation", "Bidirectional is only possible in a privileged container")
	}
	if propagation != corev1.MountPropagationNone && image {
		c.fail(at+".mountPropagation", "%s is not possible with an image volume", propagation)
	}
	if r := m.RecursiveReadOnly; r != nil && *r != corev1.RecursiveReadOnlyDisabled {
		if !m.ReadOnly {
			c.fail(at+".recursiveReadOnly", "%s is only possible with readOnly: true", *r)
		}
		if propagation != corev1.MountPropagationNone {
			c.fail(at+".recursiveReadOnly", "%s is not possible with mountPropagation %s", *r, propagation)
		}
	}
	if len(m.BindMountOptions) > 0 && image {
		c.fail(at+".bindMountOptions", "is not possible with an image volume")
	}
	seen := map[string]bool{}
	for i, o := range m.BindMountOptions {
		p := at + ".bindMountOptions[" + strconv.Itoa(i) + "]"
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			c.fail(p, "%q is not possible; use noexec, nodev or nosuid", o)
		}
		c.once(p, seen, o)
	}
}
