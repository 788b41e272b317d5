package reconcile

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

// restarts says whether an exited container is to run again: by the first of its
// rules that fits, else by its own policy, else by the pod's.
func (s *podSync) restarts(name string, c pod.Container) bool {
	policy := corev1.ContainerRestartPolicy(s.pod.Spec.RestartPolicy)
	if policy == corev1.ContainerRestartPolicyAlways && s.isInit(name) {
		policy = corev1.ContainerRestartPolicyOnFailure
	}
	if k := s.named(name); k != nil && k.RestartPolicy != nil {
		if fitting(k, c) != nil {
			return true
		}
		policy = *k.RestartPolicy
	}
	switch policy {
	case corev1.ContainerRestartPolicyNever:
		return false
	case corev1.ContainerRestartPolicyOnFailure:
		return c.Exit == nil || c.Exit.Code != 0 || s.e.killedBy(c.ID) != ""
	}
	return true
}

// fitting is the first rule that an exit fits, nil for none.
func fitting(k *corev1.Container, c pod.Container) *corev1.ContainerRestartRule {
	if c.Exit == nil {
		return nil
	}
	for i := range k.RestartPolicyRules {
		r := &k.RestartPolicyRules[i]
		in := slices.Contains(r.ExitCodes.Values, int32(c.Exit.Code))
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r
		}
	}
	return nil
}

// named finds a container of the pod, nil if there is none.
func (s *podSync) named(name string) *corev1.Container {
	for _, list := range [][]corev1.Container{s.pod.Spec.InitContainers, s.pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

func (s *podSync) isInit(name string) bool {
	return slices.ContainsFunc(s.pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name })
}

// restartAll begins again with the init containers, in the same sandbox, when a
// container has ended in a way that asks for that. It says whether there is
// nothing else to do in this pass. The container that asks is the last to be
// removed, so that whoever is cut off goes on.
func (s *podSync) restartAll(ctx context.Context) (bool, error) {
	asks, ok := s.asksForAll()
	if !ok {
		return false, nil
	}
	if err := s.e.endContainers(ctx, s.box, graceOf(s.pod)); err != nil {
		return true, err
	}
	name := asks.Config.Name
	if wait := s.e.notes.restart(s.pod.UID, s.box.containers[name], s.now); wait > 0 {
		s.later(wait)
		return true, nil
	}
	s.e.log.Info("all containers of the pod are restarted", "pod", s.object.Ref().String(), "after the exit of", name)
	s.reload()
	for _, list := range s.box.containers {
		for _, c := range list {
			if c.ID == asks.ID {
				continue
			}
			if err := s.removeContainer(ctx, c.ID); err != nil {
				return true, err
			}
		}
	}
	if err := s.removeContainer(ctx, asks.ID); err != nil {
		return true, err
	}
	s.reload()
	return false, nil
}

func (s *podSync) removeContainer(ctx context.Context, id string) error {
	s.e.probes.Forget(id)
	return s.e.pods.RemoveContainer(ctx, id)
}

// asksForAll finds a container that has ended and a rule of which says RestartAllContainers.
func (s *podSync) asksForAll() (pod.Container, bool) {
	for _, k := range slices.Concat(s.pod.Spec.InitContainers, s.pod.Spec.Containers) {
		last, ok := s.box.last(k.Name)
		if !ok || last.Status != runtime.Exited {
			continue
		}
		if r := fitting(&k, last); r != nil && r.Action == corev1.ContainerRestartRuleActionRestartAllContainers {
			return last, true
		}
	}
	return pod.Container{}, false
}

// expire ends a pod whose activeDeadlineSeconds are over.
func (s *podSync) expire(ctx context.Context, boxes []*box) (over bool, err error) {
	d := s.pod.Spec.ActiveDeadlineSeconds
	if d == nil {
		return false, nil
	}
	left := s.pod.CreationTimestamp.Add(time.Duration(*d) * time.Second).Sub(s.now)
	if left > 0 {
		s.later(left)
		return false, nil
	}
	return true, s.conclude(ctx, boxes, corev1.PodStatus{
		Phase: corev1.PodFailed, Reason: "DeadlineExceeded", Message: "the pod was active for longer than activeDeadlineSeconds",
	})
}

// finish stores the outcome of a pod whose containers have all ended for good.
func (s *podSync) finish(ctx context.Context) error {
	var boxes []*box
	for _, b := range s.e.pods.of(s.object.Ref()) {
		if b.Config.UID == string(s.pod.UID) {
			boxes = append(boxes, b)
		}
	}
	if len(boxes) == 0 {
		return nil
	}
	phase := s.outcome(boxes[0])
	if phase == "" {
		return nil
	}
	return s.conclude(ctx, boxes, corev1.PodStatus{Phase: phase})
}

// conclude ends what still runs, sidecars at least, and stores how the pod ended.
func (s *podSync) conclude(ctx context.Context, boxes []*box, end corev1.PodStatus) error {
	for _, b := range boxes {
		if err := s.e.endContainers(ctx, b, graceOf(s.pod)); err != nil {
			return err
		}
	}
	boxes = boxes[:0:0]
	for _, b := range s.e.pods.of(s.object.Ref()) {
		if b.Config.UID == string(s.pod.UID) {
			boxes = append(boxes, b)
		}
	}
	status := s.e.podStatus(s.pod, boxes)
	status.Phase = end.Phase
	if end.Reason != "" {
		status.Reason, status.Message = end.Reason, end.Message
	}
	err := s.e.objects.update(s.object, func(o manifest.Object) bool {
		o.Value().(*corev1.Pod).Status = status
		return true
	})
	if err != nil {
		return err
	}
	return s.e.stopBoxes(ctx, boxes)
}

// outcome is Succeeded or Failed when nothing of the pod will run any more, else "".
func (s *podSync) outcome(b *box) corev1.PodPhase {
	for i := range s.pod.Spec.InitContainers {
		name := s.pod.Spec.InitContainers[i].Name
		last, ok := b.last(name)
		if ok && last.Exit != nil && last.Exit.Code != 0 && !s.restarts(name, last) {
			return corev1.PodFailed
		}
	}
	phase := corev1.PodSucceeded
	for i := range s.pod.Spec.Containers {
		name := s.pod.Spec.Containers[i].Name
		last, ok := b.last(name)
		if !ok || last.Exit == nil || s.restarts(name, last) || last.Config.ImageName != s.pod.Spec.Containers[i].Image {
			return ""
		}
		if last.Exit.Code != 0 {
			phase = corev1.PodFailed
		}
	}
	return phase
}
