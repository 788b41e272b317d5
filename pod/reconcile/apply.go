package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

// What Apply did, or would do, with an object.
const (
	Created    = "created"
	Configured = "configured"
	Unchanged  = "unchanged"
)

// defaultNamespace is always there, without an object.
const defaultNamespace = "default"

// ApplyResult is the outcome of one object, in the order of the request.
type ApplyResult struct {
	manifest.Ref
	Source  manifest.Source
	Outcome string // Created, Configured, Unchanged; "" with Err, or if it was not stored because of another's Err
	Note    string // what else people should know: "the pod is re-created: …"
	Err     error  // why it was refused; wraps pod.ErrInvalid, pod.ErrExists, pod.ErrNotFound or pod.ErrState
}

// plan is what is about to be stored for one object.
type plan struct {
	ApplyResult
	object manifest.Object // complete, with server-side fields
	old    manifest.Object
}

// Apply declares objects: all are checked before the first is stored, and if one
// is refused, none is stored. The error joins the refusals; results are returned
// with it. A nil error means that all are on disk. With dryRun nothing is stored.
func (e *Engine) Apply(ctx context.Context, objects []manifest.Object, dryRun bool) ([]ApplyResult, error) {
	e.apply.Lock()
	defer e.apply.Unlock()
	plans := make([]*plan, len(objects))
	for i, o := range objects {
		plans[i] = e.plan(o)
	}
	e.checkTogether(plans)
	e.allocateAll(plans)
	err := refusals(plans)
	if err != nil {
		for _, p := range plans {
			p.Outcome = "" // nothing is stored
		}
	}
	if err == nil && !dryRun {
		if err = ctx.Err(); err == nil {
			err = e.store(plans)
		}
	}
	if err != nil || dryRun {
		e.reallocate(plans)
	}
	results := make([]ApplyResult, len(plans))
	for i, p := range plans {
		results[i] = p.ApplyResult
	}
	return results, err
}

func refusals(plans []*plan) error {
	var errs []error
	for _, p := range plans {
		if p.Err != nil {
			errs = append(errs, p.Err)
		}
	}
	return errors.Join(errs...)
}

// refuse notes why an object cannot be stored, with its source if there is one.
func (p *plan) refuse(kind error, format string, args ...any) {
	if p.Err != nil {
		return
	}
	msg := fmt.Sprintf(format, args...)
	if p.Source.File != "" {
		msg = p.Source.String() + ": " + msg
	}
	p.Outcome, p.Err = "", faultf(kind, "%s", msg)
}

// plan completes one object and compares it with the stored one.
func (e *Engine) plan(o manifest.Object) *plan {
	o = o.DeepCopy()
	manifest.Default(o)
	p := &plan{object: o}
	p.Ref, p.Source = o.Ref(), o.Source
	if err := manifest.Validate(o); err != nil {
		p.Err = &fault{pod.ErrInvalid, err.Error()}
		return p
	}
	if e.cannotRunHere(p) {
		return p
	}
	clearServerFields(o)
	old, exists := e.objects.get(o.Ref())
	if !exists {
		p.Outcome = Created
		m := o.Meta()
		m.UID, m.Generation, m.CreationTimestamp = types.UID(uuid.NewString()), 1, metav1.NewTime(e.clock.Now().Truncate(1e9))
		return p
	}
	p.old = old
	if old.Meta().DeletionTimestamp != nil {
		p.refuse(pod.ErrState, "%s is being deleted; apply it again when it is gone", p.Ref)
		return p
	}
	p.merge()
	return p
}

// cannotRunHere refuses pods for another host, or for what this one lacks, and
// takes the name of this one out, which Get puts in.
func (e *Engine) cannotRunHere(p *plan) bool {
	var s *corev1.PodSpec
	switch v := p.object.Value().(type) {
	case *corev1.Pod:
		s = &v.Spec
	case *appsv1.Deployment:
		s = &v.Spec.Template.Spec
	default:
		return false
	}
	if s.NodeName != "" && s.NodeName != e.opts.NodeName {
		p.refuse(pod.ErrInvalid, "%s: spec.nodeName is %s, and this host is %s; remove the field", p.Ref, s.NodeName, e.opts.NodeName)
		return true
	}
	s.NodeName = ""
	if _, err := pod.CDIDevices(nil, annotationsOf(p.object)); err != nil {
		p.refuse(pod.ErrInvalid, "%s: metadata.annotations: %v", p.Ref, err)
		return true
	}
	return e.withoutRuntime(p, s)
}

