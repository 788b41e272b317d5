package reconcile

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
)

// managedBy is who made the EndpointSlices that nobody has declared.
const managedBy = "pausa"

// endpointsShown are the Endpoints of all Services of a namespace ("": of all):
// those declared, and those that are worked out.
func (e *Engine) endpointsShown(namespace string) []manifest.Object {
	e.endpoints.Lock()
	defer e.endpoints.Unlock()
	out := e.objects.list(manifest.KindEndpoints, namespace)
	for _, o := range e.objects.list(manifest.KindService, namespace) {
		s := o.Value().(*corev1.Service)
		_, declared := e.objects.get(manifest.Ref{Kind: manifest.KindEndpoints, Namespace: s.Namespace, Name: s.Name})
		if !declared && s.Spec.Type != corev1.ServiceTypeExternalName {
			out = append(out, e.endpointsOf(s))
		}
	}
	return out
}

// endpointsOf shows what is behind a Service. e.endpoints is held.
func (e *Engine) endpointsOf(s *corev1.Service) manifest.Object {
	ep := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{ //nolint:staticcheck // what people ask for with "get endpoints"
		Name: s.Name, Namespace: s.Namespace, Labels: maps.Clone(s.Labels), CreationTimestamp: s.CreationTimestamp, UID: s.UID, ResourceVersion: s.ResourceVersion,
	}}
	byPorts := map[string]*corev1.EndpointSubset{} //nolint:staticcheck // as above
	for _, b := range e.backends(s) {
		key := fmt.Sprint(b.ports)
		sub := byPorts[key]
		if sub == nil {
			sub = &corev1.EndpointSubset{Ports: b.ports} //nolint:staticcheck // as above
			byPorts[key] = sub
		}
		for _, ip := range b.addr {
			a := corev1.EndpointAddress{IP: ip.String(), Hostname: b.hostname, NodeName: b.nodeName(), TargetRef: b.ref()}
			if b.ready {
				sub.Addresses = append(sub.Addresses, a)
			} else {
				sub.NotReadyAddresses = append(sub.NotReadyAddresses, a)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(byPorts)) {
		ep.Subsets = append(ep.Subsets, *byPorts[key])
	}
	return manifest.New(ep)
}

// nodeName is nil if it is not known.
func (b *backend) nodeName() *string {
	if b.node == nil || *b.node == "" {
		return nil
	}
	name := *b.node
	return &name
}

// ref names the pod, nil for what is declared.
func (b *backend) ref() *corev1.ObjectReference {
	if b.pod == nil {
		return nil
	}
	return &corev1.ObjectReference{Kind: manifest.KindPod, Namespace: b.pod.Namespace, Name: b.pod.Name, UID: b.pod.UID}
}

// slicesShown are the EndpointSlices of a namespace ("": of all): those declared,
// and those of the pods that Services select.
func (e *Engine) slicesShown(namespace string) []manifest.Object {
	e.endpoints.Lock()
	defer e.endpoints.Unlock()
	out := e.objects.list(manifest.KindEndpointSlice, namespace)
	for _, o := range e.objects.list(manifest.KindService, namespace) {
		out = append(out, e.slicesOf(o.Value().(*corev1.Service))...)
	}
	return out
}

// slicesOf shows the pods behind a Service: a slice for each family and for each
// set of ports that they have. e.endpoints is held.
func (e *Engine) slicesOf(s *corev1.Service) []manifest.Object {
	made := map[string]*discoveryv1.EndpointSlice{}
	for _, b := range e.backends(s) {
		if b.pod == nil {
			continue
		}
		for _, ip := range b.addr {
			if !wantsFamily(s, ip) {
				continue
			}
			key := fmt.Sprint(familyOf(ip), b.ports)
			if made[key] == nil {
				made[key] = newSlice(s, key, familyOf(ip), b.ports)
			}
			made[key].Endpoints = append(made[key].Endpoints, b.endpoint(ip))
		}
	}
	var out []manifest.Object
	for _, key := range slices.Sorted(maps.Keys(made)) {
		out = append(out, manifest.New(made[key]))
	}
	return out
}

func newSlice(s *corev1.Service, key string, family corev1.IPFamily, ports []corev1.EndpointPort) *discoveryv1.EndpointSlice {
	sum := sha256.Sum256([]byte(string(s.UID) + key))
	controller := true
	out := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressType(family), ObjectMeta: metav1.ObjectMeta{
		Name: s.Name + "-" + hex.EncodeToString(sum[:])[:5], Namespace: s.Namespace, Labels: maps.Clone(s.Labels),
		CreationTimestamp: s.CreationTimestamp, UID: s.UID, ResourceVersion: s.ResourceVersion,
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: manifest.KindService, Name: s.Name, UID: s.UID, Controller: &controller}},
	}}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	out.Labels[discoveryv1.LabelServiceName], out.Labels[discoveryv1.LabelManagedBy] = s.Name, managedBy
	for _, p := range ports {
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
	}
	return out
}

func (b *backend) endpoint(ip netip.Addr) discoveryv1.Endpoint {
	out := discoveryv1.Endpoint{
		Addresses: []string{ip.String()}, NodeName: b.nodeName(), TargetRef: b.ref(),
		Conditions: discoveryv1.EndpointConditions{Ready: &b.ready, Serving: &b.serving, Terminating: &b.terminating},
	}
	if b.hostname != "" {
		out.Hostname = &b.hostname
	}
	return out
}

// checkEndpoints refuses Endpoints of a Service with a selector: they are made of
// the pods that it selects, and what is declared would count for nothing.
func (e *Engine) checkEndpoints(plans []*plan, byRef map[manifest.Ref]*plan) {
	current := func(ref manifest.Ref) (manifest.Object, bool) {
		if p := byRef[ref]; p != nil {
			return p.object, true
		}
		return e.objects.get(ref)
	}
	for _, p := range plans {
		if p.Err != nil || (p.Kind != manifest.KindEndpoints && p.Kind != manifest.KindService) {
			continue
		}
		svc, ok1 := current(manifest.Ref{Kind: manifest.KindService, Namespace: p.Namespace, Name: p.Name})
		eps, ok2 := current(manifest.Ref{Kind: manifest.KindEndpoints, Namespace: p.Namespace, Name: p.Name})
		if ok1 && ok2 && len(svc.Value().(*corev1.Service).Spec.Selector) > 0 {
			cure := "remove the selector of that Service"
			if p.Kind == manifest.KindService {
				cure = "delete " + strings.ToLower(eps.Kind()) + "/" + eps.Name() + " first"
			}
			p.refuse(pod.ErrInvalid, "%s: Service %s/%s has a selector, which makes its endpoints: %s", p.Ref, p.Namespace, p.Name, cure)
		}
	}
}
