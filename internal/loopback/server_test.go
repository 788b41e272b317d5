package loopback

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newServer(t *testing.T) *Server {
	t.Helper()
	s := New(slog.New(slog.DiscardHandler), nil)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// echo answers on 127.0.0.1 with what it gets.
func echo(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	return netip.MustParseAddrPort(ln.Addr().String())
}

// free is a port that nobody has at this moment.
func free(t *testing.T) Port {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return Port{AddrPort: netip.MustParseAddrPort(ln.Addr().String())}
}

func dial(t *testing.T, p Port) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.AddrPort.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func says(c net.Conn, word string) error {
	if _, err := c.Write([]byte(word)); err != nil {
		return err
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, []byte(word)) {
		return errors.New("got " + string(got))
	}
	return nil
}

func TestUnsetKeepsConnectionsAndCutEndsThem(t *testing.T) {
	s, p := newServer(t), free(t)
	set := func() {
		t.Helper()
		if err := s.Set(p, []netip.AddrPort{echo(t)}); err != nil {
			t.Fatal(err)
		}
	}
	set()
	c := dial(t, p)
	if err := says(c, "one"); err != nil {
		t.Fatal(err)
	}
	if err := s.Unset(p); err != nil {
		t.Fatal(err)
	}
	if err := says(c, "two"); err != nil {
		t.Errorf("after Unset: %v", err)
	}
	if _, err := net.Dial("tcp", p.AddrPort.String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect after Unset: %v", err)
	}
	set()
	if got := s.Ports(); len(got) != 1 || got[0] != p {
		t.Errorf("ports %v, want %v", got, p)
	}
	if err := s.Cut(p); err != nil {
		t.Fatal(err)
	}
	if err := says(c, "three"); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Cut: %v, want an end", err)
	}
	if err := errors.Join(s.Cut(p), s.Unset(p)); err != nil {
		t.Errorf("what is closed, again: %v", err)
	}
}

func TestPortWithoutEndpointsResets(t *testing.T) {
	s, p := newServer(t), free(t)
	if err := s.Set(p, nil); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", p.AddrPort.String()) // the reset may come before Dial returns
	if err == nil {
		defer c.Close()
		if err = c.SetDeadline(time.Now().Add(10 * time.Second)); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestTakenPortNamesItsHolder(t *testing.T) {
	s := newServer(t)
	has := echo(t)
	err := s.Set(Port{AddrPort: has}, nil)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "(pid "+strconv.Itoa(os.Getpid())+")") {
		t.Errorf("got %v, want EADDRINUSE and this process", err)
	}
	// An address that this host does not have is nobody's mistake.
	if err := s.Set(Port{AddrPort: netip.MustParseAddrPort("192.0.2.1:1")}, nil); err != nil || len(s.Ports()) != 0 {
		t.Errorf("address of another host: %v, %v", err, s.Ports())
	}
}
