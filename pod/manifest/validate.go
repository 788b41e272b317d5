package manifest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// maxData is what a ConfigMap or a Secret may hold, in bytes.
const maxData = 1 << 20

// Validate checks what the types alone do not say: required fields, names,
// ranges, references within the object. It accepts objects with and without
// defaults. All that is wrong is in the error (errors.Join of *Error).
func Validate(o Object) error {
	c := &checker{o: o}
	c.metadata()
	switch v := o.value.(type) {
	case *corev1.Pod:
		c.podSpec("spec", &v.Spec)
	case *appsv1.Deployment:
		c.deployment(&v.Spec)
	case *corev1.Service:
		c.service(&v.Spec)
	case *discoveryv1.EndpointSlice:
		c.endpointSlice(v)
	case *corev1.Endpoints: //nolint:staticcheck // what older manifests have
		c.endpoints(v)
	case *corev1.ConfigMap:
		c.data("data", sizeOf(v.Data)+sizeOf(v.BinaryData), keysOf(v.Data), keysOf(v.BinaryData))
	case *corev1.Secret:
		c.secret(v)
	case *corev1.Namespace:
	default:
		c.fail("", "cannot be declared")
	}
	return errors.Join(c.errs...)
}

// checker collects what is wrong with one object.
type checker struct {
	o    Object
	errs []error
}

// fail reports a field. The line is that of the field or of the nearest one around it.
func (c *checker) fail(path, format string, args ...any) {
	src := c.o.Source
	for p := path; p != "" && src.File != ""; {
		if line, ok := c.o.lines[p]; ok {
			src.Line = line
			break
		}
		p = p[:max(strings.LastIndexAny(p, ".["), 0)]
	}
	at := c.o.Kind()
	if path != "" {
		at += "." + path
	}
	msg := at + ": " + fmt.Sprintf(format, args...)
	if src.File == "" {
		src.File = c.o.Ref().String()
	}
	c.errs = append(c.errs, &Error{src, msg})
}

// all reports the sentences that apimachinery's validation returns, without its
// regular expressions.
func (c *checker) all(path, value string, msgs []string) {
	for i, m := range msgs {
		msgs[i], _, _ = strings.Cut(m, " (e.g.")
	}
	if len(msgs) > 0 {
		c.fail(path, "%q is not valid: %s", value, strings.Join(msgs, "; "))
	}
}

func (c *checker) metadata() {
	m := c.o.Meta()
	switch {
	case m.Name == "":
		c.fail("metadata.name", "is required")
	case c.o.Kind() == KindService:
		c.all("metadata.name", m.Name, validation.IsDNS1035Label(m.Name))
	case c.o.Kind() == KindNamespace:
		c.all("metadata.name", m.Name, validation.IsDNS1123Label(m.Name))
	default:
		c.all("metadata.name", m.Name, validation.IsDNS1123Subdomain(m.Name))
	}
	switch {
	case !Namespaced(c.o.Kind()) && m.Namespace != "":
		c.fail("metadata.namespace", "a %s is in no namespace; remove the field", c.o.Kind())
	case m.Namespace != "":
		c.all("metadata.namespace", m.Namespace, validation.IsDNS1123Label(m.Namespace))
	}
	c.labels("metadata", m)
}

func (c *checker) labels(path string, m *metav1.ObjectMeta) {
	for _, k := range keysOf(m.Labels) {
		at := path + ".labels[" + k + "]"
		c.all(at, k, validation.IsQualifiedName(k))
		c.all(at, m.Labels[k], validation.IsValidLabelValue(m.Labels[k]))
	}
	size := 0
	for _, k := range keysOf(m.Annotations) {
		c.all(path+".annotations["+k+"]", k, validation.IsQualifiedName(strings.ToLower(k)))
		size += len(k) + len(m.Annotations[k])
	}
	if size > 256<<10 {
		c.fail(path+".annotations", "hold %d bytes; the limit is %d", size, 256<<10)
	}
}

