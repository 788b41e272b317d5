package reconcile

import (
	"errors"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/event"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/pod/probe"
)

// Reasons of events, as the kubelet and the controllers word them, besides those
// of waiting.
const (
	eventPulling       = "Pulling"
	eventPulled        = "Pulled"
	eventInspectFailed = "InspectFailed"
	eventCreated       = "Created"
	eventStarted       = "Started"
	eventFailed        = "Failed"
	eventBackOff       = "BackOff"
	eventKilling       = "Killing"
	eventUnhealthy     = "Unhealthy"
	eventOOM           = "OOMKilling"
	eventPostStart     = "FailedPostStartHook"
	eventPreStop       = "FailedPreStopHook"
	eventSandbox       = "SandboxChanged"
	eventMade          = "SuccessfulCreate"
	eventDeleted       = "SuccessfulDelete"
	eventMakeFailed    = "FailedCreate"
	eventIPTaken       = "ClusterIPAlreadyAllocated"
	eventIPRange       = "ClusterIPOutOfRange"
	eventPortTaken     = "PortAlreadyAllocated"
	eventPortRange     = "PortOutOfRange"
	eventEndpoints     = "EndpointsReady"
	eventNoEndpoints   = "NoReadyEndpoints"
)

// about is an object of ours as events name it.
func about(o manifest.Object) event.Object {
	return event.Object{Kind: o.Kind(), Namespace: o.Namespace(), Name: o.Name(), UID: o.Meta().UID}
}

// aboutContainer is a container of the pod.
func (s *podSync) aboutContainer(name string) event.Object {
	o := about(s.object)
	o.Field = fieldOf(name, s.isInit(name))
	return o
}

func fieldOf(container string, isInit bool) string {
	if isInit {
		return "spec.initContainers{" + container + "}"
	}
	return "spec.containers{" + container + "}"
}

// aboutBox is a container of a sandbox, whose object may be gone.
func (e *Engine) aboutBox(b *box, container string) event.Object {
	ref := refOfBox(b)
	o := event.Object{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, UID: types.UID(b.Config.UID)}
	isInit := false
	if p, ok := e.objects.get(ref); ok {
		s := &podSync{pod: p.Value().(*corev1.Pod)}
		isInit = s.isInit(container)
	}
	o.Field = fieldOf(container, isInit)
	return o
}

// tellRefusal notes why a container does not start.
func (s *podSync) tellRefusal(c *corev1.Container, w *waiting) {
	ev, o := s.e.opts.Events, s.aboutContainer(c.Name)
	switch w.reason {
	case reasonPull, reasonUnverified:
		ev.Warning(o, eventFailed, "Failed to pull image %q: %v", c.Image, w.err)
	case reasonNeverPull:
		ev.Warning(o, reasonNeverPull, "Container image %q is not present with pull policy of Never", c.Image)
	case reasonBadImage:
		ev.Warning(o, eventInspectFailed, "%v", w.err)
	default:
		ev.Warning(o, eventFailed, "Error: %v", w.err)
	}
}

// unhealthy hears of each check of a probe that fails.
func (e *Engine) unhealthy(t probe.Target, kind, message string) {
	ref, ok := e.pods.refOf(t.PodID)
	if !ok {
		return
	}
	for _, b := range e.pods.of(ref) {
		if b.ID == t.PodID {
			name := t.Name[strings.LastIndexByte(t.Name, '/')+1:]
			e.opts.Events.Warning(e.aboutBox(b, name), eventUnhealthy, "%s probe failed: %s", strings.ToUpper(kind[:1])+kind[1:], message)
		}
	}
}

// tellExit notes that the kernel has killed a container for its memory.
func (e *Engine) tellExit(ref manifest.Ref, ev pod.Event) {
	if ev.Type != pod.EventStopped || ev.ContainerID == "" || e.opts.Events == nil {
		return
	}
	for _, b := range e.pods.of(ref) {
		for name, list := range b.containers {
			for _, c := range list {
				if c.ID == ev.ContainerID && c.Exit != nil && c.Exit.OOMKilled {
					e.opts.Events.Warning(e.aboutBox(b, name), eventOOM, "Container %s was killed for its memory: %s", name, c.Exit.OOMMessage())
				}
			}
		}
	}
}

// tellTaken notes that a Service that was stored does not get what it had.
func (e *Engine) tellTaken(o manifest.Object, err error) {
	if many, ok := err.(interface{ Unwrap() []error }); ok { // one event for each that was joined
		for _, one := range many.Unwrap() {
			e.tellTaken(o, one)
		}
		return
	}
	reason := map[bool]string{true: eventIPTaken, false: eventIPRange}
	if strings.HasPrefix(err.Error(), "node port ") {
		reason = map[bool]string{true: eventPortTaken, false: eventPortRange}
	}
	e.opts.Events.Warning(about(o), reason[errors.Is(err, service.ErrInUse)], "%v", err)
}

// tellEndpoints notes that a Service has lost its last endpoint, or has one again.
func (e *Engine) tellEndpoints(o manifest.Object, old, now service.Service) {
	if old.Name == "" {
		return // it is new, or the daemon is
	}
	had, has := 0, 0
	for _, p := range old.Ports {
		had += len(p.Endpoints)
	}
	for _, p := range now.Ports {
		has += len(p.Endpoints)
	}
	switch {
	case had > 0 && has == 0:
		e.opts.Events.Warning(about(o), eventNoEndpoints, "No endpoint is ready any more: connections are refused")
	case had == 0 && has > 0:
		e.opts.Events.Normal(about(o), eventEndpoints, "Connections go to endpoints that are ready")
	}
}
