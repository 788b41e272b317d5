package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/pod/probe"
)

// endingAnnotation keeps with a sandbox what its end needs, for when the object is
// gone or is another.
const endingAnnotation = "pausa.run/ending"

// leastGrace is what is left for a container after a hook that took all the time.
const leastGrace = 2 * time.Second

// ending is how the containers of a pod end.
type ending struct {
	PreStop  map[string]*corev1.LifecycleHandler `json:"preStop,omitempty"`
	Sidecars []string                            `json:"sidecars,omitempty"` // in the order of their start
}

// noteEnding adds the annotation, unless the pod's containers just end.
func noteEnding(annotations map[string]string, p *corev1.Pod) error {
	delete(annotations, endingAnnotation) // nobody else's
	end := ending{PreStop: map[string]*corev1.LifecycleHandler{}}
	for i := range p.Spec.InitContainers {
		if manifest.IsSidecar(&p.Spec.InitContainers[i]) {
			end.Sidecars = append(end.Sidecars, p.Spec.InitContainers[i].Name)
		}
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
			end.PreStop[c.Name] = numbered(c.Lifecycle.PreStop, c.Ports)
		}
	}
	if len(end.PreStop)+len(end.Sidecars) == 0 {
		return nil
	}
	data, err := json.Marshal(end)
	if err != nil {
		return fmt.Errorf("note how the pod ends: %w", err)
	}
	annotations[endingAnnotation] = string(data)
	return nil
}

// numbered is a handler that asks a port by number, for when the names are gone.
func numbered(h *corev1.LifecycleHandler, ports []corev1.ContainerPort) *corev1.LifecycleHandler {
	h = h.DeepCopy()
	if h.HTTPGet != nil && h.HTTPGet.Port.Type == intstr.String {
		for _, p := range ports {
			if p.Name == h.HTTPGet.Port.StrVal {
				h.HTTPGet.Port = intstr.FromInt32(p.ContainerPort)
			}
		}
	}
	return h
}

// ending reads the annotation; one that cannot be read is none.
func (b *box) ending() ending {
	var end ending
	if err := json.Unmarshal([]byte(b.Config.Annotations[endingAnnotation]), &end); err != nil {
		return ending{}
	}
	return end
}

// endContainers stops what runs in a sandbox within the grace period: first all
// containers at once, then the sidecars, last started first.
func (e *Engine) endContainers(ctx context.Context, b *box, grace time.Duration) error {
	end := b.ending()
	deadline := e.clock.Now().Add(grace)
	sidecars := map[string]pod.Container{}
	var others []pod.Container
	for _, c := range b.running() {
		if slices.Contains(end.Sidecars, c.Config.Name) {
			sidecars[c.Config.Name] = c
		} else {
			others = append(others, c)
		}
	}
	if err := e.stopContainers(ctx, b, others, grace); err != nil {
		return err
	}
	for _, name := range slices.Backward(end.Sidecars) {
		if c, ok := sidecars[name]; ok {
			left := max(deadline.Sub(e.clock.Now()), min(grace, leastGrace))
			if err := e.stopContainer(ctx, b, c, left); err != nil {
				return err
			}
		}
	}
	return nil
}

// stopContainer runs the preStop hook, then asks the container to stop, and kills
// it when the grace period is over. Without a grace period it is killed at once.
func (e *Engine) stopContainer(ctx context.Context, b *box, c pod.Container, grace time.Duration) error {
	if by := e.killedBy(c.ID); by != "" {
		e.opts.Events.Normal(e.aboutBox(b, c.Config.Name), eventKilling, "Container %s is restarted: %s", c.Config.Name, by)
	} else {
		e.opts.Events.Normal(e.aboutBox(b, c.Config.Name), eventKilling, "Stopping container %s", c.Config.Name)
	}
	e.probes.Stop(c.ID)
	if h := b.ending().PreStop[c.Config.Name]; h != nil && grace > 0 {
		begun := e.clock.Now()
		limit, cancel := context.WithCancel(ctx)
		stop := e.clock.AfterFunc(grace, cancel)
		err := e.hook(limit, b, c, h)
		stop()
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			e.opts.Events.Warning(e.aboutBox(b, c.Config.Name), eventPreStop, "PreStopHook failed: %v", err)
			e.log.Warn("preStop hook fails; the container is stopped all the same", "pod", b.Config.Namespace+"/"+b.Config.Name, "container", c.Config.Name, "error", err)
		}
		grace = max(grace-e.clock.Now().Sub(begun), min(grace, leastGrace))
	}
	return e.pods.StopContainer(ctx, c.ID, grace)
}

// hook runs a lifecycle handler until it is done or ctx ends.
func (e *Engine) hook(ctx context.Context, b *box, c pod.Container, h *corev1.LifecycleHandler) error {
	if h.Sleep != nil {
		done := make(chan struct{})
		defer e.clock.AfterFunc(time.Duration(h.Sleep.Seconds)*time.Second, func() { close(done) })()
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	t := probe.Target{PodID: b.ID, ContainerID: c.ID}
	ips := b.IPs
	if b.Config.HostNetwork {
		ips = e.opts.NodeIPs()
	}
	if len(ips) > 0 {
		t.Host = ips[0].String()
	}
	return probe.Hook(ctx, e.opts.Pods, t, h)
}

// postStart runs the hook of a container that has just started. If it fails the
// container is killed, and the restart policy decides.
func (s *podSync) postStart(ctx context.Context, c *corev1.Container, id string) error {
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return nil
	}
	end := s.e.hooks.begin(id)
	defer func() {
		end()
		s.e.touched(s.object.Ref())
	}()
	a := pod.Container{ID: id, Config: pod.ContainerConfig{Name: c.Name}}
	err := s.e.hook(ctx, s.box, a, numbered(c.Lifecycle.PostStart, c.Ports))
	if err == nil || ctx.Err() != nil {
		return nil
	}
	s.e.opts.Events.Warning(s.aboutContainer(c.Name), eventPostStart, "PostStartHook failed: %v", err)
	s.e.log.Warn("postStart hook fails; the container is stopped", "pod", s.object.Ref().String(), "container", c.Name, "error", err)
	return s.e.stopContainer(ctx, s.box, a, graceOf(s.pod))
}

// hooked says whether a container's postStart hook is under way: it is not ready until then.
func (e *Engine) hooked(id string) bool {
	e.hooks.mu.Lock()
	defer e.hooks.mu.Unlock()
	return e.hooks.running[id]
}

// hooks are the containers whose postStart hook is under way.
type hooks struct {
	mu      sync.Mutex
	running map[string]bool
}

func (h *hooks) begin(id string) (end func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running == nil {
		h.running = map[string]bool{}
	}
	h.running[id] = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.running, id)
	}
}