func (c *checker) data(path string, size int, keys, more []string) {
	for _, k := range slices.Concat(keys, more) {
		c.all(path+"["+k+"]", k, validation.IsConfigMapKey(k))
	}
	for _, k := range more {
		if slices.Contains(keys, k) {
			c.fail("binaryData["+k+"]", "is in data as well")
		}
	}
	if size > maxData {
		c.fail(path, "holds %d bytes; the limit is %d", size, maxData)
	}
}

func (c *checker) deployment(s *appsv1.DeploymentSpec) {
	if s.Replicas != nil && *s.Replicas < 0 {
		c.fail("spec.replicas", "%d is negative", *s.Replicas)
	}
	if s.MinReadySeconds < 0 {
		c.fail("spec.minReadySeconds", "%d is negative", s.MinReadySeconds)
	}
	deadline := int32(defaultDeadline)
	if s.ProgressDeadlineSeconds != nil {
		deadline = *s.ProgressDeadlineSeconds
	}
	if deadline < 0 || deadline <= s.MinReadySeconds {
		c.fail("spec.progressDeadlineSeconds", "%d must be greater than minReadySeconds, %d", deadline, s.MinReadySeconds)
	}
	if s.Selector == nil || len(s.Selector.MatchLabels)+len(s.Selector.MatchExpressions) == 0 {
		c.fail("spec.selector", "is required: matchLabels that the template's labels have")
	} else if sel, err := metav1.LabelSelectorAsSelector(s.Selector); err != nil {
		c.fail("spec.selector", "%v", err)
	} else if !sel.Matches(labels.Set(s.Template.Labels)) {
		c.fail("spec.template.metadata.labels", "the selector (%s) does not match the labels of the template (%s)", sel, labels.Set(s.Template.Labels))
	}
	if ns := s.Template.Namespace; ns != "" && ns != c.o.Namespace() {
		c.fail("spec.template.metadata.namespace", "pods are in the Deployment's own namespace; remove the field")
	}
	c.labels("spec.template.metadata", &s.Template.ObjectMeta)
	if p := s.Template.Spec.RestartPolicy; p != "" && p != corev1.RestartPolicyAlways {
		c.fail("spec.template.spec.restartPolicy", "%q is not possible in a Deployment; use Always", p)
	}
	c.strategy(&s.Strategy)
	c.podSpec("spec.template.spec", &s.Template.Spec)
}

func (c *checker) strategy(s *appsv1.DeploymentStrategy) {
	r := s.RollingUpdate
	if r == nil {
		return
	}
	if s.Type == appsv1.RecreateDeploymentStrategyType {
		c.fail("spec.strategy.rollingUpdate", "is not possible with type Recreate")
	}
	c.share("spec.strategy.rollingUpdate.maxSurge", r.MaxSurge)
	c.share("spec.strategy.rollingUpdate.maxUnavailable", r.MaxUnavailable)
	if isZero(r.MaxSurge) && isZero(r.MaxUnavailable) {
		c.fail("spec.strategy.rollingUpdate", "maxSurge and maxUnavailable cannot both be 0")
	}
}

func isZero(v *intstr.IntOrString) bool {
	return v != nil && (v.String() == "0" || strings.TrimLeft(v.String(), "0") == "%")
}

func (c *checker) share(path string, v *intstr.IntOrString) {
	switch {
	case v == nil:
	case v.Type == intstr.Int && v.IntVal < 0:
		c.fail(path, "%d is negative", v.IntVal)
	case v.Type == intstr.String:
		c.all(path, v.StrVal, validation.IsValidPercent(v.StrVal))
	}
}

func sizeOf[V ~string | ~[]byte](m map[string]V) int {
	n := 0
	for k, v := range m {
		n += len(k) + len(v)
	}
	return n
}

func keysOf[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