// annotationsOf are those that the object's pods have.
func annotationsOf(o manifest.Object) map[string]string {
	if d, ok := o.Value().(*appsv1.Deployment); ok {
		return d.Spec.Template.Annotations
	}
	return o.Meta().Annotations
}

// withoutRuntime refuses a pod whose containers nothing here makes. One that was
// stored while its handler's program was there waits for that to come back.
func (e *Engine) withoutRuntime(p *plan, s *corev1.PodSpec) bool {
	if s.RuntimeClassName == nil || e.opts.Handlers == nil {
		return false
	}
	_, err := e.opts.Handlers.Find(*s.RuntimeClassName)
	if err == nil {
		return false
	}
	kind := pod.ErrState
	if errors.Is(err, runtime.ErrNotFound) {
		kind = pod.ErrInvalid
	}
	p.refuse(kind, "%s: spec.runtimeClassName: %v", p.Ref, err)
	return true
}

// clearServerFields drops what a manifest that was read back from us may hold.
func clearServerFields(o manifest.Object) {
	m := o.Meta()
	*m = metav1.ObjectMeta{Name: m.Name, Namespace: m.Namespace, Labels: m.Labels, Annotations: m.Annotations}
	switch v := o.Value().(type) {
	case *corev1.Pod:
		v.Status = corev1.PodStatus{}
	case *appsv1.Deployment:
		v.Status = appsv1.DeploymentStatus{}
	case *corev1.Service:
		v.Status = corev1.ServiceStatus{}
	case *corev1.Namespace:
		v.Status = corev1.NamespaceStatus{}
	}
}

// merge takes over from the stored object what belongs to us, and finds out what has changed.
func (p *plan) merge() {
	m, om := p.object.Meta(), p.old.Meta()
	m.UID, m.Generation, m.CreationTimestamp = om.UID, om.Generation, om.CreationTimestamp
	m.ResourceVersion, m.OwnerReferences = om.ResourceVersion, om.OwnerReferences
	recreate := ""
	switch v := p.object.Value().(type) {
	case *corev1.Service:
		if err := mergeService(v, p.old.Value().(*corev1.Service)); err != nil {
			p.refuse(pod.ErrInvalid, "%s: %v", p.Ref, err)
		}
	case *discoveryv1.EndpointSlice:
		if o := p.old.Value().(*discoveryv1.EndpointSlice); v.AddressType != o.AddressType {
			p.refuse(pod.ErrInvalid, "%s: addressType cannot be changed; delete it first", p.Ref)
		}
	case *appsv1.Deployment:
		o := p.old.Value().(*appsv1.Deployment)
		v.Status = o.Status // how its rollout goes
		if !same(v.Spec.Selector, o.Spec.Selector) {
			p.refuse(pod.ErrInvalid, "%s: spec.selector cannot be changed; delete the Deployment first", p.Ref)
		}
	case *corev1.ConfigMap:
		o := p.old.Value().(*corev1.ConfigMap)
		if isTrue(o.Immutable) && (!same(v.Data, o.Data) || !same(v.BinaryData, o.BinaryData) || !isTrue(v.Immutable)) {
			p.refuse(pod.ErrInvalid, "%s is immutable; delete it first", p.Ref)
		}
	case *corev1.Secret:
		o := p.old.Value().(*corev1.Secret)
		if isTrue(o.Immutable) && (!same(v.Data, o.Data) || !isTrue(v.Immutable)) {
			p.refuse(pod.ErrInvalid, "%s is immutable; delete it first", p.Ref)
		}
		if v.Type != o.Type {
			p.refuse(pod.ErrInvalid, "%s: type cannot be changed from %s to %s; delete it first", p.Ref, o.Type, v.Type)
		}
	case *corev1.Pod:
		o := p.old.Value().(*corev1.Pod)
		recreate = podChange(&o.Spec, &v.Spec)
		if recreate == "" && terminal(o) && !same(o.Spec, v.Spec) {
			recreate = "it has ended and its spec"
		}
		if recreate == "" {
			v.Status = o.Status
		}
		if label := om.Labels[hashLabel]; label != "" && len(om.OwnerReferences) > 0 && m.Labels[hashLabel] == "" {
			m.Labels = maps.Clone(m.Labels)
			if m.Labels == nil {
				m.Labels = map[string]string{}
			}
			m.Labels[hashLabel] = label
		}
	}
	p.compare(recreate)
}

