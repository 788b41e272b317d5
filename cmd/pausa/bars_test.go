package main

import (
	"context"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// pullInParts serves the pull of "slow/…": two blobs, of which one is done; the
// other waits for a word of the test, or the end of the client.
func (f fakePausa) pullInParts(out pausav1.Pausa_PullImageServer) error {
	first := &pausav1.ImageProgress{Digest: "sha256:111111111111", Bytes: 3_000_000, Total: 3_000_000, Done: true}
	second := &pausav1.ImageProgress{Digest: "sha256:222222222222", Bytes: 1_000_000, Total: 4_000_000}
	for _, m := range []*pausav1.ImageProgress{first, second} {
		if err := out.Send(m); err != nil {
			return err
		}
	}
	select {
	case <-f.goOn:
	case <-out.Context().Done():
		close(f.gone)
		return out.Context().Err()
	}
	second.Bytes, second.Done = second.Total, true
	if err := out.Send(second); err != nil {
		return err
	}
	return out.Send(&pausav1.ImageProgress{Result: "sha256:3"})
}

// shown are the lines that a terminal of so many columns has after text was written to it.
func shown(text string, columns int) []string {
	var rows [][]rune
	row, column := 0, 0
	put := func(r rune) {
		if column == columns {
			row, column = row+1, 0
		}
		for len(rows) <= row {
			rows = append(rows, nil)
		}
		for len(rows[row]) <= column {
			rows[row] = append(rows[row], ' ')
		}
		rows[row][column] = r
		column++
	}
	escape := regexp.MustCompile(`^\x1b\[([0-9]*)([A-Za-z])`)
	for text != "" {
		if m := escape.FindStringSubmatch(text); m != nil {
			n, _ := strconv.Atoi(m[1])
			switch m[2] {
			case "A":
				row -= n
			case "J":
				rows = rows[:min(len(rows), row+1)]
				if row < len(rows) {
					rows[row] = rows[row][:min(len(rows[row]), column)]
				}
			}
			text = text[len(m[0]):]
			continue
		}
		r, size := utf8.DecodeRuneInString(text)
		text = text[size:]
		switch r {
		case '\r':
			column = 0
		case '\n':
			row++
		default:
			put(r)
		}
	}
	var out []string
	for _, r := range rows {
		out = append(out, strings.TrimRight(string(r), " "))
	}
	return out
}

// pullOnTerminal runs a pull on a terminal of so many columns; what it shows
// goes to the screen.
func pullOnTerminal(t *testing.T, f *fakeDaemon, ctx context.Context, columns uint16, ref string) (*screen, chan int) {
	t.Helper()
	master, path, err := console.NewPty()
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	tty, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	if err := master.Resize(console.WinSize{Width: columns, Height: min(columns, 24)}); err != nil {
		t.Fatal(err)
	}
	out := &screen{more: make(chan struct{}, 1)}
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, err := master.Read(buffer)
			if err != nil {
				return
			}
			_, _ = out.Write(buffer[:n])
		}
	}()
	p := &program{in: tty, out: tty, err: tty, now: now, env: func(string) (string, bool) { return "", false }, environ: func() []string { return nil }}
	code := make(chan int, 1)
	go func() { code <- p.run(ctx, []string{"pausa", "--socket", f.socket, "images", "pull", ref}) }()
	return out, code
}

// see waits until the screen shows lines that match, in order.
func (s *screen) see(t *testing.T, columns int, want ...string) {
	t.Helper()
	for limit := time.After(time.Minute); ; {
		s.mu.Lock()
		have := shown(s.text.String(), columns)
		s.mu.Unlock()
		ok := len(have) == len(want)
		for i := 0; ok && i < len(want); i++ {
			ok = regexp.MustCompile("^" + want[i] + "$").MatchString(have[i])
		}
		if ok {
			return
		}
		select {
		case <-s.more:
		case <-limit:
			t.Fatalf("the terminal shows\n%s\nand not\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestBarsOnATerminal(t *testing.T) {
	const ref = "slow/registry.example.com/a/long/name/that/does/not/fit/into/one/line/of/this/terminal:v1.2.3"
	f := startFake(t)
	out, code := pullOnTerminal(t, f, context.Background(), 80, ref)
	title := `Pulling slow/registry\.exam….*terminal:v1\.2\.3`
	first := `111111111111 +3\.0 MB / 3\.0 MB \[=+\] +done`
	out.see(t, 80, title, first, `222222222222 +1\.0 MB / 4\.0 MB \[\++>-+\] +[0-9.]+ [kKM]?[bB]/s`)
	f.goOn <- struct{}{}
	out.see(t, 80, title, first, `222222222222 +4\.0 MB / 4\.0 MB \[[+=]+\] +done`, `sha256:3`)
	if got := <-code; got != 0 {
		t.Errorf("exit %d", got)
	}
}

// Recorders and serial lines say that they have 0 columns.
func TestBarsOnATerminalWithoutASize(t *testing.T) {
	f := startFake(t)
	out, code := pullOnTerminal(t, f, context.Background(), 0, "slow/x")
	out.see(t, 80, "Pulling slow/x", `111111111111 .*done`, `222222222222 .*\+>-.*`)
	f.goOn <- struct{}{}
	if got := <-code; got != 0 {
		t.Errorf("exit %d", got)
	}
}

func TestCtrlCEndsAPull(t *testing.T) {
	f := startFake(t)
	ctx, cancel := context.WithCancel(context.Background())
	out, code := pullOnTerminal(t, f, ctx, 60, "slow/x")
	out.await(t, "222222222222")
	if _, err := out.Write([]byte("^C")); err != nil { // as the terminal shows it
		t.Fatal(err)
	}
	cancel()
	out.see(t, 60, "Pulling slow/x", `111111111111 .*done`, `222222222222 .*stopped`)
	if got := <-code; got != 130 {
		t.Errorf("exit %d", got)
	}
	<-f.gone // the daemon is told
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{{"short", 80, "short"}, {"abcdefghij", 10, "abcdefghij"}, {"abcdefghij", 7, "ab…ghij"}, {"äöüßäöüß", 4, "ä…üß"}, {"abc", 2, "abc"}} {
		if got := cut(c.text, c.width); got != c.want {
			t.Errorf("cut(%q, %d) = %q, want %q", c.text, c.width, got, c.want)
		}
	}
}
