package manifest

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestEveryServiceFieldIsObeyedOrRefused: what a Service may say in Kubernetes is
// in the table of support, or refused with a reason.
func TestEveryServiceFieldIsObeyedOrRefused(t *testing.T) {
	types := []reflect.Type{
		reflect.TypeFor[corev1.Service](), reflect.TypeFor[corev1.ServiceSpec](), reflect.TypeFor[corev1.ServicePort](),
		reflect.TypeFor[corev1.SessionAffinityConfig](), reflect.TypeFor[corev1.ClientIPConfig](),
		reflect.TypeFor[discoveryv1.EndpointSlice](), reflect.TypeFor[discoveryv1.Endpoint](), reflect.TypeFor[discoveryv1.EndpointPort](),
		reflect.TypeFor[discoveryv1.EndpointConditions](), reflect.TypeFor[corev1.Endpoints](), //nolint:staticcheck // what older manifests have
		reflect.TypeFor[corev1.EndpointSubset](), reflect.TypeFor[corev1.EndpointAddress](), //nolint:staticcheck // as above
		reflect.TypeFor[corev1.EndpointPort](),
	}
	for _, typ := range types {
		known := rules()[typ]
		for _, f := range fieldsOf(typ) {
			if _, ok := known[f.name]; !ok && f.name != "kind" && f.name != "apiVersion" {
				t.Errorf("%s.%s is neither obeyed nor refused with a reason", typ, f.name)
			}
		}
	}
}

func TestServiceRefusals(t *testing.T) {
	service := func(spec string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {" + spec + "}\n"
	}
	slice := func(rest string) string {
		return "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: s}}\n" + rest
	}
	const port = "ports: [{port: 80}]"
	for _, c := range []struct{ text, want string }{
		{service(port + ", loadBalancerClass: x"), "Service.spec.loadBalancerClass is not supported: it gives the Service to a load balancer other"},
		{service(port + ", loadBalancerSourceRanges: [10.0.0.0/8]"), "loadBalancerSourceRanges: is only possible with type: LoadBalancer"},
		{service(port + ", type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.1]"), `"10.0.0.1" is not a range`},
		{service(port + ", type: LoadBalancer, loadBalancerIP: 127.0.0.1"), "127.0.0.1 cannot be the address of a Service"},
		{service(port + ", type: LoadBalancer, healthCheckNodePort: 30000"), "healthCheckNodePort: is only possible with type: LoadBalancer and externalTrafficPolicy: Local"},
		{service(port + ", type: ClusterIP, externalTrafficPolicy: Local"), "externalTrafficPolicy: is only possible with type NodePort"},
		{service(port + ", trafficDistribution: PreferFar"), `"PreferFar" is not supported`},
		{service(port + ", clusterIPs: [10.96.0.1, 10.96.0.2], clusterIP: 10.96.0.1"), "are of the same family"},
		{service(port + ", clusterIP: 10.96.0.1, ipFamilies: [IPv6]"), "10.96.0.1 is not IPv6, as ipFamilies says"},
		{service(port + ", ipFamilies: [IPv6, IPv4], ipFamilyPolicy: SingleStack"), "SingleStack is not possible with two"},
		{slice("addressType: FQDN\nendpoints: []\n"), `"FQDN" is not supported`},
		{slice("endpoints: []\n"), "addressType: is required"},
		{slice("addressType: IPv4\nendpoints: [{addresses: [\"fd00::1\"]}]\n"), "fd00::1 is not of addressType IPv4"},
		{slice("addressType: IPv4\nendpoints: [{addresses: [127.0.0.1]}]\n"), "127.0.0.1 cannot be the address of an endpoint"},
		{slice("addressType: IPv4\nendpoints: [{addresses: [10.0.0.1, 10.0.0.2]}]\n"), "holds 2; one is possible"},
		{slice("addressType: IPv4\nendpoints: []\nports: [{name: a}]\n"), "ports[0].port: is required"},
		{slice("addressType: IPv4\nendpoints: []\nports: [{port: 1}, {port: 2}]\n"), "name: is required when there are several"},
		{strings.Replace(slice("addressType: IPv4\nendpoints: []\n"), "{kubernetes.io/service-name: s}", "{a: b}", 1), "the label kubernetes.io/service-name is required"},
		{"apiVersion: v1\nkind: Endpoints\nmetadata: {name: s}\nsubsets: [{ports: [{port: 1}]}]\n", "addresses or notReadyAddresses is required"},
		{"apiVersion: v1\nkind: Endpoints\nmetadata: {name: s}\nsubsets: [{addresses: [{ip: 169.254.0.1}], ports: [{port: 1}]}]\n", "169.254.0.1 cannot be"},
	} {
		_, err := Decode(strings.NewReader(c.text), "s.yaml")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngot  %v\nwant %s", c.text, err, c.want)
		}
	}
}

func TestEndpointsAreDeclared(t *testing.T) {
	objects := decode(t, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.9], conditions: {ready: true}, nodeName: other}]
ports: [{port: 5432}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: old}
subsets: [{addresses: [{ip: 192.0.2.10}], ports: [{port: 80}]}]
`)
	for _, o := range objects {
		Default(o)
	}
	s := objects[0].Value().(*discoveryv1.EndpointSlice)
	if p := s.Ports[0]; *p.Name != "" || *p.Protocol != corev1.ProtocolTCP || *p.Port != 5432 {
		t.Errorf("port of the slice: %v", p)
	}
	if e := objects[1].Value().(*corev1.Endpoints); e.Subsets[0].Ports[0].Protocol != corev1.ProtocolTCP { //nolint:staticcheck // what older manifests have
		t.Errorf("port of the Endpoints: %v", e.Subsets)
	}
	data, err := objects[0].MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if back, err := Load(data); err != nil || back.Ref() != objects[0].Ref() {
		t.Errorf("%s: %v, %v", data, back, err)
	}
}
