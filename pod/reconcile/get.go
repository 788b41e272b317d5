package reconcile

import (
	"path/filepath"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
)

// Get returns copies of objects with their status, sorted by kind, namespace and
// name. kind "" is every kind that can be declared, namespace "" every namespace,
// name "" every name, sel nil all labels. A name that is not there is an error
// that wraps pod.ErrNotFound.
func (e *Engine) Get(kind, namespace, name string, sel labels.Selector) ([]manifest.Object, error) {
	if kind != "" && !slices.Contains(manifest.Kinds(), kind) {
		return nil, faultf(pod.ErrInvalid, "unknown kind %q", kind)
	}
	if kind == manifest.KindNamespace {
		namespace = ""
	}
	var out []manifest.Object
	for _, o := range e.candidates(kind, namespace, name) {
		if (name == "" || o.Name() == name) && (sel == nil || sel.Matches(labels.Set(o.Meta().Labels))) {
			out = append(out, e.withStatus(o))
		}
	}
	if name != "" && len(out) == 0 {
		return nil, notFound(kind, namespace, name)
	}
	manifest.Sort(out)
	return out, nil
}

func notFound(kind, namespace, name string) error {
	if kind == "" {
		kind = "object"
	}
	return faultf(pod.ErrNotFound, "%s not found", manifest.Ref{Kind: kind, Namespace: namespace, Name: name})
}

// candidates are the objects of a kind, with those that have no file.
func (e *Engine) candidates(kind, namespace, name string) []manifest.Object {
	switch kind {
	case manifest.KindEndpoints:
		return e.endpointsShown(namespace)
	case manifest.KindEndpointSlice:
		return e.slicesShown(namespace)
	}
	out := e.objects.named(kind, namespace, name)
	if (kind == manifest.KindNamespace || kind == "") && namespace == "" {
		if _, ok := e.objects.get(manifest.Ref{Kind: manifest.KindNamespace, Name: defaultNamespace}); !ok {
			out = append(out, manifest.New(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: defaultNamespace}}))
		}
	}
	return out
}

// withStatus is a copy with the status worked out.
func (e *Engine) withStatus(o manifest.Object) manifest.Object {
	c := o.DeepCopy()
	switch v := c.Value().(type) {
	case *corev1.Pod:
		v.Spec.NodeName = e.opts.NodeName
		v.Status = e.statusOf(o.Value().(*corev1.Pod))
	case *appsv1.Deployment:
		v.Status = e.deploymentStatus(o.Value().(*appsv1.Deployment))
	case *corev1.Service:
		v.Status.LoadBalancer = e.balancerStatus(o.Value().(*corev1.Service))
	case *corev1.Namespace:
		v.Status.Phase = corev1.NamespaceActive
		if v.DeletionTimestamp != nil {
			v.Status.Phase = corev1.NamespaceTerminating
		}
	}
	return c
}

// FindContainer finds a container by names for logs and exec. container "" is the
// one that the annotation kubectl.kubernetes.io/default-container names, else the
// first. With previous it is the attempt before the last. containerID is "" if
// only the log is left.
func (e *Engine) FindContainer(namespace, podName, container string, previous bool) (containerID, logPath string, err error) {
	ref := manifest.Ref{Kind: manifest.KindPod, Namespace: namespace, Name: podName}
	o, ok := e.objects.get(ref)
	if !ok {
		return "", "", notFound(ref.Kind, namespace, podName)
	}
	p := o.Value().(*corev1.Pod)
	if container, err = chooseContainer(p, container); err != nil {
		return "", "", err
	}
	attempts := map[uint32]string{} // to container id
	for _, n := range e.logAttempts(p, container) {
		attempts[n] = ""
	}
	for _, b := range e.pods.of(ref) {
		if b.Config.UID == string(p.UID) {
			for _, c := range b.containers[container] {
				attempts[c.Config.Attempt] = c.ID
			}
		}
	}
	var order []uint32
	for n := range attempts {
		order = append(order, n)
	}
	slices.Sort(order)
	at := len(order) - 1
	if previous {
		at--
	}
	if at < 0 {
		return "", "", e.noContainer(p, container, previous)
	}
	n := order[at]
	return attempts[n], filepath.Join(e.logDir(p), logName(container, n)), nil
}

func chooseContainer(p *corev1.Pod, name string) (string, error) {
	if name == "" {
		name = p.Annotations["kubectl.kubernetes.io/default-container"]
	}
	if name == "" {
		return p.Spec.Containers[0].Name, nil
	}
	var names []string
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		if c.Name == name {
			return name, nil
		}
		names = append(names, c.Name)
	}
	return "", faultf(pod.ErrNotFound, "pod %s/%s has no container %q; it has %v", p.Namespace, p.Name, name, names)
}

// noContainer says why there is nothing to show yet.
func (e *Engine) noContainer(p *corev1.Pod, name string, previous bool) error {
	if previous {
		return faultf(pod.ErrNotFound, "container %s of pod %s/%s has no previous attempt", name, p.Namespace, p.Name)
	}
	why := "not started yet"
	st := e.statusOf(p)
	for _, c := range slices.Concat(st.ContainerStatuses, st.InitContainerStatuses) {
		if w := c.State.Waiting; c.Name == name && w != nil && w.Reason != "" {
			why = w.Reason
			if w.Message != "" {
				why += ": " + w.Message
			}
		}
	}
	return faultf(pod.ErrState, "container %s of pod %s/%s is waiting to start: %s", name, p.Namespace, p.Name, why)
}
