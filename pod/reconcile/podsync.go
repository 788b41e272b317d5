package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

// syncPod does the next steps for one pod name, and says when to look again even
// if nothing happens; 0 is never.
func (e *Engine) syncPod(ctx context.Context, ref manifest.Ref) (time.Duration, error) {
	o, declared := e.objects.get(ref)
	var own, strangers []*box
	for _, b := range e.pods.of(ref) {
		if declared && b.Config.UID == string(o.Meta().UID) {
			own = append(own, b)
		} else {
			strangers = append(strangers, b)
		}
	}
	// The pod was deleted or re-created with another uid: the former one ends first.
	if err := e.endStrangers(ctx, strangers); err != nil || !declared {
		return 0, err
	}
	p := o.Value().(*corev1.Pod)
	switch {
	case p.DeletionTimestamp != nil:
		return 0, e.endPod(ctx, o, own)
	case terminal(p):
		return 0, e.stopBoxes(ctx, own)
	}
	s := &podSync{e: e, object: o, pod: p, now: e.clock.Now()}
	return s.run(ctx, own)
}

func terminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// podSync is one pass over a pod that should run.
type podSync struct {
	e      *Engine
	object manifest.Object
	pod    *corev1.Pod
	now    time.Time
	box    *box

	mu    sync.Mutex // guards what follows: containers are worked on side by side
	again time.Duration
	errs  []error
}

// later asks for another pass after d, or sooner if somebody else asked for that.
func (s *podSync) later(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d > 0 && (s.again == 0 || d < s.again) {
		s.again = d
	}
}

func (s *podSync) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

func (s *podSync) run(ctx context.Context, boxes []*box) (time.Duration, error) {
	if late, err := s.expire(ctx, boxes); late || err != nil {
		return 0, err
	}
	if err := s.sandbox(ctx, boxes); err != nil || s.box == nil {
		return s.again, err
	}
	if err := s.e.volumes.refresh(s.pod, s.e.lookup); err != nil {
		s.fail(err) // running containers keep what they have
	}
	again, err := s.restartAll(ctx)
	if err != nil {
		s.fail(err)
	}
	if !again && s.outcome(s.box) == "" {
		var wg sync.WaitGroup
		for _, c := range s.due(func(c *corev1.Container) { s.container(ctx, c) }) {
			wg.Go(func() { s.container(ctx, c) })
		}
		wg.Wait()
		s.reload()
	}
	s.watch()
	if len(s.errs) == 0 {
		s.fail(s.finish(ctx))
	}
	return s.again, errors.Join(s.errs...)
}

// sandbox finds the ready sandbox or makes one; s.box stays nil while that must wait.
func (s *podSync) sandbox(ctx context.Context, boxes []*box) error {
	uid := s.pod.UID
	if len(boxes) > 0 && boxes[0].Ready && boxes[0].Problem == "" {
		s.box = boxes[0]
		return s.e.removeBoxes(ctx, boxes[1:])
	}
	if err := s.e.stopBoxes(ctx, boxes); err != nil {
		return err
	}
	if wait := s.e.notes.get(uid, sandboxNote).until.Sub(s.now); wait > 0 {
		s.later(wait)
		return nil
	}
	if len(boxes) > 0 {
		s.e.opts.Events.Normal(about(s.object), eventSandbox, "Pod sandbox changed, it will be killed and re-created.")
	}
	cfg, err := s.e.sandboxConfig(s.pod, nextBox(boxes))
	reason := reasonSandbox
	if err == nil {
		if err = s.e.volumes.prepare(s.pod, s.e.lookup); err != nil {
			reason = reasonVolume
		}
	}
	if err == nil {
		err = s.startBox(ctx, cfg)
	}
	if err != nil {
		if ctx.Err() == nil {
			s.e.opts.Events.Warning(about(s.object), reason, "%s: %v", map[string]string{reasonSandbox: "Failed to create pod sandbox", reasonVolume: "Volumes cannot be mounted"}[reason], err)
			s.later(s.e.notes.failed(uid, sandboxNote, reason, err.Error(), s.now))
		}
		return err
	}
	s.e.notes.clear(uid, sandboxNote)
	return s.e.removeBoxes(ctx, boxes)
}

func (s *podSync) startBox(ctx context.Context, cfg pod.Config) error {
	if err := s.e.acquire(ctx); err != nil {
		return err
	}
	defer s.e.release()
	id, err := s.e.pods.Run(ctx, cfg)
	if err != nil {
		return err
	}
	for _, b := range s.e.pods.of(s.object.Ref()) {
		if b.ID == id {
			s.box = b
			return nil
		}
	}
	return fmt.Errorf("run pod %s: its sandbox %s is gone again", s.object.Ref(), id)
}

func nextBox(boxes []*box) uint32 {
	if len(boxes) == 0 {
		return 0
	}
	return boxes[0].Config.Attempt + 1
}

