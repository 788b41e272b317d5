package topology

import (
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
)

// Text draws the world as a tree.
func (w *World) Text(out io.Writer) error {
	var b strings.Builder
	if title := w.title(); title != "" {
		fmt.Fprintln(&b, title)
	}
	behind := map[string]bool{}
	for _, s := range w.Services {
		lines := serviceLines(s)
		fmt.Fprintf(&b, "service %s\n", strings.Join(lines, "  "))
		branches := waysIn(s)
		if s.ExternalName != "" {
			branches = append(branches, "→ "+s.ExternalName)
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			behind[s.Namespace+"/"+e.Pod] = true
			branches = append(branches, endText(e))
		}
		if len(s.Endpoints) == 0 && s.ExternalName == "" {
			branches = append(branches, "no endpoint: connections are refused")
		}
		tree(&b, branches)
	}
	var alone []string
	for _, p := range w.Pods {
		if !behind[p.ID()] {
			alone = append(alone, podText(p))
		}
	}
	if len(alone) > 0 {
		fmt.Fprintln(&b, "pods of no service")
		tree(&b, alone)
	}
	if b.Len() == 0 {
		fmt.Fprintln(&b, "no service and no pod")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func tree(b *strings.Builder, branches []string) {
	for i, text := range branches {
		mark := "├─ "
		if i == len(branches)-1 {
			mark = "└─ "
		}
		b.WriteString(mark + clean(text) + "\n")
	}
}

func endText(e *Endpoint) string {
	mark, state := "●", "ready"
	if !e.Ready {
		mark, state = "○", "not ready: "+e.Reason
	}
	return fmt.Sprintf("%s %s  %s  %s  %s", mark, e.Pod, joined(e.Addrs), e.portText(), state)
}

func podText(p *Pod) string {
	n := podNode(p)
	mark := "●"
	if !p.Ready {
		mark = "○"
	}
	for _, port := range p.HostPorts {
		n.lines = append(n.lines, "host port "+port)
	}
	return mark + " " + strings.Join(n.lines, "  ")
}

// Mermaid writes the world as a flowchart of mermaid.js, as many wikis draw it.
func (w *World) Mermaid(out io.Writer) error {
	p := w.draw()
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	shapes := map[string][2]string{"in": {"([", "])"}, "service": {"[", "]"}, "ready": {"(", ")"}, "waiting": {"(", ")"}, "outside": {"((", "))"}}
	for i, n := range p.nodes {
		words := make([]string, len(n.lines))
		for j, l := range n.lines {
			words[j] = mermaidText(l)
		}
		shape := shapes[n.class]
		fmt.Fprintf(&b, "  n%d%s\"%s\"%s:::%s\n", i, shape[0], strings.Join(words, "<br/>"), shape[1], n.class)
	}
	for _, e := range p.edges {
		arrow := "-->"
		if !e.ready {
			arrow = "-.->"
		}
		if e.text != "" {
			arrow += "|\"" + mermaidText(e.text) + "\"|"
		}
		fmt.Fprintf(&b, "  n%d %s n%d\n", e.from, arrow, e.to)
	}
	for _, class := range []string{"in", "service", "ready", "waiting", "outside"} {
		c := colours()[class]
		fmt.Fprintf(&b, "  classDef %s fill:%s,stroke:%s,color:#1f2937\n", class, c.fill, c.line)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// mermaidText takes away what would end a label.
func mermaidText(s string) string {
	return strings.NewReplacer("&", "&amp;", `"`, "&quot;", "<", "&lt;", ">", "&gt;", "#", "&#35;").Replace(clean(s))
}

// clean keeps a value from breaking its line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

func itoa(n uint16) string { return strconv.Itoa(int(n)) }

func sortedKeys(m map[string]uint16) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