// compare sets the outcome. A changed pod gets a new uid: the former one is ended
// by the loop because no object has its uid any more.
func (p *plan) compare(recreate string) {
	if p.Err != nil {
		return
	}
	if same(p.object, p.old) {
		p.Outcome, p.object = Unchanged, p.old
		return
	}
	p.Outcome = Configured
	if changedBeyondMeta(p.object, p.old) {
		p.object.Meta().Generation++
	}
	switch {
	case recreate != "":
		p.object.Meta().UID = types.UID(uuid.NewString())
		p.Note = "the pod is re-created: " + recreate + " changed"
	case p.Kind == manifest.KindPod && p.object.Meta().Generation != p.old.Meta().Generation:
		p.Note = inPlace(&p.old.Value().(*corev1.Pod).Spec, &p.object.Value().(*corev1.Pod).Spec)
	}
}

// inPlace says what becomes of a running pod whose spec was changed.
func inPlace(old, now *corev1.PodSpec) string {
	a := now.DeepCopy()
	resizable(a, old)
	switch {
	case !resized(old, now):
		return "containers whose image changed are restarted"
	case same(a, old):
		return "running containers are resized"
	}
	return "running containers are resized; those whose image changed are restarted"
}

// same compares as JSON, in which quantities and empty fields have one form.
func same(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func changedBeyondMeta(a, b manifest.Object) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	*a.Meta(), *b.Meta() = metav1.ObjectMeta{}, metav1.ObjectMeta{}
	return !same(a, b)
}

// podChange names the first field of the spec that makes another pod of it, "" if
// there is none. The images and resources of containers can change in place.
func podChange(old, now *corev1.PodSpec) string {
	a, b := old.DeepCopy(), now.DeepCopy()
	for i := range a.Containers {
		if i < len(b.Containers) && a.Containers[i].Name == b.Containers[i].Name {
			a.Containers[i].Image, a.Containers[i].ImagePullPolicy = b.Containers[i].Image, b.Containers[i].ImagePullPolicy
		}
	}
	resizable(a, b)
	a.TerminationGracePeriodSeconds = b.TerminationGracePeriodSeconds
	if same(a, b) {
		return ""
	}
	x, y := fieldsOf(a), fieldsOf(b)
	for _, name := range slices.Sorted(maps.Keys(joined(x, y))) {
		if !bytes.Equal(x[name], y[name]) {
			return "spec." + name
		}
	}
	return "spec"
}

func fieldsOf(v any) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	if data, err := json.Marshal(v); err == nil {
		_ = json.Unmarshal(data, &out) // our own JSON
	}
	return out
}

func joined[V any](a, b map[string]V) map[string]V {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// store writes everything that has changed, in the order in which it is needed.
func (e *Engine) store(plans []*plan) error {
	order := slices.Clone(plans)
	rank := manifest.Kinds()
	slices.SortStableFunc(order, func(a, b *plan) int { return slices.Index(rank, a.Kind) - slices.Index(rank, b.Kind) })
	order = slices.DeleteFunc(order, func(p *plan) bool { return p.Outcome == Unchanged })
	if len(order) == 0 {
		return nil
	}
	objects := make([]manifest.Object, len(order))
	for i, p := range order {
		p.object.Source = manifest.Source{}
		objects[i] = p.object
	}
	done, err := e.objects.put(objects...)
	for _, p := range order[:done] {
		e.stored(p)
	}
	for _, p := range order[done:] {
		p.Outcome = ""
	}
	if err != nil {
		order[done].Err = err
		return fmt.Errorf("%d of %d objects are declared: %w", done, len(order), err)
	}
	return nil
}

// stored wakes who is concerned by a new or changed object.
func (e *Engine) stored(p *plan) {
	switch p.Kind {
	case manifest.KindPod:
		if p.old.IsZero() || p.old.Meta().UID == p.object.Meta().UID {
			e.work.add(p.Ref)
		} else {
			e.work.interrupt(p.Ref) // what is under way is for the former pod
		}
		e.touched(p.Ref)
	case manifest.KindConfigMap, manifest.KindSecret:
		for _, o := range e.objects.list(manifest.KindPod, p.Namespace) {
			if uses(&o.Value().(*corev1.Pod).Spec, p.Ref) {
				e.work.add(o.Ref())
			}
		}
	case manifest.KindService, manifest.KindEndpoints, manifest.KindEndpointSlice:
		e.changedFront(p.Ref)
	default:
		e.work.add(p.Ref)
	}
}

// uses is true if the pod may wait for, or show, the ConfigMap or Secret.
func uses(s *corev1.PodSpec, ref manifest.Ref) bool {
	data, err := json.Marshal(s)
	return err == nil && strings.Contains(string(data), `"`+ref.Name+`"`)
}
