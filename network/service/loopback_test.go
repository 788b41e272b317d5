package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLoopbackNodePorts(t *testing.T) {
	w := newWorld(t)
	w.servePods()
	tab := openTable(t, Options{RouteDev: "br0"})
	mustSync(t, tab, podService(w, 0))
	all := func(want string) {
		t.Helper()
		for _, c := range []struct{ network, to string }{
			{"tcp", "127.0.0.1:30080"}, {"tcp", "[::1]:30080"}, {"udp", "127.0.0.1:30053"}, {"udp", "[::1]:30053"},
		} {
			if got, err := w.host.ask(c.network, c.to); err != nil || !strings.HasPrefix(got, want+" ") {
				t.Errorf("%s %s: %q, %v; want %s", c.network, c.to, got, err, want)
			}
		}
	}
	all("pod0")
	u := newUDPClient(t, w.host, "127.0.0.1:30053")
	u.expect("pod0")
	mustSync(t, tab, podService(w, 1))
	all("pod1")
	u.expect("pod1")
	mustSync(t, tab, web([]string{}...))
	if got, err := w.host.ask("tcp", "127.0.0.1:30080"); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no endpoints: %q, %v; want an end at once", got, err)
	}
	mustSync(t, tab)
	for _, to := range []string{"127.0.0.1:30080", "[::1]:30080"} {
		if _, err := w.host.ask("tcp", to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s after the service is gone: %v", to, err)
		}
	}
}

// TestLoopbackStreams sends more than any buffer holds both ways, with a half
// close, to an endpoint behind one that is dead.
func TestLoopbackStreams(t *testing.T) {
	newWorld(t)
	ln, err := net.Listen("tcp", "192.168.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	tab := openTable(t, Options{})
	mustSync(t, tab, web(ln.Addr().String(), "192.168.0.1:9"))
	for range 8 {
		c, err := net.Dial("tcp", "127.0.0.1:30080")
		if err != nil {
			t.Fatal(err)
		}
		const size = 3 << 20
		go func() {
			_, _ = io.CopyN(c, zeros{}, size)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		n, err := io.Copy(io.Discard, c)
		if n != size || err != nil {
			t.Errorf("%d bytes back, %v; want %d", n, err, size)
		}
		_ = c.Close()
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestPortTaken(t *testing.T) {
	w := newWorld(t)
	w.servePods()
	ln, err := net.Listen("tcp4", "127.0.0.1:30080")
	if err != nil {
		t.Fatal(err)
	}
	tab := openTable(t, Options{RouteDev: "br0"})
	err = tab.Sync(context.Background(), []Service{podService(w, 0)})
	self := fmt.Sprintf("(pid %d)", os.Getpid())
	for _, want := range []string{"node port 30080", "service default/web", "127.0.0.1:30080 is taken by", self, "choose another"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("error %v is not EADDRINUSE", err)
	}
	// All else works.
	for _, to := range []string{"10.96.0.1:80", "[::1]:30080", "192.168.0.1:30080"} {
		if got, err := w.host.ask("tcp", to); err != nil || !strings.HasPrefix(got, "pod0 ") {
			t.Errorf("%s: %q, %v", to, got, err)
		}
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	mustSync(t, tab, podService(w, 0))
	if got, err := w.host.ask("tcp", "127.0.0.1:30080"); err != nil || !strings.HasPrefix(got, "pod0 ") {
		t.Errorf("after the port is free: %q, %v", got, err)
	}
}

// TestLoopbackConnectionsOutliveChanges and end with the table.
func TestLoopbackConnectionsOutliveChanges(t *testing.T) {
	newWorld(t)
	ln, err := net.Listen("tcp", "192.168.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tab := openTable(t, Options{})
	mustSync(t, tab, web(ln.Addr().String()))
	c, err := net.Dial("tcp", "127.0.0.1:30080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	mustSync(t, tab)
	if _, err := server.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf); err != nil {
		t.Fatalf("after the service is gone: %v", err)
	}
	if err := tab.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(buf); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Close: %v, want an end", err)
	}
}
