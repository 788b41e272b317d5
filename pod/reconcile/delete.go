package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
)

// DeleteOptions say what to delete: one name, or all of a kind (Kind "": of every
// kind) that Selector matches, in Namespace ("": in all).
type DeleteOptions struct {
	Kind, Namespace, Name string
	All                   bool
	Selector              labels.Selector // nil: none
	Wait                  bool            // return when the objects are gone
	Grace                 *time.Duration  // instead of the pods' own; 0 kills at once and does not wait for clean-up
}

// Delete marks objects for deletion, on disk, and the loop ends them; the order is
// namespaces, deployments, and then the rest, so that nothing is made again. It
// returns what it marked. A name that is not there is an error that wraps
// pod.ErrNotFound; deleting twice is none, and may shorten the grace period.
func (e *Engine) Delete(ctx context.Context, opts DeleteOptions) ([]manifest.Ref, error) {
	objects, err := e.choose(opts)
	if err != nil {
		return nil, err
	}
	var grace *int64
	if opts.Grace != nil {
		s := int64((*opts.Grace + time.Second - 1) / time.Second)
		grace = &s
	}
	var refs []manifest.Ref
	var errs []error
	e.apply.Lock()
	for _, o := range objects {
		if err := e.mark(o, grace); err != nil {
			errs = append(errs, err)
			continue
		}
		refs = append(refs, o.Ref())
	}
	e.apply.Unlock()
	if err := errors.Join(errs...); err != nil {
		return refs, err
	}
	if opts.Wait {
		return refs, e.waitGone(ctx, objects)
	}
	return refs, nil
}

// choose finds the objects to delete, in the order of their marking.
func (e *Engine) choose(opts DeleteOptions) ([]manifest.Object, error) {
	if opts.Kind != "" && !slices.Contains(manifest.Kinds(), opts.Kind) {
		return nil, faultf(pod.ErrInvalid, "kind %q cannot be deleted", opts.Kind)
	}
	namespace := opts.Namespace
	if opts.Kind == manifest.KindNamespace {
		namespace = ""
	}
	some := opts.All || (opts.Selector != nil && !opts.Selector.Empty())
	switch {
	case opts.Name == "" && !some:
		return nil, faultf(pod.ErrInvalid, "say what to delete: a name, a label selector or all")
	case opts.Name != "" && opts.Kind == "":
		return nil, faultf(pod.ErrInvalid, "delete %q: which kind?", opts.Name)
	case opts.Kind == manifest.KindNamespace && opts.Name == defaultNamespace:
		return nil, faultf(pod.ErrInvalid, "the namespace default cannot be deleted; delete what is in it with: pausa delete --all -n default")
	}
	var out []manifest.Object
	for _, o := range e.objects.named(opts.Kind, namespace, opts.Name) {
		if (opts.Name == "" || o.Name() == opts.Name) && (opts.Selector == nil || opts.Selector.Matches(labels.Set(o.Meta().Labels))) {
			out = append(out, o)
		}
	}
	if opts.Name != "" && len(out) == 0 {
		return nil, notFound(opts.Kind, namespace, opts.Name)
	}
	slices.SortStableFunc(out, func(a, b manifest.Object) int { return deleteRank(a) - deleteRank(b) })
	return out, nil
}

// deleteRank: makers of objects before what they make.
func deleteRank(o manifest.Object) int {
	switch o.Kind() {
	case manifest.KindNamespace:
		return 0
	case manifest.KindDeployment:
		return 1
	case manifest.KindService:
		return 2
	case manifest.KindPod:
		return 3
	}
	return 4
}

// mark stores that an object is to be deleted and wakes the loop. ConfigMaps,
// Secrets and endpoints go at once. grace, in seconds, is for pods; nil is their own. Marking
// again can only bring the end nearer.
func (e *Engine) mark(o manifest.Object, grace *int64) error {
	switch o.Kind() {
	case manifest.KindConfigMap, manifest.KindSecret:
		return e.objects.remove(o)
	case manifest.KindEndpoints, manifest.KindEndpointSlice:
		err := e.objects.remove(o)
		e.changedFront(o.Ref())
		return err
	}
	changed := false
	err := e.objects.updateAnyway(o, func(c manifest.Object) bool {
		changed = setDeletion(c, grace, e.clock.Now())
		return changed
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", o.Ref(), err)
	}
	if !changed {
		return nil
	}
	ref := o.Ref()
	switch ref.Kind {
	case manifest.KindPod:
		e.work.interrupt(ref)
	case manifest.KindService:
		e.changedFront(ref)
	default:
		e.work.add(ref)
	}
	return nil
}

// setDeletion sets deletionTimestamp to the end of the grace period, as Kubernetes does.
func setDeletion(o manifest.Object, grace *int64, now time.Time) bool {
	m := o.Meta()
	seconds := int64(0)
	if p, ok := o.Value().(*corev1.Pod); ok {
		seconds = int64(graceOf(p).Seconds())
	}
	if grace != nil {
		seconds = max(*grace, 0)
	}
	if had := m.DeletionGracePeriodSeconds; m.DeletionTimestamp != nil {
		if sooner := grace != nil && (had == nil || seconds < *had); !sooner {
			return false
		}
	}
	at := metav1.NewTime(now.Add(time.Duration(seconds) * time.Second))
	m.DeletionTimestamp = &at
	// Of other kinds it is kept only if it was asked for: their pods get it.
	if m.DeletionGracePeriodSeconds = &seconds; o.Kind() != manifest.KindPod {
		m.DeletionGracePeriodSeconds = grace
	}
	return true
}

// waitGone returns when none of the objects, by uid, is stored any more.
func (e *Engine) waitGone(ctx context.Context, objects []manifest.Object) error {
	for {
		next := e.objects.next()
		var left []manifest.Object
		for _, o := range objects {
			if cur, ok := e.objects.get(o.Ref()); ok && cur.Meta().UID == o.Meta().UID {
				left = append(left, o)
			}
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of %s and %d more: %w", left[0].Ref(), len(left)-1, ctx.Err())
		}
	}
}

// syncNamespace deletes what is in a namespace that is being deleted, then the namespace.
func (e *Engine) syncNamespace(ref manifest.Ref) error {
	e.apply.Lock()
	defer e.apply.Unlock()
	ns, ok := e.objects.get(ref)
	if !ok || ns.Meta().DeletionTimestamp == nil {
		return nil
	}
	content := e.objects.list("", ref.Name)
	slices.SortStableFunc(content, func(a, b manifest.Object) int { return deleteRank(a) - deleteRank(b) })
	var errs []error
	for _, o := range content {
		errs = append(errs, e.mark(o, ns.Meta().DeletionGracePeriodSeconds))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if len(e.objects.list("", ref.Name)) > 0 {
		return nil // the end of each wakes us
	}
	return e.objects.remove(ns)
}
