package reconcile

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/pausa-run/pausa/pod/manifest"
)

// suffixLetters have no vowels and nothing that looks like another: no words, no doubt.
const suffixLetters = "bcdfghjklmnpqrstvwxz2456789"

// hashLabel tells which template a pod was made of.
const hashLabel = appsv1.DefaultDeploymentUniqueLabelKey

// templateHash is ten letters that change with the template.
func templateHash(t *corev1.PodTemplateSpec) (string, error) {
	data, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("hash template: %w", err)
	}
	sum := sha256.Sum256(data)
	return letters(sum[:10]), nil
}

func letters(b []byte) string {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = suffixLetters[int(b[i])%len(suffixLetters)]
	}
	return string(out)
}

func randomSuffix() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	return letters(b[:])
}

// replica is one pod of a Deployment.
type replica struct {
	object manifest.Object
	pod    *corev1.Pod
	status corev1.PodStatus
	fresh  bool // of the present template
	ready  bool
	since  time.Time // of ready
	// available is ready for minReadySeconds: this counts.
	available bool
}

// replicas are the pods that a Deployment owns. ending counts those that are being deleted.
func (e *Engine) replicas(d *appsv1.Deployment) (live []replica, ending int, err error) {
	hash, err := templateHash(&d.Spec.Template)
	if err != nil {
		return nil, 0, err
	}
	for _, o := range e.objects.list(manifest.KindPod, d.Namespace) {
		p := o.Value().(*corev1.Pod)
		if !ownedBy(p, d.UID) {
			continue
		}
		if p.DeletionTimestamp != nil {
			ending++
			continue
		}
		st := e.statusOf(p)
		r := replica{object: o, pod: p, status: st, fresh: p.Labels[hashLabel] == hash, ready: isReady(p, &st), since: readyChange(&st)}
		r.available = r.ready && e.availableIn(d, &r) == 0
		live = append(live, r)
	}
	return live, ending, nil
}

// readyChange is when a pod last became ready, or ceased to be.
func readyChange(st *corev1.PodStatus) time.Time {
	for _, c := range st.Conditions {
		if c.Type == corev1.PodReady {
			return c.LastTransitionTime.Time
		}
	}
	return time.Time{}
}

// availableIn says how long a ready pod must stay so until it counts, 0 if it does.
func (e *Engine) availableIn(d *appsv1.Deployment, r *replica) time.Duration {
	least := time.Duration(d.Spec.MinReadySeconds) * time.Second
	if least == 0 {
		return 0
	}
	return max(r.since.Add(least).Sub(e.clock.Now()), 0)
}

func ownedBy(p *corev1.Pod, uid types.UID) bool {
	return slices.ContainsFunc(p.OwnerReferences, func(r metav1.OwnerReference) bool { return r.UID == uid })
}

// rollout says how many pods of the present template to make and which pods to delete now.
func rollout(d *appsv1.Deployment, live []replica, ending int) (create int, remove []replica) {
	want := int(*d.Spec.Replicas)
	var fresh, old []replica
	ready := 0
	for _, r := range live {
		if r.fresh {
			fresh = append(fresh, r)
		} else {
			old = append(old, r)
		}
		if r.available {
			ready++
		}
	}
	leastUseful := func(a, b replica) int { // not available first, then youngest
		if a.available != b.available {
			return cmp.Compare(number(a.available), number(b.available))
		}
		return b.pod.CreationTimestamp.Compare(a.pod.CreationTimestamp.Time)
	}
	slices.SortStableFunc(fresh, leastUseful)
	slices.SortStableFunc(old, leastUseful)

	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		if len(old) > 0 {
			return 0, append(old, fresh[:max(len(fresh)-want, 0)]...)
		}
		if ending > 0 && len(fresh) < want {
			return 0, nil // the end of a pod wakes us
		}
	}
	surge, unavailable := limits(d)
	if extra := len(fresh) - want; extra > 0 {
		remove = append(remove, fresh[:extra]...)
	}
	room := want + surge - len(live)
	if surge == 0 && holdsHostPorts(&d.Spec.Template.Spec) {
		room -= ending // they hold their host ports until they are gone
	}
	create = max(min(want-len(fresh), room), 0)
	spare := ready - (want - unavailable)
	for _, r := range old {
		switch {
		case !r.available:
			remove = append(remove, r)
		case spare > 0:
			remove = append(remove, r)
			spare--
		}
	}
	return create, remove
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// limits are maxSurge rounded up and maxUnavailable rounded down, not both 0. Pods
// with host ports cannot stand side by side.
func limits(d *appsv1.Deployment) (surge, unavailable int) {
	want := int(*d.Spec.Replicas)
	r := d.Spec.Strategy.RollingUpdate
	if r == nil {
		return 0, want
	}
	surge, err1 := intstr.GetScaledValueFromIntOrPercent(r.MaxSurge, want, true)
	unavailable, err2 := intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, want, false)
	if err1 != nil || err2 != nil || (surge == 0 && unavailable == 0) {
		surge, unavailable = 0, 1
	}
	if holdsHostPorts(&d.Spec.Template.Spec) {
		return 0, max(unavailable, 1)
	}
	return surge, unavailable
}

