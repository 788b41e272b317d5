package topology

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Sizes of the picture, in pixels.
const (
	letter   = 7.3 // width of one, of the font below
	line     = 16
	pad      = 10
	gap      = 12  // between boxes of a column
	way      = 110 // between columns
	margin   = 24
	longest  = 46 // letters of a line; more are cut off
	fontSize = 12
)

type colour struct{ fill, line string }

func colours() map[string]colour {
	return map[string]colour{
		"in": {"#f3f4f6", "#6b7280"}, "service": {"#dbeafe", "#2563eb"}, "ready": {"#dcfce7", "#16a34a"},
		"waiting": {"#ffedd5", "#ea580c"}, "outside": {"#f5f3ff", "#7c3aed"},
	}
}

// box is where a node is drawn.
type box struct{ x, y, w, h float64 }

func (b box) middle() float64 { return b.y + b.h/2 }

// SVG draws the world in three columns: where connections come in, Services, and
// what answers.
func (w *World) SVG(out io.Writer) error {
	p := w.draw()
	boxes, width, height := p.layout()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="%d">`+"\n", width, height, width, height, fontSize)
	fmt.Fprintf(&b, `<rect width="%.0f" height="%.0f" fill="#ffffff"/>`+"\n", width, height)
	if p.title != "" {
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="#6b7280">%s</text>`+"\n", margin, margin, escape(p.title))
	}
	for _, e := range p.edges {
		p.drawEdge(&b, e, boxes)
	}
	for i, n := range p.nodes {
		drawNode(&b, n, boxes[i])
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// layout puts the nodes of each layer into a column. What answers is listed from
// the top; Services stand beside the middle of theirs, and ways in beside their
// Service, as far as there is room.
func (p *picture) layout() (boxes []box, width, height float64) {
	boxes = make([]box, len(p.nodes))
	x := float64(margin)
	for layer := range 3 {
		widest := 0.0
		for i, n := range p.nodes {
			if n.layer != layer {
				continue
			}
			boxes[i] = box{x: x, w: widthOf(n), h: float64(len(n.lines))*line + pad}
			widest = max(widest, boxes[i].w)
		}
		for i, n := range p.nodes {
			if n.layer == layer {
				boxes[i].w = widest
			}
		}
		if widest > 0 {
			x += widest + way
		}
	}
	width = x - way + margin
	top := float64(margin)
	if p.title != "" {
		top += margin
		width = max(width, float64(utf8.RuneCountInString(p.title))*letter+2*margin)
	}
	for layer := 2; layer >= 0; layer-- {
		height = max(height, p.column(boxes, layer, top))
	}
	return boxes, max(width, 2*margin), height + margin
}

// column gives the nodes of a layer their heights, and returns where it ends.
func (p *picture) column(boxes []box, layer int, top float64) float64 {
	next := top
	for i, n := range p.nodes {
		if n.layer != layer {
			continue
		}
		wish := next
		if first, last, any := p.reach(boxes, i); any && layer < 2 {
			wish = (first+last)/2 - boxes[i].h/2
		}
		boxes[i].y = max(next, wish)
		next = boxes[i].y + boxes[i].h + gap
	}
	return next
}

// reach is between which heights the nodes are that node i leads to.
func (p *picture) reach(boxes []box, i int) (first, last float64, found bool) {
	for _, e := range p.edges {
		if e.from != i {
			continue
		}
		m := boxes[e.to].middle()
		if !found {
			first, last, found = m, m, true
		}
		first, last = min(first, m), max(last, m)
	}
	return first, last, found
}

func widthOf(n node) float64 {
	letters := 0
	for _, l := range n.lines {
		letters = max(letters, utf8.RuneCountInString(short(l)))
	}
	return float64(letters)*letter + 2*pad
}

func short(s string) string {
	if letters := []rune(clean(s)); len(letters) > longest {
		return string(letters[:longest-1]) + "…"
	}
	return clean(s)
}

func (p *picture) drawEdge(b *strings.Builder, e edge, boxes []box) {
	from, to := boxes[e.from], boxes[e.to]
	x1, y1, x2, y2 := from.x+from.w, from.middle(), to.x, to.middle()
	bend := (x2 - x1) / 2
	style := `stroke="#16a34a"`
	if !e.ready {
		style = `stroke="#ea580c" stroke-dasharray="5 4"`
	}
	fmt.Fprintf(b, `<path d="M%.1f %.1f C%.1f %.1f %.1f %.1f %.1f %.1f" fill="none" stroke-width="1.5" %s/>`+"\n",
		x1, y1, x1+bend, y1, x2-bend, y2, x2, y2, style)
	fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" %s fill="#ffffff"/>`+"\n", x2, y2, style)
	if e.text != "" {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="end" font-size="10" fill="#6b7280" stroke="#ffffff" stroke-width="3" paint-order="stroke">%s</text>`+"\n", x2-8, below(y1, y2), escape(short(e.text)))
	}
}

// below is where the text of a line stands: on the side that it does not come from.
func below(from, to float64) float64 {
	if from < to {
		return to + 12
	}
	return to - 5
}

func drawNode(b *strings.Builder, n node, at box) {
	c := colours()[n.class]
	round := 6.0
	if n.class == "in" {
		round = at.h / 2
	}
	fmt.Fprintf(b, `<g><title>%s</title><rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="%.1f" fill="%s" stroke="%s"/>`,
		escape(strings.Join(n.lines, "\n")), at.x, at.y, at.w, at.h, round, c.fill, c.line)
	for i, l := range n.lines {
		weight, fill := "", "#4b5563"
		if i == 0 {
			weight, fill = ` font-weight="600"`, "#111827"
		}
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" fill="%s"%s>%s</text>`, at.x+pad, at.y+pad/2+float64(i+1)*line-4, fill, weight, escape(short(l)))
	}
	b.WriteString("</g>\n")
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
