//go:build cgo

package keeper

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestJournalSettles stops one logging of "new\n" at each of its steps.
func TestJournalSettles(t *testing.T) {
	const old, text = "old text\n", "new text\n"
	for name, c := range map[string]struct{ log, fifo, wantLog, wantFIFO string }{
		"before the write":    {old, "new\nmore\n", old, "new\nmore\n"},
		"in the write":        {old + text[:4], "new\nmore\n", old, "new\nmore\n"},
		"after the write":     {old + text, "new\nmore\n", old + text, "more\n"},
		"after the taking":    {old + text, "more\n", old + text, "more\n"},
		"others wrote behind": {old + text + "x\n", "new\n", old + text + "x\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			log, err := openLog(filepath.Join(dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.close()
			pipes := &pipePool{}
			s := newStdio(dir, log, pipes, func() {})
			if err := makeFIFO(s.path("stdout")); err != nil {
				t.Fatal(err)
			}
			end, err := openFIFO(s.path("stdout"), unix.O_RDWR)
			if err != nil {
				t.Fatal(err)
			}
			defer end.Close()
			memory, err := openJournal(s.path("journal"))
			if err != nil {
				t.Fatal(err)
			}
			write(t, log.file, old)
			memory.journalOf(1).begin(log.file, []byte(text), []byte("new\n"))
			write(t, log.file, c.log[len(old):])
			write(t, end, c.fifo)
			memory.close() // as a kill -9 does

			if memory, err = openJournal(s.path("journal")); err != nil {
				t.Fatal(err)
			}
			defer memory.close()
			for range 2 { // the second time there is nothing to settle
				if err := memory.journalOf(1).settle(log.file, end, pipes); err != nil {
					t.Fatal(err)
				}
			}
			if got, _ := os.ReadFile(log.path); string(got) != c.wantLog {
				t.Errorf("log %q, want %q", got, c.wantLog)
			}
			buf := make([]byte, pumpSize)
			if n, _ := pipes.peek(int(end.Fd()), buf); string(buf[:n]) != c.wantFIFO {
				t.Errorf("fifo %q, want %q", buf[:n], c.wantFIFO)
			}
		})
	}
}

func write(t *testing.T, f *os.File, text string) {
	t.Helper()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}
