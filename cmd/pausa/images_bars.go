package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/pausa-run/pausa/cri/pausav1"
)

const (
	maxBarWidth = 120 // columns, however wide the terminal
	anyWidth    = 80  // of a terminal that does not tell its own

	// lineStart begins each line: a ^C that the terminal shows leaves the cursor elsewhere.
	lineStart = "\r"
)

// bars are one bar per blob on a terminal.
type bars struct {
	all   *mpb.Progress
	blobs map[string]*bar
}

type bar struct {
	*mpb.Bar
	told time.Time
}

// newBars heads the bars with title, in one line.
func newBars(ctx context.Context, w io.Writer, title string) *bars {
	width := 0
	if f, ok := w.(*os.File); ok {
		width, _, _ = term.GetSize(int(f.Fd()))
	}
	if width == 0 {
		// Serial lines and some recorders say 0: the library would draw nothing in it.
		w, width = struct{ io.Writer }{w}, anyWidth
	}
	fmt.Fprintln(w, cut(title, width))
	return &bars{mpb.NewWithContext(ctx, mpb.WithOutput(w), mpb.WithWidth(min(width, maxBarWidth)), mpb.WithAutoRefresh()), map[string]*bar{}}
}

// cut takes so much from the middle that width columns are enough: the end of
// an image's name, its tag, is worth more than its path.
func cut(text string, width int) string {
	runes := []rune(text)
	if len(runes) <= width || width < 3 {
		return text
	}
	head := (width - 1) / 3
	return string(runes[:head]) + "…" + string(runes[len(runes)-(width-1-head):])
}

func (b *bars) step(m *pausav1.ImageProgress) {
	one := b.blobs[m.GetDigest()]
	if one == nil {
		made, err := b.all.Add(m.GetTotal(), mpb.BarStyle().Build(),
			mpb.PrependDecorators(decor.Name(lineStart+shortDigest(m.GetDigest())+" "), decor.CountersKiloByte("% .1f / % .1f", decor.WCSyncSpace)),
			mpb.AppendDecorators(decor.OnAbort(decor.OnComplete(decor.EwmaSpeed(decor.SizeB1000(0), "% .1f", 10, decor.WCSyncSpace), "done"), "stopped")),
		)
		if err != nil {
			return // cancelled: nothing is drawn any more
		}
		one = &bar{Bar: made, told: time.Now()}
		b.blobs[m.GetDigest()] = one
		if m.GetBytes() > 0 && m.GetBytes() < m.GetTotal() { // of an earlier pull: they say nothing of the rate
			one.SetCurrent(m.GetBytes())
			one.SetRefill(m.GetBytes())
		}
	}
	now := time.Now()
	one.EwmaSetCurrent(m.GetBytes(), now.Sub(one.told))
	one.told = now
	if m.GetDone() {
		one.SetTotal(-1, true)
	}
}

func (b *bars) end(err error) {
	for _, one := range b.blobs {
		if err != nil {
			one.Abort(false)
		} else {
			one.SetTotal(-1, true)
		}
	}
	b.all.Wait()
}
