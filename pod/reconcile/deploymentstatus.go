package reconcile

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/pausa-run/pausa/pod/manifest"
)

// Words of the condition Progressing that tools wait for.
const (
	progressDone    = "NewReplicaSetAvailable"
	progressGoing   = "ReplicaSetUpdated"
	progressStopped = "ProgressDeadlineExceeded"
)

// deploymentStatus counts the pods of a Deployment.
func (e *Engine) deploymentStatus(d *appsv1.Deployment) appsv1.DeploymentStatus {
	st := appsv1.DeploymentStatus{ObservedGeneration: d.Generation}
	live, ending, err := e.replicas(d)
	if err != nil {
		e.log.Error("count pods", "deployment", d.Namespace+"/"+d.Name, "error", err)
		return st
	}
	changed := d.CreationTimestamp
	fresh := 0
	for _, r := range live {
		st.Replicas++
		if r.fresh {
			st.UpdatedReplicas++
		}
		if r.ready {
			st.ReadyReplicas++
		}
		if r.available {
			st.AvailableReplicas++
		}
		if r.fresh && r.available {
			fresh++
		}
		if r.since.After(changed.Time) {
			changed = metav1.NewTime(r.since)
		}
	}
	gone := int32(ending)
	st.TerminatingReplicas = &gone
	want := *d.Spec.Replicas
	st.UnavailableReplicas = max(want-st.AvailableReplicas, 0)
	_, unavailable := limits(d)
	word, at := e.progress(d, live)
	st.Conditions = []appsv1.DeploymentCondition{
		deploymentCondition(appsv1.DeploymentAvailable, int(st.AvailableReplicas) >= int(want)-unavailable, changed,
			"MinimumReplicasAvailable", "MinimumReplicasUnavailable", fmt.Sprintf("%d of %d pods are ready", st.AvailableReplicas, want)),
		deploymentCondition(appsv1.DeploymentProgressing, word != progressStopped, metav1.NewTime(at), word, word,
			fmt.Sprintf("%d of %d pods are of the present template, %d of them ready", st.UpdatedReplicas, want, fresh)),
	}
	return st
}

// complete says whether all pods are of the present template and available, and no others are left.
func complete(d *appsv1.Deployment, live []replica) bool {
	n := 0
	for _, r := range live {
		if r.fresh && r.available {
			n++
		}
	}
	return n == int(*d.Spec.Replicas) && len(live) == n
}

// progress says how the rollout goes, and since when. Progress is a new pod, and
// a pod that becomes ready.
func (e *Engine) progress(d *appsv1.Deployment, live []replica) (word string, at time.Time) {
	at = d.CreationTimestamp.Time
	if began := rolloutOf(d).LastUpdateTime.Time; began.After(at) {
		at = began
	}
	for _, r := range live {
		if r.fresh && r.pod.CreationTimestamp.After(at) {
			at = r.pod.CreationTimestamp.Time
		}
		if r.fresh && r.ready && r.since.After(at) {
			at = r.since
		}
	}
	if complete(d, live) || rolledOut(d) {
		return progressDone, at
	}
	if s := d.Spec.ProgressDeadlineSeconds; s != nil && e.clock.Now().Sub(at) > time.Duration(*s)*time.Second {
		return progressStopped, at
	}
	return progressGoing, at
}

// rolloutOf is what the stored object knows of its rollout: the template's hash
// (Message), when it was first seen, and whether all its pods were ever
// available. A pod that fails later is no failed rollout.
func rolloutOf(d *appsv1.Deployment) appsv1.DeploymentCondition {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentProgressing {
			return c
		}
	}
	return appsv1.DeploymentCondition{}
}

func rolledOut(d *appsv1.Deployment) bool {
	hash, err := templateHash(&d.Spec.Template)
	c := rolloutOf(d)
	return err == nil && c.Message == hash && c.Reason == progressDone
}

// noteComplete stores the beginning of a rollout and its end.
func (e *Engine) noteComplete(o manifest.Object, live []replica) error {
	d := o.Value().(*appsv1.Deployment)
	hash, err := templateHash(&d.Spec.Template)
	if err != nil {
		return err
	}
	had, done := rolloutOf(d), complete(d, live)
	if had.Message == hash && (had.Reason == progressDone || !done) {
		return nil
	}
	c := appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Reason: progressGoing, Message: hash, LastUpdateTime: metav1.NewTime(e.clock.Now())}
	if had.Message == hash {
		c.LastUpdateTime = had.LastUpdateTime
	}
	if done {
		c.Reason = progressDone
	}
	return e.objects.update(o, func(s manifest.Object) bool {
		s.Value().(*appsv1.Deployment).Status.Conditions = []appsv1.DeploymentCondition{c}
		return true
	})
}

func deploymentCondition(t appsv1.DeploymentConditionType, ok bool, at metav1.Time, yes, no, message string) appsv1.DeploymentCondition {
	c := appsv1.DeploymentCondition{Type: t, Status: corev1.ConditionTrue, Reason: yes, Message: message, LastUpdateTime: at, LastTransitionTime: at}
	if !ok {
		c.Status, c.Reason = corev1.ConditionFalse, no
	}
	return c
}
