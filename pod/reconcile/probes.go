package reconcile

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/pod/probe"
	"github.com/pausa-run/pausa/runtime"
)

// health is what probes and hooks say of a running container.
type health struct {
	started, ready bool
	since          time.Time // of ready
}

func probed(c *corev1.Container) bool {
	return c.StartupProbe != nil || c.ReadinessProbe != nil || c.LivenessProbe != nil
}

// health of an attempt. One that has not been asked yet is not ready.
func (e *Engine) health(c *corev1.Container, a pod.Container) health {
	if a.Status != runtime.Running || e.hooked(a.ID) {
		return health{}
	}
	if !probed(c) {
		return health{started: true, ready: true}
	}
	st, ok := e.probes.State(a.ID)
	if !ok {
		return health{started: c.StartupProbe == nil, ready: c.StartupProbe == nil && c.ReadinessProbe == nil}
	}
	return health{st.Started, st.Ready, st.Since}
}

// killedBy says which probe asked for the end of a container, "" for none.
func (e *Engine) killedBy(id string) string {
	st, ok := e.probes.State(id)
	if !ok || st.Failed == "" {
		return ""
	}
	return "the " + st.Failed + " probe failed: " + st.Message
}

// watch probes the containers of a pod that run, and no others.
func (s *podSync) watch() {
	for _, list := range [][]corev1.Container{s.pod.Spec.InitContainers, s.pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			last, ok := s.box.last(c.Name)
			switch {
			case !ok || !probed(c):
			case last.Status == runtime.Running && s.box.Ready:
				s.e.probes.Watch(s.target(c, last))
			default:
				s.e.probes.Stop(last.ID)
			}
		}
	}
}

func (s *podSync) target(c *corev1.Container, last pod.Container) probe.Target {
	t := probe.Target{
		PodID: s.box.ID, ContainerID: last.ID, Name: s.pod.Namespace + "/" + s.pod.Name + "/" + c.Name,
		Ports: c.Ports, StartedAt: last.StartedAt,
		Startup: c.StartupProbe, Readiness: c.ReadinessProbe, Liveness: c.LivenessProbe,
	}
	if ips := s.e.podIPs(s.pod, s.box); len(ips) > 0 {
		t.Host = ips[0]
	}
	return t
}

// answered hears that a probe has changed its mind. Traffic follows at once, also
// while the pod is being worked on.
func (e *Engine) answered(t probe.Target) {
	ref, ok := e.pods.refOf(t.PodID)
	if !ok {
		return
	}
	e.work.add(ref)
	e.touched(ref)
}

// forgetProbes drops what is known of containers that are gone.
func (e *Engine) forgetProbes() {
	known := map[string]bool{}
	for _, c := range e.opts.Pods.Containers() {
		known[c.ID] = true
	}
	e.probes.Retain(func(id string) bool { return known[id] })
}

// begun says whether a sidecar has come up, so that the next container may start.
func (s *podSync) begun(c *corev1.Container) bool {
	last, ok := s.box.last(c.Name)
	return ok && s.e.health(c, last).started
}

// reload looks at the pod's sandbox again.
func (s *podSync) reload() {
	for _, b := range s.e.pods.of(s.object.Ref()) {
		if b.ID == s.box.ID {
			s.box = b
		}
	}
}

// due runs what has to run first and returns the containers to look after now,
// side by side. Init containers run one after the other; a sidecar among them
// stays, and the next one waits until it has started.
func (s *podSync) due(do func(*corev1.Container)) []*corev1.Container {
	var all []*corev1.Container
	begun := false
	for i := range s.pod.Spec.Containers {
		_, ok := s.box.last(s.pod.Spec.Containers[i].Name)
		begun = begun || ok
	}
	for i := range s.pod.Spec.InitContainers {
		c := &s.pod.Spec.InitContainers[i]
		last, ok := s.box.last(c.Name)
		succeeded := ok && last.Status == runtime.Exited && last.Exit != nil && last.Exit.Code == 0
		switch {
		case begun && manifest.IsSidecar(c):
			all = append(all, c)
		case begun:
		case manifest.IsSidecar(c):
			do(c)
			s.reload()
			s.watch()
			if !s.begun(c) {
				return nil // its probe wakes us
			}
		case !succeeded:
			do(c)
			return nil // its exit wakes us
		}
	}
	for i := range s.pod.Spec.Containers {
		all = append(all, &s.pod.Spec.Containers[i])
	}
	return all
}
