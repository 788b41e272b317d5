package manifest

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The kinds that Pausa knows. Endpoints can be read but not declared.
const (
	KindNamespace  = "Namespace"
	KindConfigMap  = "ConfigMap"
	KindSecret     = "Secret"
	KindService    = "Service"
	KindDeployment = "Deployment"
	KindPod        = "Pod"
	KindEndpoints  = "Endpoints"
)

// kind is one row of the table of kinds.
type kind struct {
	name       string
	group      string
	plural     string
	short      string
	namespaced bool
	readOnly   bool
	make       func() Typed
}

func (k kind) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.group, Version: "v1", Kind: k.name}
}

func (k kind) apiVersion() string { return k.gvk().GroupVersion().String() }

// kinds is in the order in which objects are stored: what others need comes first.
func kinds() []kind {
	return []kind{
		{KindNamespace, "", "namespaces", "ns", false, false, func() Typed { return &corev1.Namespace{} }},
		{KindConfigMap, "", "configmaps", "cm", true, false, func() Typed { return &corev1.ConfigMap{} }},
		{KindSecret, "", "secrets", "", true, false, func() Typed { return &corev1.Secret{} }},
		{KindService, "", "services", "svc", true, false, func() Typed { return &corev1.Service{} }},
		{KindDeployment, "apps", "deployments", "deploy", true, false, func() Typed { return &appsv1.Deployment{} }},
		{KindPod, "", "pods", "po", true, false, func() Typed { return &corev1.Pod{} }},
		{KindEndpoints, "", "endpoints", "ep", true, true, func() Typed { return &corev1.Endpoints{} }}, //nolint:staticcheck // read only
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
		if !k.readOnly {
			out = append(out, k.name)
		}
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
		"PriorityClass", "RuntimeClass", "LimitRange", "ResourceQuota", "EndpointSlice", "CustomResourceDefinition",
		"PodTemplate", "Node", "Event", "Lease", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration",
		"APIService", "CSIDriver", "CSINode",
	}
}

// hint is `; did you mean "X"?` with the nearest candidate, or "".
func hint(got string, candidates []string) string {
	best, score := "", len(got)/3+2
	for _, c := range candidates {
		if d := distance(strings.ToLower(got), strings.ToLower(c)); d < score {
			best, score = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance is the number of letters to insert, delete, replace or swap with
// their neighbour to make b of a. Long words count as far apart.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	before, prev := []int(nil), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