func holdsHostPorts(s *corev1.PodSpec) bool {
	for i := range s.Containers {
		for _, p := range s.Containers[i].Ports {
			if p.HostPort != 0 {
				return true
			}
		}
	}
	return false
}

// syncDeployment makes and deletes pods until they are as declared; pods that
// become ready or go away wake it again. It says when a pod becomes available.
func (e *Engine) syncDeployment(ref manifest.Ref) (again time.Duration, err error) {
	e.apply.Lock()
	defer e.apply.Unlock()
	o, ok := e.objects.get(ref)
	if !ok {
		return 0, nil
	}
	d := o.Value().(*appsv1.Deployment)
	if d.DeletionTimestamp != nil {
		return 0, e.endDeployment(o)
	}
	live, ending, err := e.replicas(d)
	if err != nil {
		return 0, err
	}
	if err := e.noteComplete(o, live); err != nil {
		return 0, err
	}
	for _, r := range live {
		if wait := e.availableIn(d, &r); r.ready && wait > 0 && (again == 0 || wait < again) {
			again = wait
		}
	}
	create, remove := rollout(d, live, ending)
	var errs []error
	for _, r := range remove {
		e.opts.Events.Normal(about(o), eventDeleted, "Deleted pod: %s", r.pod.Name)
		errs = append(errs, e.mark(r.object, nil))
	}
	for range create {
		name, err := e.createReplica(d)
		if err != nil {
			e.opts.Events.Warning(about(o), eventMakeFailed, "Error creating: %v", err)
		} else {
			e.opts.Events.Normal(about(o), eventMade, "Created pod: %s", name)
		}
		errs = append(errs, err)
	}
	return again, errors.Join(errs...)
}

// endDeployment deletes the pods, then the object.
func (e *Engine) endDeployment(o manifest.Object) error {
	var errs []error
	left := 0
	for _, p := range e.objects.list(manifest.KindPod, o.Namespace()) {
		if ownedBy(p.Value().(*corev1.Pod), o.Meta().UID) {
			left++
			errs = append(errs, e.mark(p, o.Meta().DeletionGracePeriodSeconds))
		}
	}
	if left == 0 {
		errs = append(errs, e.objects.remove(o))
		e.work.add(manifest.Ref{Kind: manifest.KindNamespace, Name: o.Namespace()})
	}
	return errors.Join(errs...)
}

// createReplica stores one more pod of the template.
func (e *Engine) createReplica(d *appsv1.Deployment) (name string, err error) {
	hash, err := templateHash(&d.Spec.Template)
	if err != nil {
		return "", err
	}
	yes := true
	t := d.Spec.Template.DeepCopy()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: d.Namespace, Labels: t.Labels, Annotations: t.Annotations,
		UID: types.UID(uuid.NewString()), Generation: 1, CreationTimestamp: metav1.NewTime(e.clock.Now()),
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "apps/v1", Kind: manifest.KindDeployment, Name: d.Name, UID: d.UID, Controller: &yes, BlockOwnerDeletion: &yes,
		}},
	}, Spec: t.Spec}
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[hashLabel] = hash
	base := strings.TrimRight(d.Name[:min(len(d.Name), 253-17)], "-.")
	o := manifest.New(p)
	for {
		p.Name = base + "-" + hash + "-" + randomSuffix()
		if _, taken := e.objects.get(o.Ref()); !taken {
			break
		}
	}
	if _, err := e.objects.put(o); err != nil {
		return "", err
	}
	e.work.add(o.Ref())
	return p.Name, nil
}
