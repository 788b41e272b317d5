// Package topology is what leads to what on this host: node ports, Services,
// endpoints and pods, from the objects of the daemon, and pictures of it.
package topology

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// World is all of it, sorted by namespace and name.
type World struct {
	Networks []Network  `json:"networks"`
	Services []*Service `json:"services"`
	Pods     []*Pod     `json:"pods"`
}

// Network is a range that pods get their addresses from.
type Network struct {
	Name   string         `json:"name"`
	Ranges []netip.Prefix `json:"ranges"`
}

// Pod is a pod as others see it.
type Pod struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Addrs     []string `json:"addresses,omitempty"`
	Ready     bool     `json:"ready"`
	Reason    string   `json:"reason,omitempty"` // why it is not ready
	HostPorts []string `json:"hostPorts,omitempty"`
	HostNet   bool     `json:"hostNetwork,omitempty"`
	Network   string   `json:"network,omitempty"`
}

// ID is namespace/name.
func (p *Pod) ID() string { return p.Namespace + "/" + p.Name }

// Service is one Service and what is behind it.
type Service struct {
	Namespace    string            `json:"namespace"`
	Name         string            `json:"name"`
	Type         string            `json:"type"`
	DNS          string            `json:"dnsName,omitempty"`
	ClusterIPs   []netip.Addr      `json:"clusterIPs,omitempty"`
	ExternalIPs  []string          `json:"externalIPs,omitempty"` // and those of a load balancer
	ExternalName string            `json:"externalName,omitempty"`
	Selector     map[string]string `json:"selector,omitempty"`
	NotReadyToo  bool              `json:"publishNotReadyAddresses,omitempty"`
	Ports        []Port            `json:"ports,omitempty"`
	Endpoints    []Endpoint        `json:"endpoints,omitempty"`
}

// ID is namespace/name.
func (s *Service) ID() string { return s.Namespace + "/" + s.Name }

// Headless tells that the name leads to the endpoints themselves.
func (s *Service) Headless() bool { return len(s.ClusterIPs) == 0 && s.ExternalName == "" }

// Port is one port of a Service.
type Port struct {
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
	NodePort uint16 `json:"nodePort,omitempty"`
	Target   string `json:"targetPort"` // number or name
}

func (p Port) String() string {
	text := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
	if p.Name != "" {
		text = p.Name + " (" + text + ")"
	}
	return text
}

// Endpoint is one pod, or an address that is none, behind a Service.
type Endpoint struct {
	Pod    string            `json:"pod"` // name, or the address
	Addrs  []netip.Addr      `json:"addresses"`
	Ports  map[string]uint16 `json:"ports,omitempty"` // by the Service port's name
	Ready  bool              `json:"ready"`
	Reason string            `json:"reason,omitempty"`
}

// Addr is the endpoint's first address.
func (e *Endpoint) Addr() string {
	if len(e.Addrs) == 0 {
		return "no address"
	}
	return e.Addrs[0].String()
}

// Build reads objects as the daemon prints them: Pods, Services, Endpoints;
// others are passed over.
func Build(objects [][]byte) (*World, error) {
	w := &World{}
	endpoints := map[string]*corev1.Endpoints{} //nolint:staticcheck // what the daemon tells
	pods := map[string]*Pod{}
	for _, raw := range objects {
		var head metav1.TypeMeta
		if err := json.Unmarshal(raw, &head); err != nil {
			return nil, fmt.Errorf("read an object of the daemon: %w", err)
		}
		switch head.Kind {
		case "Pod":
			var p corev1.Pod
			if err := json.Unmarshal(raw, &p); err != nil {
				return nil, fmt.Errorf("read a pod of the daemon: %w", err)
			}
			one := podOf(&p)
			w.Pods, pods[one.ID()] = append(w.Pods, one), one
		case "Service":
			var s corev1.Service
			if err := json.Unmarshal(raw, &s); err != nil {
				return nil, fmt.Errorf("read a service of the daemon: %w", err)
			}
			w.Services = append(w.Services, serviceOf(&s))
		case "Endpoints":
			var e corev1.Endpoints //nolint:staticcheck // as above
			if err := json.Unmarshal(raw, &e); err != nil {
				return nil, fmt.Errorf("read endpoints of the daemon: %w", err)
			}
			endpoints[e.Namespace+"/"+e.Name] = &e
		}
	}
	for _, s := range w.Services {
		if e := endpoints[s.ID()]; e != nil {
			s.Endpoints = endpointsOf(e, pods)
		}
	}
	sort.Slice(w.Pods, func(i, j int) bool { return w.Pods[i].ID() < w.Pods[j].ID() })
	sort.Slice(w.Services, func(i, j int) bool { return w.Services[i].ID() < w.Services[j].ID() })
	return w, nil
}

func podOf(p *corev1.Pod) *Pod {
	out := &Pod{Namespace: p.Namespace, Name: p.Name, HostNet: p.Spec.HostNetwork}
	for _, ip := range p.Status.PodIPs {
		out.Addrs = append(out.Addrs, ip.IP)
	}
	out.Ready, out.Reason = readiness(p)
	for i := range p.Spec.Containers {
		for _, port := range p.Spec.Containers[i].Ports {
			if port.HostPort > 0 {
				out.HostPorts = append(out.HostPorts, fmt.Sprintf("%d/%s", port.HostPort, port.Protocol))
			}
		}
	}
	return out
}

