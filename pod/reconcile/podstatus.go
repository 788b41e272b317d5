package reconcile

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

// statusOf works a pod's status out of the facts; that of a pod that has ended is stored.
func (e *Engine) statusOf(p *corev1.Pod) corev1.PodStatus {
	if terminal(p) {
		return p.Status
	}
	var own []*box
	for _, b := range e.pods.of(manifest.New(p).Ref()) {
		if b.Config.UID == string(p.UID) {
			own = append(own, b)
		}
	}
	return e.podStatus(p, own)
}

// podStatus is the status of a pod with these sandboxes, newest first.
func (e *Engine) podStatus(p *corev1.Pod, boxes []*box) corev1.PodStatus {
	var b *box
	if len(boxes) > 0 {
		b = boxes[0]
	}
	st := corev1.PodStatus{Phase: corev1.PodPending, ObservedGeneration: p.Generation, QOSClass: qos(p)}
	start := p.CreationTimestamp
	if b != nil {
		start = metav1.NewTime(b.CreatedAt)
	}
	st.StartTime = &start
	for _, ip := range e.opts.NodeIPs() {
		st.HostIPs = append(st.HostIPs, corev1.HostIP{IP: ip.String()})
	}
	if len(st.HostIPs) > 0 {
		st.HostIP = st.HostIPs[0].IP
	}
	if b != nil && b.Ready {
		for _, ip := range e.podIPs(p, b) {
			st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	if len(st.PodIPs) > 0 {
		st.PodIP = st.PodIPs[0].IP
	}
	for i := range p.Spec.InitContainers {
		st.InitContainerStatuses = append(st.InitContainerStatuses, e.containerStatus(p, &p.Spec.InitContainers[i], b, true))
	}
	for i := range p.Spec.Containers {
		st.ContainerStatuses = append(st.ContainerStatuses, e.containerStatus(p, &p.Spec.Containers[i], b, false))
	}
	if n := e.notes.get(p.UID, sandboxNote); n.reason != "" {
		st.Reason, st.Message = n.reason, n.message
	}
	ready := b != nil && b.Ready
	st.Phase = phase(&st)
	st.Conditions = conditions(p, &st, ready, e.readySince(p, b), e.clock.Now())
	return st
}

// readySince is the last change of mind of a pod's probes, zero without any.
func (e *Engine) readySince(p *corev1.Pod, b *box) time.Time {
	var since time.Time
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if last, ok := b.last(c.Name); ok {
			if h := e.health(&c, last); h.since.After(since) {
				since = h.since
			}
		}
	}
	return since
}

// phase is Running as soon as one container has run.
func phase(st *corev1.PodStatus) corev1.PodPhase {
	for _, c := range st.ContainerStatuses {
		if c.State.Running != nil || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil {
			return corev1.PodRunning
		}
	}
	return corev1.PodPending
}

// conditions of a pod; since is when probes last changed its readiness.
func conditions(p *corev1.Pod, st *corev1.PodStatus, sandbox bool, since, now time.Time) []corev1.PodCondition {
	initialized, ready := sandbox, sandbox
	changed := p.CreationTimestamp.Time
	if since.After(changed) {
		changed = since
	}
	var waits []string
	counted := st.ContainerStatuses
	for i, c := range st.InitContainerStatuses {
		if manifest.IsSidecar(&p.Spec.InitContainers[i]) {
			initialized = initialized && c.Started != nil && *c.Started
			counted = slices.Concat(counted, []corev1.ContainerStatus{c})
		} else {
			initialized = initialized && c.Ready
		}
	}
	for _, c := range counted {
		ready = ready && c.Ready
		if !c.Ready {
			waits = append(waits, c.Name)
		}
		for _, t := range times(c.State) {
			if t.After(changed) {
				changed = t
			}
		}
	}
	if changed.After(now) {
		changed = now
	}
	cond := func(t corev1.PodConditionType, ok bool) corev1.PodCondition {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(changed)}
		if !ok {
			c.Status = corev1.ConditionFalse
		}
		if !ok && len(waits) > 0 && (t == corev1.ContainersReady || t == corev1.PodReady) {
			c.Reason, c.Message = "ContainersNotReady", fmt.Sprintf("containers with unready status: %v", waits)
		}
		return c
	}
	return []corev1.PodCondition{
		cond(corev1.PodScheduled, true),
		cond(corev1.PodInitialized, initialized),
		cond(corev1.ContainersReady, ready),
		cond(corev1.PodReady, ready && p.DeletionTimestamp == nil),
	}
}

func times(s corev1.ContainerState) []time.Time {
	switch {
	case s.Running != nil:
		return []time.Time{s.Running.StartedAt.Time}
	case s.Terminated != nil:
		return []time.Time{s.Terminated.FinishedAt.Time}
	}
	return nil
}

// isReady says whether a pod may get traffic: its containers run, their probes say so, and nobody has asked for its end.
func isReady(p *corev1.Pod, st *corev1.PodStatus) bool {
	if p.DeletionTimestamp != nil {
		return false
	}
	for _, c := range st.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (e *Engine) containerStatus(p *corev1.Pod, c *corev1.Container, b *box, isInit bool) corev1.ContainerStatus {
	st := corev1.ContainerStatus{Name: c.Name, Image: c.Image}
	n := e.notes.get(p.UID, c.Name)
	last, ok := b.last(c.Name)
	if !ok {
		st.State.Waiting = &corev1.ContainerStateWaiting{Reason: reasonCreating}
		if !isInit && len(p.Spec.InitContainers) > 0 {
			st.State.Waiting.Reason = reasonInitializing
		}
		if n.reason != "" {
			st.State.Waiting = &corev1.ContainerStateWaiting{Reason: n.reason, Message: n.message}
		}
		started := false
		st.Started = &started
		return st
	}
	st.RestartCount = int32(last.Config.Attempt)
	st.ImageID, st.ContainerID = last.ImageID, "pausa://"+last.ID
	if list := b.containers[c.Name]; len(list) > 1 && list[1].Exit != nil {
		st.LastTerminationState.Terminated = e.terminated(p, c, list[1])
	}
	running := last.Status == runtime.Running && b.Ready
	if running {
		st.Resources, st.AllocatedResources = e.inForce(p, c, last.Config.Resources), c.Resources.Requests
	}
	switch {
	case running:
		st.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(last.StartedAt)}
	case last.Exit != nil:
		st.State.Terminated = e.terminated(p, c, last)
		if n.reason != "" && (!isInit || last.Exit.Code != 0) {
			st.LastTerminationState.Terminated = st.State.Terminated
			st.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: n.reason, Message: n.message}}
		}
	default:
		st.State.Waiting = &corev1.ContainerStateWaiting{Reason: reasonCreating}
		if n.reason != "" {
			st.State.Waiting = &corev1.ContainerStateWaiting{Reason: n.reason, Message: n.message}
		}
	}
	h := e.health(c, last)
	started := running && h.started
	st.Ready, st.Started = started && h.ready, &started
	if isInit && !manifest.IsSidecar(c) {
		st.Ready = last.Exit != nil && last.Exit.Code == 0
	}
	return st
}
