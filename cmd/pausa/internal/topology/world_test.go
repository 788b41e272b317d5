package topology

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var update = flag.Bool("update", false, "write the golden files")

// objects are services Services of pods pods each; the last pod of each is not
// ready. With extras there are a node port, a headless Service, an external
// name, a Service of nobody, and pods of no Service.
func objects(t *testing.T, services, pods int, extras bool) [][]byte {
	t.Helper()
	var out [][]byte
	add := func(o any) {
		raw, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, raw)
	}
	names := []string{"web", "api", "db", "cache", "queue", "mail"}
	for s := range services {
		name := names[s%len(names)]
		svc := corev1.Service{
			TypeMeta: metav1.TypeMeta{Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec: corev1.ServiceSpec{Type: "ClusterIP", ClusterIPs: []string{fmt.Sprintf("10.96.0.%d", 20+s)}, Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80, TargetPort: intstr.FromInt32(8080)}}},
		}
		if extras && s == 0 {
			svc.Spec.Type, svc.Spec.Ports[0].NodePort = "NodePort", 30080
		}
		if extras && name == "db" {
			svc.Spec.ClusterIPs = []string{"None"}
		}
		add(svc)
		sub := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "http", Port: 8080, Protocol: "TCP"}}} //nolint:staticcheck // what the daemon tells
		for i := range pods {
			ip, ready := fmt.Sprintf("10.88.%d.%d", s, 2+i), i < pods-1
			p := corev1.Pod{
				TypeMeta: metav1.TypeMeta{Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("%s-%d", name, i)},
				Status: corev1.PodStatus{Phase: "Running", PodIPs: []corev1.PodIP{{IP: ip}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: "True"}}},
			}
			a := corev1.EndpointAddress{IP: ip, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: p.Name}}
			if ready {
				sub.Addresses = append(sub.Addresses, a)
			} else {
				p.Status.Conditions[0].Status = "False"
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
				sub.NotReadyAddresses = append(sub.NotReadyAddresses, a)
			}
			add(p)
		}
		add(corev1.Endpoints{TypeMeta: metav1.TypeMeta{Kind: "Endpoints"}, ObjectMeta: svc.ObjectMeta, Subsets: []corev1.EndpointSubset{sub}}) //nolint:staticcheck // what the daemon tells
	}
	if !extras {
		return out
	}
	add(corev1.Service{TypeMeta: metav1.TypeMeta{Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "out"}, Spec: corev1.ServiceSpec{Type: "ExternalName", ExternalName: "www.example.org"}})
	add(corev1.Service{TypeMeta: metav1.TypeMeta{Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "nobody"}, Spec: corev1.ServiceSpec{Type: "ClusterIP", ClusterIPs: []string{"10.96.0.99"}, Ports: []corev1.ServicePort{{Protocol: "UDP", Port: 53}}}})
	add(corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "agent"}, Spec: corev1.PodSpec{HostNetwork: true}, Status: corev1.PodStatus{Phase: "Running", PodIPs: []corev1.PodIP{{IP: "192.0.2.1"}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: "True"}}}})
	add(corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: `odd"<pod>&#`}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{HostPort: 8443, Protocol: "TCP"}}}}}, Status: corev1.PodStatus{Phase: "Pending"}})
	return out
}

func world(t *testing.T, services, pods int, extras bool) *World {
	t.Helper()
	w, err := Build(objects(t, services, pods, extras))
	if err != nil {
		t.Fatal(err)
	}
	w.Name([]Network{{"pausa", []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")}}}, "cluster.local")
	return w
}

func TestGoldenPictures(t *testing.T) {
	w := world(t, 3, 5, true)
	for name, draw := range map[string]func(io.Writer) error{"graph.txt": w.Text, "graph.mmd": w.Mermaid, "graph.svg": w.SVG} {
		var b strings.Builder
		if err := draw(&b); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name)
		if *update {
			if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(b.String()), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if b.String() != string(want) {
			t.Errorf("%s differs (go test -update writes it); got:\n%s", path, b.String())
		}
	}
}

// Fifty pods fit: no box covers another, none leaves the picture, and it is XML.
func TestLayoutOfMany(t *testing.T) {
	for _, w := range []*World{world(t, 5, 10, true), world(t, 1, 50, false), world(t, 6, 1, true), {}} {
		p := w.draw()
		boxes, width, height := p.layout()
		for i, a := range boxes {
			if a.x < 0 || a.y < 0 || a.x+a.w > width || a.y+a.h > height {
				t.Errorf("box %v of %v leaves the picture of %.0f × %.0f", a, p.nodes[i].lines, width, height)
			}
			for j, b := range boxes[:i] {
				if a.x < b.x+b.w && b.x < a.x+a.w && a.y < b.y+b.h && b.y < a.y+a.h {
					t.Errorf("%v covers %v", p.nodes[i].lines, p.nodes[j].lines)
				}
			}
		}
		if height > float64(len(p.nodes))*90+200 {
			t.Errorf("%d boxes are %.0f high", len(p.nodes), height)
		}
		var b strings.Builder
		if err := w.SVG(&b); err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(strings.NewReader(b.String())); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v in:\n%s", err, b.String())
			}
		}
	}
}

func TestWithinNamespace(t *testing.T) {
	w := world(t, 3, 5, true).Within("other")
	if len(w.Services) != 2 || len(w.Pods) != 2 {
		t.Errorf("%d services and %d pods", len(w.Services), len(w.Pods))
	}
}

func TestTargets(t *testing.T) {
	w := world(t, 3, 2, true)
	for _, c := range []struct {
		namespace, name, port string
		found                 []netip.Addr
		want                  string
	}{
		{"shop", "web", "80", nil, "10.96.0.20:80"},
		{"shop", "web", "http", nil, "10.96.0.20:80"},
		{"shop", "db", "http", nil, "10.88.2.2:8080"},
		{"other", "out", "443", []netip.Addr{netip.MustParseAddr("203.0.113.9")}, "203.0.113.9:443"},
		{"other", "out", "443", nil, "invalid AddrPort"},
	} {
		s := w.Service(c.namespace, c.name)
		if got := s.Target(s.Port(c.port), c.port, c.found).String(); got != c.want {
			t.Errorf("%s:%s leads to %s, want %s", c.name, c.port, got, c.want)
		}
	}
	if w.Service("shop", "web").Port("81") != nil || w.Service("shop", "none") != nil {
		t.Error("what does not exist is found")
	}
}
