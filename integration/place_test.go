//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/integration/host"
	"github.com/pausa-run/pausa/internal/thread"
)

// place is a network namespace in which the test itself has sockets: a host's, or
// a pod's.
type place string

func (n *node) place() place { return place(fmt.Sprintf("/proc/%d/ns/net", n.Pid())) }

// placeOf is the namespace of a pod, found by its address.
func (n *node) placeOf(p corev1.Pod) place {
	n.t.Helper()
	files, err := filepath.Glob(n.Path(host.RunDir + "/network/netns/*"))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range files {
		found := false
		err := place(f).in(func() error {
			addrs, err := net.InterfaceAddrs()
			found = slices.ContainsFunc(addrs, func(a net.Addr) bool { return strings.HasPrefix(a.String(), p.Status.PodIP+"/") })
			return err
		})
		if err == nil && found {
			return place(f)
		}
	}
	n.t.Fatalf("no network namespace has the address %s of %s", p.Status.PodIP, p.Name)
	return ""
}

// in calls f on a thread in the namespace.
func (p place) in(f func() error) error { return thread.InNetNSAt(string(p), f) }

// serve answers on a port of TCP and UDP, both families, with a name and the
// client's address, until the test ends.
func (p place) serve(t *testing.T, name string, port int) {
	t.Helper()
	answer := func(from string) []byte { return []byte(name + " " + from) }
	at := fmt.Sprintf(":%d", port)
	err := p.in(func() error {
		for _, v := range []string{"4", "6"} {
			ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp"+v, at)
			if err != nil {
				return err
			}
			t.Cleanup(func() { ln.Close() })
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					_, _ = c.Write(answer(c.RemoteAddr().String()))
					c.Close()
				}
			}()
			pc, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp"+v, at)
			if err != nil {
				return err
			}
			t.Cleanup(func() { pc.Close() })
			go func() {
				buf := make([]byte, 64)
				for {
					_, from, err := pc.ReadFrom(buf)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err == nil {
						_, _ = pc.WriteTo(answer(from.String()), from)
					}
				}
			}()
		}
		return nil
	})
	if err != nil {
		t.Fatalf("serve in %s: %v", p, err)
	}
}

// reply is what a server says, and the address that the client had by itself.
type reply struct {
	name       string
	seen, mine netip.Addr
}

// ask connects from the namespace; a datagram is sent three times at most.
func (p place) ask(network, to string) (reply, error) {
	var r reply
	err := p.in(func() error {
		c, err := net.DialTimeout(network, to, 3*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		r.mine = netip.MustParseAddrPort(c.LocalAddr().String()).Addr()
		var out []byte
		if network == "tcp" {
			if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
				return err
			}
			out, err = io.ReadAll(c)
		} else {
			out, err = askUDP(c, 3)
		}
		if err != nil {
			return err
		}
		name, from, ok := strings.Cut(string(out), " ")
		seen, err := netip.ParseAddrPort(from)
		if !ok || err != nil {
			return fmt.Errorf("the server says %q", out)
		}
		r.name, r.seen = name, seen.Addr()
		return nil
	})
	return r, err
}

// askUDP sends datagrams until one is answered.
func askUDP(c net.Conn, tries int) ([]byte, error) {
	buf := make([]byte, 256)
	var err error
	for range tries {
		if _, err = c.Write([]byte("?")); err != nil {
			return nil, err
		}
		if err = c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return nil, err
		}
		var n int
		if n, err = c.Read(buf); err == nil {
			return buf[:n], nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
	}
	return nil, err
}