// readiness is why a pod is not ready, in the words that tell most.
func readiness(p *corev1.Pod) (ready bool, reason string) {
	if p.DeletionTimestamp != nil {
		return false, "it is being deleted"
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			ready, reason = c.Status == corev1.ConditionTrue, cmp.Or(c.Message, c.Reason)
		}
	}
	if ready {
		return true, ""
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Reason != "PodInitializing":
			return false, fmt.Sprintf("container %s waits: %s", c.Name, cmp.Or(c.State.Waiting.Message, c.State.Waiting.Reason))
		case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
			return false, fmt.Sprintf("container %s ended with %d", c.Name, c.State.Terminated.ExitCode)
		case c.State.Running != nil && !c.Ready:
			return false, fmt.Sprintf("container %s runs, and its readiness probe does not pass", c.Name)
		}
	}
	return false, cmp.Or(reason, "phase "+string(p.Status.Phase))
}

func serviceOf(s *corev1.Service) *Service {
	out := &Service{
		Namespace: s.Namespace, Name: s.Name, Type: string(s.Spec.Type), ExternalIPs: slices.Clone(s.Spec.ExternalIPs),
		Selector: s.Spec.Selector, NotReadyToo: s.Spec.PublishNotReadyAddresses,
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		out.ExternalName = s.Spec.ExternalName
	}
	for _, ip := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			out.ClusterIPs = append(out.ClusterIPs, a)
		}
	}
	for _, ip := range s.Status.LoadBalancer.Ingress {
		out.ExternalIPs = append(out.ExternalIPs, ip.IP)
	}
	for _, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, Port{p.Name, string(p.Protocol), uint16(p.Port), uint16(p.NodePort), p.TargetPort.String()})
	}
	return out
}

// endpointsOf groups the addresses by pod: one has an address of each family.
func endpointsOf(e *corev1.Endpoints, pods map[string]*Pod) []Endpoint { //nolint:staticcheck // as above
	var order []string
	byPod := map[string]*Endpoint{}
	add := func(a corev1.EndpointAddress, ready bool, ports []corev1.EndpointPort) {
		name := a.IP
		if a.TargetRef != nil {
			name = a.TargetRef.Name
		}
		one := byPod[name]
		if one == nil {
			one = &Endpoint{Pod: name, Ready: ready, Ports: map[string]uint16{}}
			if p := pods[e.Namespace+"/"+name]; p != nil && !ready {
				one.Reason = p.Reason
			}
			byPod[name], order = one, append(order, name)
		}
		if ip, err := netip.ParseAddr(a.IP); err == nil {
			one.Addrs = append(one.Addrs, ip)
		}
		for _, p := range ports {
			one.Ports[p.Name] = uint16(p.Port)
		}
	}
	for _, sub := range e.Subsets {
		for _, a := range sub.Addresses {
			add(a, true, sub.Ports)
		}
		for _, a := range sub.NotReadyAddresses {
			add(a, false, sub.Ports)
		}
	}
	sort.Strings(order)
	out := make([]Endpoint, 0, len(order))
	for _, name := range order {
		out = append(out, *byPod[name])
	}
	return out
}

// Service finds one, nil if there is none.
func (w *World) Service(namespace, name string) *Service {
	for _, s := range w.Services {
		if s.Namespace == namespace && s.Name == name {
			return s
		}
	}
	return nil
}

// Port finds a port by its number or name; nil if there is none.
func (s *Service) Port(text string) *Port {
	number, err := strconv.ParseUint(text, 10, 16)
	for i := range s.Ports {
		if p := &s.Ports[i]; p.Name != "" && p.Name == text || err == nil && p.Port == uint16(number) {
			return p
		}
	}
	return nil
}

// PortNames lists the ports for people.
func (s *Service) PortNames() string {
	words := make([]string, len(s.Ports))
	for i, p := range s.Ports {
		words[i] = p.String()
	}
	return cmp.Or(strings.Join(words, ", "), "none")
}

// SelectorText is the selector as a command line takes it.
func (s *Service) SelectorText() string {
	return metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: s.Selector})
}

// Target is where a client that has resolved the name to found connects to.
func (s *Service) Target(p *Port, text string, found []netip.Addr) netip.AddrPort {
	number, _ := strconv.ParseUint(text, 10, 16)
	port := uint16(number)
	if p != nil {
		port = p.Port
	}
	switch {
	case s.ExternalName != "" && len(found) == 0, port == 0:
		return netip.AddrPort{}
	case s.ExternalName != "":
		return netip.AddrPortFrom(found[0], port)
	case !s.Headless():
		return netip.AddrPortFrom(s.ClusterIPs[0], port)
	}
	for _, e := range s.Endpoints { // headless: a port of the pod's own
		if (e.Ready || s.NotReadyToo) && len(e.Addrs) > 0 && (len(found) == 0 || slices.Contains(found, e.Addrs[0])) {
			if target, ok := e.Ports[p.Name]; ok {
				port = target
			}
			return netip.AddrPortFrom(e.Addrs[0], port)
		}
	}
	return netip.AddrPort{}
}
