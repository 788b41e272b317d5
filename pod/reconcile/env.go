package reconcile

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	goruntime "runtime"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
)

// podFacts are what a fieldRef may ask for besides the object.
type podFacts struct {
	nodeName string
	hostIPs  []string
	podIPs   []string
}

// environment resolves the links to Services, envFrom and env, in this order; later
// names win, and $(NAME) stands for what came before.
func environment(p *corev1.Pod, c *corev1.Container, links []pod.EnvVar, facts podFacts, find lookup) ([]pod.EnvVar, error) {
	var out []pod.EnvVar
	vars := map[string]string{}
	add := func(name, value string) {
		if _, ok := vars[name]; ok {
			out = slices.DeleteFunc(out, func(e pod.EnvVar) bool { return e.Name == name })
		}
		vars[name] = value
		out = append(out, pod.EnvVar{Name: name, Value: value})
	}
	for _, l := range links {
		add(l.Name, l.Value)
	}
	for i := range c.EnvFrom {
		data, err := envFrom(p, &c.EnvFrom[i], find)
		if err != nil {
			return nil, fmt.Errorf("envFrom[%d]: %w", i, err)
		}
		for _, key := range slices.Sorted(maps.Keys(data)) {
			add(c.EnvFrom[i].Prefix+key, string(data[key]))
		}
	}
	for i := range c.Env {
		e := &c.Env[i]
		value, ok := expand(e.Value, vars), true
		if e.ValueFrom != nil {
			var err error
			if value, ok, err = envValue(p, c, e.ValueFrom, facts, find); err != nil {
				return nil, fmt.Errorf("env %s: %w", e.Name, err)
			}
		}
		if ok {
			add(e.Name, value)
		}
	}
	return out, nil
}

func isTrue(b *bool) bool { return b != nil && *b }

func envFrom(p *corev1.Pod, e *corev1.EnvFromSource, find lookup) (map[string][]byte, error) {
	kind, name, optional := manifest.KindConfigMap, "", false
	if r := e.ConfigMapRef; r != nil {
		name, optional = r.Name, isTrue(r.Optional)
	}
	if r := e.SecretRef; r != nil {
		kind, name, optional = manifest.KindSecret, r.Name, isTrue(r.Optional)
	}
	o, ok := find(kind, p.Namespace, name)
	if !ok {
		if optional {
			return nil, nil
		}
		return nil, fmt.Errorf("%s %s/%s does not exist; apply it, or set optional: true", kind, p.Namespace, name)
	}
	return contentOf(o), nil
}

// envValue resolves a valueFrom; ok is false if it is optional and not there.
func envValue(p *corev1.Pod, c *corev1.Container, f *corev1.EnvVarSource, facts podFacts, find lookup) (value string, ok bool, err error) {
	switch {
	case f.ConfigMapKeyRef != nil:
		r := f.ConfigMapKeyRef
		return keyValue(manifest.KindConfigMap, p.Namespace, r.Name, r.Key, isTrue(r.Optional), find)
	case f.SecretKeyRef != nil:
		r := f.SecretKeyRef
		return keyValue(manifest.KindSecret, p.Namespace, r.Name, r.Key, isTrue(r.Optional), find)
	case f.FieldRef != nil:
		value, err = fieldValue(p, f.FieldRef.FieldPath, facts)
		return value, true, err
	case f.ResourceFieldRef != nil:
		value, err = resourceValue(p, c, f.ResourceFieldRef)
		return value, true, err
	}
	return "", false, errors.New("valueFrom has no source")
}

func keyValue(kind, namespace, name, key string, optional bool, find lookup) (string, bool, error) {
	o, ok := find(kind, namespace, name)
	if ok {
		if value, ok := contentOf(o)[key]; ok {
			return string(value), true, nil
		}
	}
	switch {
	case optional:
		return "", false, nil
	case ok:
		return "", false, fmt.Errorf("%s %s/%s has no key %q", kind, namespace, name, key)
	}
	return "", false, fmt.Errorf("%s %s/%s does not exist; apply it, or set optional: true", kind, namespace, name)
}

func fieldValue(p *corev1.Pod, path string, facts podFacts) (string, error) {
	first := func(list []string) string {
		if len(list) == 0 {
			return ""
		}
		return list[0]
	}
	for base, m := range map[string]map[string]string{"metadata.labels": p.Labels, "metadata.annotations": p.Annotations} {
		if key, ok := strings.CutPrefix(path, base+"['"); ok {
			return m[strings.TrimSuffix(key, "']")], nil
		}
	}
	switch path {
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "spec.nodeName":
		return facts.nodeName, nil
	case "status.hostIP":
		return first(facts.hostIPs), nil
	case "status.hostIPs":
		return strings.Join(facts.hostIPs, ","), nil
	case "status.podIP":
		return first(facts.podIPs), nil
	case "status.podIPs":
		return strings.Join(facts.podIPs, ","), nil
	}
	return "", fmt.Errorf("fieldPath %q is not supported", path)
}

// resourceValue is a request or limit divided by the divisor, rounded up; without
// a limit it is what the host has.
func resourceValue(p *corev1.Pod, c *corev1.Container, r *corev1.ResourceFieldSelector) (string, error) {
	if r.ContainerName != "" && (c == nil || r.ContainerName != c.Name) {
		all := slices.Concat(p.Spec.Containers, p.Spec.InitContainers)
		i := slices.IndexFunc(all, func(k corev1.Container) bool { return k.Name == r.ContainerName })
		if i < 0 {
			return "", fmt.Errorf("the pod has no container %q", r.ContainerName)
		}
		c = &all[i]
	}
	which, name, _ := strings.Cut(r.Resource, ".")
	list := c.Resources.Limits
	if which == "requests" {
		list = c.Resources.Requests
	}
	q, ok := list[corev1.ResourceName(name)]
	if !ok && which == "limits" {
		q = hostCapacity(name)
	}
	divisor := r.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == "cpu" {
		return strconv.FormatInt(divideUp(q.MilliValue(), divisor.MilliValue()), 10), nil
	}
	return strconv.FormatInt(divideUp(q.Value(), divisor.Value()), 10), nil
}

func divideUp(a, b int64) int64 { return int64(math.Ceil(float64(a) / float64(max(b, 1)))) }

func hostCapacity(name string) resource.Quantity {
	if name == "cpu" {
		return *resource.NewQuantity(int64(goruntime.NumCPU()), resource.DecimalSI)
	}
	return *resource.NewQuantity(hostMemory(), resource.BinarySI)
}

// expand replaces $(NAME) by the variable's value; $$(NAME) is a literal $(NAME),
// and an unknown name stays as it is.
func expand(s string, vars map[string]string) string {
	return expandBy(s, func(name string) string {
		if value, ok := vars[name]; ok {
			return value
		}
		return "$(" + name + ")"
	})
}

// expandBy is expand with the values of the given function.
func expandBy(s string, value func(name string) string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		s = s[i:]
		switch s[1] {
		case '$':
			b.WriteByte('$')
			s = s[2:]
		case '(':
			end := strings.IndexByte(s, ')')
			if end < 0 {
				b.WriteString(s)
				return b.String()
			}
			b.WriteString(value(s[2:end]))
			s = s[end+1:]
		default:
			b.WriteByte('$')
			s = s[1:]
		}
	}
}