func (e *Engine) acquire(ctx context.Context) error {
	select {
	case e.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *Engine) release() { <-e.slots }

// container does what one container needs now.
func (s *podSync) container(ctx context.Context, c *corev1.Container) {
	last, ok := s.box.last(c.Name)
	switch {
	case !ok:
		s.start(ctx, c)
	case last.Status == runtime.Created:
		s.release(ctx, c, last.ID)
	case last.Status == runtime.Running && last.Config.ImageName == c.Image:
		s.running(ctx, c, last)
	case last.Status == runtime.Running:
		s.replace(ctx, c, last) // the image was changed
	case last.Config.ImageName != c.Image:
		s.start(ctx, c)
	case s.restarts(c.Name, last):
		before := s.e.notes.get(s.pod.UID, c.Name)
		if wait := s.e.notes.restart(s.pod.UID, s.box.containers[c.Name], s.now); wait > 0 {
			if before.reason != reasonCrashLoop || before.exit != last.ID {
				s.e.opts.Events.Warning(s.aboutContainer(c.Name), eventBackOff, "Back-off restarting failed container %s in pod %s", c.Name, s.pod.Name)
			}
			s.later(wait)
			return
		}
		s.start(ctx, c)
	}
}

// replace restarts a container as its manifest is now, in the same pod.
func (s *podSync) replace(ctx context.Context, c *corev1.Container, last pod.Container) {
	if err := s.e.stopContainer(ctx, s.box, last, graceOf(s.pod)); err != nil {
		s.fail(err)
		return
	}
	s.start(ctx, c)
}

// running resizes a container, and ends one that its probe gave up.
func (s *podSync) running(ctx context.Context, c *corev1.Container, last pod.Container) {
	st, _ := s.e.probes.State(last.ID)
	if st.Failed == "" {
		s.e.notes.clear(s.pod.UID, c.Name)
		restart, err := s.resize(ctx, c, last)
		if err != nil {
			s.fail(err)
		}
		if restart {
			s.replace(ctx, c, last)
		}
		return
	}
	grace := graceOf(s.pod)
	if st.Grace != nil {
		grace = time.Duration(*st.Grace) * time.Second
	}
	if err := s.e.stopContainer(ctx, s.box, last, grace); err != nil {
		s.fail(err)
	}
}

// start makes and starts the next attempt of a container, unless a failed try asks for patience.
func (s *podSync) start(ctx context.Context, c *corev1.Container) {
	n := s.e.notes.get(s.pod.UID, c.Name)
	if wait := n.until.Sub(s.now); wait > 0 && n.reason != reasonCrashLoop {
		s.later(wait)
		if n.reason == reasonPull || n.reason == reasonUnverified {
			s.backOff(c, backoffShown-(n.delay-wait))
		}
		return
	}
	if err := s.e.acquire(ctx); err != nil {
		return
	}
	id, err := s.create(ctx, c)
	s.e.release()
	if err != nil {
		s.refuse(ctx, c, err)
		return
	}
	s.e.opts.Events.Normal(s.aboutContainer(c.Name), eventCreated, "Created container: %s", c.Name)
	s.release(ctx, c, id)
}

// refuse notes why a container could not be made and when to try again.
func (s *podSync) refuse(ctx context.Context, c *corev1.Container, err error) {
	if ctx.Err() != nil {
		return
	}
	w := &waiting{reasonCreate, err}
	errors.As(err, &w)
	wait := s.e.notes.failed(s.pod.UID, c.Name, w.reason, w.err.Error(), s.e.clock.Now())
	s.tellRefusal(c, w)
	s.e.log.Warn("container does not start", "pod", s.object.Ref().String(), "container", c.Name, "reason", w.reason, "error", w.err, "retry in", wait)
	s.later(wait)
	if w.reason == reasonPull || w.reason == reasonUnverified {
		s.backOff(c, backoffShown)
	}
}

// backOff shows, after the given time, a back-off in the place of why a pull failed.
func (s *podSync) backOff(c *corev1.Container, after time.Duration) {
	if after > 0 {
		s.later(after)
		return
	}
	s.e.opts.Events.Normal(s.aboutContainer(c.Name), eventBackOff, "Back-off pulling image %q", c.Image)
	s.e.notes.change(s.pod.UID, c.Name, func(v *note) {
		v.reason, v.message = reasonPullBackoff, "Back-off "+v.delay.String()+" pulling image: "+v.reason+": "+v.message
	})
}

// release starts a container that has been made.
func (s *podSync) release(ctx context.Context, c *corev1.Container, id string) {
	if err := s.e.acquire(ctx); err != nil {
		return
	}
	err := s.e.pods.StartContainer(ctx, id)
	s.e.release()
	if err == nil {
		s.e.notes.clear(s.pod.UID, c.Name)
		s.e.opts.Events.Normal(s.aboutContainer(c.Name), eventStarted, "Started container %s", c.Name)
		if err := s.postStart(ctx, c, id); err != nil {
			s.fail(err)
		}
		return
	}
	if ctx.Err() != nil {
		return
	}
	for _, b := range s.e.pods.of(s.object.Ref()) {
		if last, ok := b.last(c.Name); ok && last.ID == id && last.Status == runtime.Exited {
			s.later(time.Millisecond) // its exit says why; the restart policy decides
			return
		}
	}
	s.refuse(ctx, c, &waiting{reasonRun, err})
}

func graceOf(p *corev1.Pod) time.Duration {
	if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
		return time.Duration(*g) * time.Second
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// lookup finds a declared object for environment and volumes.
func (e *Engine) lookup(kind, namespace, name string) (manifest.Object, bool) {
	return e.objects.get(manifest.Ref{Kind: kind, Namespace: namespace, Name: name})
}
