package event

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// component is who reports all events.
const component = "pausa"

// Namespace is where an event is listed: that of its object, or default, as
// Kubernetes does with events of nodes.
func (e *Event) Namespace() string {
	if e.Object.Namespace == "" {
		return metav1.NamespaceDefault
	}
	return e.Object.Namespace
}

// Kubernetes is the event as an API object.
func (e *Event) Kubernetes(node string) *corev1.Event {
	out := &corev1.Event{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: e.Namespace(), Name: fmt.Sprintf("%s.%x", e.Object.Name, e.ID), UID: types.UID(fmt.Sprintf("%s.%x", component, e.ID)),
			CreationTimestamp: metav1.NewTime(e.First.UTC()), ResourceVersion: strconv.FormatInt(e.Last.UnixNano(), 10),
		},
		InvolvedObject: corev1.ObjectReference{Kind: e.Object.Kind, Namespace: e.Object.Namespace, Name: e.Object.Name, UID: e.Object.UID, FieldPath: e.Object.Field},
		Type:           corev1.EventTypeNormal, Reason: e.Reason, Message: e.Message,
		Source:         corev1.EventSource{Component: component, Host: node},
		FirstTimestamp: metav1.NewTime(e.First.UTC()), LastTimestamp: metav1.NewTime(e.Last.UTC()), Count: e.Count,
		ReportingController: component, ReportingInstance: node,
	}
	switch e.Object.Kind {
	case podKind, "Service", "Node":
		out.InvolvedObject.APIVersion = "v1"
	case "Deployment":
		out.InvolvedObject.APIVersion = "apps/v1"
	}
	if e.Warning {
		out.Type = corev1.EventTypeWarning
	}
	return out
}
