package topology

import (
	"net/netip"
	"slices"
	"strings"
)

// Within leaves what is in one namespace; "" leaves everything.
func (w *World) Within(namespace string) *World {
	if namespace == "" {
		return w
	}
	out := &World{Networks: w.Networks}
	for _, s := range w.Services {
		if s.Namespace == namespace {
			out.Services = append(out.Services, s)
		}
	}
	for _, p := range w.Pods {
		if p.Namespace == namespace {
			out.Pods = append(out.Pods, p)
		}
	}
	return out
}

// Name tells the world its networks and its domain ("" without DNS).
func (w *World) Name(networks []Network, domain string) {
	w.Networks = networks
	for _, p := range w.Pods {
		p.Network = w.networkOf(p)
	}
	for _, s := range w.Services {
		if domain != "" {
			s.DNS = s.Name + "." + s.Namespace + ".svc." + domain
		}
	}
}

func (w *World) networkOf(p *Pod) string {
	if p.HostNet {
		return "host"
	}
	for _, text := range p.Addrs {
		a, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		for _, n := range w.Networks {
			if slices.ContainsFunc(n.Ranges, func(r netip.Prefix) bool { return r.Contains(a) }) {
				return n.Name
			}
		}
		return "another"
	}
	return ""
}

// node is one box of a picture.
type node struct {
	lines []string
	class string // "in", "service", "ready", "waiting", "outside"
	layer int    // 0: where it comes in, 1: Services, 2: what answers
}

// edge leads from one node to another.
type edge struct {
	from, to int
	text     string
	ready    bool
}

// picture is the world as boxes and lines, in the order in which they are drawn.
type picture struct {
	title string
	nodes []node
	edges []edge
}

func (p *picture) add(n node) int {
	p.nodes = append(p.nodes, n)
	return len(p.nodes) - 1
}

// draw makes the boxes. Pods come in the order of the Services that they are
// behind, so that lines cross little.
func (w *World) draw() *picture {
	p := &picture{title: w.title()}
	boxes := map[string]int{} // of pods and foreign addresses
	for _, s := range w.Services {
		service := p.add(node{lines: serviceLines(s), class: "service", layer: 1})
		for _, way := range waysIn(s) {
			in := p.add(node{lines: []string{way}, class: "in", layer: 0})
			p.edges = append(p.edges, edge{in, service, "", true})
		}
		if s.ExternalName != "" {
			out := p.add(node{lines: []string{s.ExternalName}, class: "outside", layer: 2})
			p.edges = append(p.edges, edge{service, out, "CNAME", true})
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			id := s.Namespace + "/" + e.Pod
			if _, known := boxes[id]; !known {
				boxes[id] = p.add(w.endNode(s.Namespace, e))
			}
			p.edges = append(p.edges, edge{service, boxes[id], e.portText(), e.Ready || s.NotReadyToo})
		}
	}
	for _, pod := range w.Pods {
		box, known := boxes[pod.ID()]
		if !known {
			box = p.add(podNode(pod))
		}
		for _, port := range pod.HostPorts {
			in := p.add(node{lines: []string{"host port " + port}, class: "in", layer: 0})
			p.edges = append(p.edges, edge{in, box, "", pod.Ready})
		}
	}
	return p
}

func (w *World) title() string {
	var words []string
	for _, n := range w.Networks {
		words = append(words, "network "+n.Name+": "+joined(n.Ranges))
	}
	return strings.Join(words, "; ")
}

func joined[T interface{ String() string }](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = v.String()
	}
	return strings.Join(words, ", ")
}

func serviceLines(s *Service) []string {
	lines := []string{s.ID()}
	switch {
	case s.ExternalName != "":
		lines = append(lines, "ExternalName")
	case s.Headless():
		lines = append(lines, "headless")
	default:
		lines = append(lines, s.Type+" "+joined(s.ClusterIPs))
	}
	if len(s.Ports) > 0 {
		lines = append(lines, joined(s.Ports))
	}
	if s.DNS != "" {
		lines = append(lines, s.DNS)
	}
	return lines
}

// waysIn are the places at which a Service answers besides its cluster IP.
func waysIn(s *Service) []string {
	var out []string
	for _, p := range s.Ports {
		if p.NodePort != 0 {
			out = append(out, "node port "+(Port{Protocol: p.Protocol, Port: p.NodePort}).String())
		}
	}
	for _, ip := range s.ExternalIPs {
		out = append(out, "external "+ip)
	}
	return out
}

// portText is where the endpoint's ports lead, "→ 8080".
func (e *Endpoint) portText() string {
	var numbers []string
	for _, name := range sortedKeys(e.Ports) {
		numbers = append(numbers, ":"+itoa(e.Ports[name]))
	}
	return strings.Join(numbers, " ")
}

func (w *World) endNode(namespace string, e *Endpoint) node {
	for _, p := range w.Pods {
		if p.Namespace == namespace && p.Name == e.Pod {
			return podNode(p)
		}
	}
	n := node{lines: []string{e.Addr(), "no pod of this host"}, class: "outside", layer: 2}
	return n
}

func podNode(p *Pod) node {
	n := node{lines: []string{p.ID()}, class: "ready", layer: 2}
	where := strings.Join(p.Addrs, ", ")
	if p.Network != "" && p.Network != "pausa" {
		where += " (" + p.Network + " network)"
	}
	if where != "" {
		n.lines = append(n.lines, strings.TrimSpace(where))
	}
	if !p.Ready {
		n.class = "waiting"
		n.lines = append(n.lines, "not ready: "+p.Reason)
	}
	return n
}
