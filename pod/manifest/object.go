// Package manifest reads declared objects: Kubernetes manifests, decoded
// strictly. What is unknown, wrong or not supported yet is an error that names
// the file, the line and, if there is one, the name that was probably meant.
package manifest

import (
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Typed is a pointer to a Kubernetes object of k8s.io/api.
type Typed interface {
	metav1.Object
	k8sruntime.Object
}

// Ref names one object. Namespace is "" for kinds that are in none.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String is "Pod default/hello", or "Namespace shop".
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Source is where an object was read; Line is 0 if it is not known.
type Source struct {
	File string
	Line int
}

// String is "hello.yaml:3".
func (s Source) String() string {
	if s.Line == 0 {
		return s.File
	}
	return fmt.Sprintf("%s:%d", s.File, s.Line)
}

// Object is one declared object and where it came from. The zero Object holds
// nothing; its accessors must not be called.
type Object struct {
	Source Source
	value  Typed
	lines  map[string]int // field path ("spec.containers[0].image") to line
}

// New wraps a typed object of one of Kinds; its TypeMeta is left
// empty. The object is not copied.
func New(value Typed) Object { return Object{value: value} }

// IsZero says that the Object holds nothing.
func (o Object) IsZero() bool { return o.value == nil }

// Value is the typed object: *corev1.Pod, *appsv1.Deployment, …
func (o Object) Value() Typed { return o.value }

// Meta is the object's metadata, not a copy.
func (o Object) Meta() *metav1.ObjectMeta {
	return o.value.(metav1.ObjectMetaAccessor).GetObjectMeta().(*metav1.ObjectMeta)
}

// Kind is "Pod", "Service", …
func (o Object) Kind() string { return kindOfValue(o.value) }

// Namespace is "" for kinds that are in none.
func (o Object) Namespace() string { return o.value.GetNamespace() }

// Name is metadata.name.
func (o Object) Name() string { return o.value.GetName() }

// Ref names the object.
func (o Object) Ref() Ref { return Ref{o.Kind(), o.Namespace(), o.Name()} }

// DeepCopy shares nothing that can be changed with o.
func (o Object) DeepCopy() Object {
	o.value = o.value.DeepCopyObject().(Typed)
	return o
}

// MarshalJSON is the Kubernetes object itself, with apiVersion and kind.
func (o Object) MarshalJSON() ([]byte, error) {
	k, ok := kindNamed(o.Kind())
	if !ok {
		return nil, fmt.Errorf("encode object: unknown type %T", o.value)
	}
	c := o.value.DeepCopyObject()
	c.GetObjectKind().SetGroupVersionKind(k.gvk())
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", o.Ref(), err)
	}
	return data, nil
}

// Load reads an object as MarshalJSON wrote it. It trusts the content: fields
// that this version does not know are dropped. For what people wrote, use Decode.
func Load(data []byte) (Object, error) {
	var head metav1.TypeMeta
	if err := json.Unmarshal(data, &head); err != nil {
		return Object{}, fmt.Errorf("decode object: %w", err)
	}
	k, ok := kindNamed(head.Kind)
	if !ok || k.apiVersion() != head.APIVersion {
		return Object{}, fmt.Errorf("decode object: unknown kind %q of %q", head.Kind, head.APIVersion)
	}
	v := k.make()
	if err := json.Unmarshal(data, v); err != nil {
		return Object{}, fmt.Errorf("decode %s: %w", head.Kind, err)
	}
	v.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return New(v), nil
}

func kindOfValue(v Typed) string {
	switch v.(type) {
	case *corev1.Pod:
		return KindPod
	case *corev1.Service:
		return KindService
	case *appsv1.Deployment:
		return KindDeployment
	case *corev1.ConfigMap:
		return KindConfigMap
	case *corev1.Secret:
		return KindSecret
	case *corev1.Namespace:
		return KindNamespace
	case *corev1.Endpoints: //nolint:staticcheck // what older manifests have
		return KindEndpoints
	case *discoveryv1.EndpointSlice:
		return KindEndpointSlice
	}
	return ""
}
