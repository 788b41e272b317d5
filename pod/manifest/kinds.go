package manifest

import (
	"fmt"
	"strings"

	"github.com/pausa-run/pausa/internal/nearest"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The kinds that Pausa knows. Endpoints and EndpointSlices are declared for
// Services without a selector, and can be read of all.
const (
	KindNamespace  = "Namespace"
	KindConfigMap  = "ConfigMap"
	KindSecret     = "Secret"
	KindService    = "Service"
	KindDeployment = "Deployment"
	KindPod        = "Pod"
	KindEndpoints  = "Endpoints"

	KindEndpointSlice = "EndpointSlice"
)

// kind is one row of the table of kinds.
type kind struct {
	name       string
	group      string
	plural     string
	short      string
	namespaced bool
	make       func() Typed
}

func (k kind) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.group, Version: "v1", Kind: k.name}
}

func (k kind) apiVersion() string { return k.gvk().GroupVersion().String() }

// kinds is in the order in which objects are stored: what others need comes first.
func kinds() []kind {
	return []kind{
		{KindNamespace, "", "namespaces", "ns", false, func() Typed { return &corev1.Namespace{} }},
		{KindConfigMap, "", "configmaps", "cm", true, func() Typed { return &corev1.ConfigMap{} }},
		{KindSecret, "", "secrets", "", true, func() Typed { return &corev1.Secret{} }},
		{KindService, "", "services", "svc", true, func() Typed { return &corev1.Service{} }},
		{KindEndpoints, "", "endpoints", "ep", true, func() Typed { return &corev1.Endpoints{} }}, //nolint:staticcheck // what older manifests have
		{KindEndpointSlice, "discovery.k8s.io", "endpointslices", "", true, func() Typed { return &discoveryv1.EndpointSlice{} }},
		{KindDeployment, "apps", "deployments", "deploy", true, func() Typed { return &appsv1.Deployment{} }},
		{KindPod, "", "pods", "po", true, func() Typed { return &corev1.Pod{} }},
	}
}

func kindNamed(name string) (kind, bool) {
	for _, k := range kinds() {
		if k.name == name {
			return k, true
		}
	}
	return kind{}, false
}

// Kinds lists the kinds that can be declared, in the order in which objects are stored.
func Kinds() []string {
	var out []string
	for _, k := range kinds() {
		out = append(out, k.name)
	}
	return out
}

// Namespaced says whether objects of that kind are in a namespace.
func Namespaced(name string) bool {
	k, _ := kindNamed(name)
	return k.namespaced
}

// KindFor turns what people type ("po", "pods", "Pod", "deploy", "deployments.apps")
// into a kind; an unknown word is an error with the nearest one.
func KindFor(word string) (string, error) {
	w := strings.ToLower(word)
	var words []string
	for _, k := range kinds() {
		lower := strings.ToLower(k.name)
		full := k.plural
		if k.group != "" {
			full += "." + k.group
		}
		if w == lower || w == k.plural || w == full || (k.short != "" && w == k.short) {
			return k.name, nil
		}
		words = append(words, lower, k.plural)
	}
	for _, name := range foreignKinds() {
		if l := strings.ToLower(name); w == l || w == l+"s" {
			return "", fmt.Errorf("kind %s is not supported yet", name)
		}
	}
	return "", fmt.Errorf("unknown kind %q%s", word, hint(w, words))
}

// foreignKinds are valid in Kubernetes and not here (yet).
func foreignKinds() []string {
	return []string{
		"DaemonSet", "StatefulSet", "ReplicaSet", "ReplicationController", "Job", "CronJob", "Ingress", "IngressClass",
		"NetworkPolicy", "PersistentVolume", "PersistentVolumeClaim", "StorageClass", "VolumeAttachment", "ServiceAccount",
		"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "HorizontalPodAutoscaler", "PodDisruptionBudget",
		"PriorityClass", "RuntimeClass", "LimitRange", "ResourceQuota", "CustomResourceDefinition",
		"PodTemplate", "Node", "Event", "Lease", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration",
		"APIService", "CSIDriver", "CSINode",
	}
}

// hint is `; did you mean "X"?` with the nearest candidate, or "".
func hint(got string, candidates []string) string {
	if near := nearest.Word(got, candidates); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}
