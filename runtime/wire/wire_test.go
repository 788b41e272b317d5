package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (a, b Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = Conn{c.(*net.UnixConn)}
		t.Cleanup(func() { _ = c.Close() })
	}
	return conns[0], conns[1]
}

func TestMessagesAndFiles(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 1<<20)
	go func() {
		_ = a.Send(Request{Method: "one"}, w)
		_ = w.Close()
		_ = a.Send(Request{Method: big})
	}()
	var got Request
	files, err := b.Receive(&got)
	if err != nil || got.Method != "one" || len(files) != 1 {
		t.Fatalf("first: %v, %d files, %v", got.Method, len(files), err)
	}
	if _, err := files[0].WriteString("through"); err != nil {
		t.Error(err)
	}
	CloseAll(files)
	if data, _ := io.ReadAll(r); string(data) != "through" {
		t.Errorf("pipe gave %q", data)
	}
	if files, err = b.Receive(&got); err != nil || got.Method != big || len(files) != 0 {
		t.Errorf("second: %d bytes, %d files, %v", len(got.Method), len(files), err)
	}
}

func TestReceiveRefuses(t *testing.T) {
	for name, data := range map[string]string{"long": "\xff\xff\xff\xff{}", "not JSON": "\x00\x00\x00\x02}{"} {
		a, b := pair(t)
		if _, err := io.WriteString(a, data); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Receive(new(Request)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	a, b := pair(t)
	_ = a.Close()
	if _, err := b.Receive(new(Request)); !errors.Is(err, io.EOF) {
		t.Errorf("closed: %v", err)
	}
}

func TestAlive(t *testing.T) {
	a, b := pair(t)
	if !a.Alive() {
		t.Error("an idle connection is said to be dead")
	}
	_ = b.Close()
	if a.Alive() {
		t.Error("a closed connection is said to be alive")
	}
}
