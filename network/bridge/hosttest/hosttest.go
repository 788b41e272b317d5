// Package hosttest makes network namespaces that stand for hosts and pods in
// tests, and sends real packets between them.
package hosttest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	goruntime "runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/netnstest"
)

// Main is for TestMain of packages whose tests all need root: it runs them in a
// process with network and mount namespaces of its own.
func Main(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "SKIP: these tests need root, for network namespaces")
		return 0
	}
	return netnstest.Main(m)
}

// Host is a network namespace with loopback up.
type Host struct {
	t    testing.TB
	work chan func()
	Tid  int // of a thread in it: /proc/TID/ns/net
	Net  *netlink.Handle
}

// New makes one; it ends with the test.
func New(t testing.TB) *Host {
	t.Helper()
	h := &Host{t: t, work: make(chan func())}
	ready := make(chan error)
	go h.thread(h.work, ready)
	if err := <-ready; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() {
		h.Net.Close()
		close(h.work)
	})
	return h
}

func (h *Host) thread(work <-chan func(), ready chan<- error) {
	goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
	ready <- func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		defer ns.Close()
		h.Tid = unix.Gettid()
		if h.Net, err = netlink.NewHandleAt(ns); err != nil {
			return err
		}
		lo, err := h.Net.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.Net.LinkSetUp(lo)
	}()
	for fn := range work {
		fn()
	}
}

// NetNS is a path to the namespace.
func (h *Host) NetNS() string { return "/proc/" + strconv.Itoa(h.Tid) + "/ns/net" }

// Do runs fn on a thread in the namespace.
func (h *Host) Do(fn func() error) error {
	done := make(chan error)
	h.work <- func() { done <- fn() }
	return <-done
}

// Must is Do that fails the test.
func (h *Host) Must(fn func() error) {
	h.t.Helper()
	if err := h.Do(fn); err != nil {
		h.t.Fatal(err)
	}
}

// Sysctl reads a kernel setting, "" if there is none.
func (h *Host) Sysctl(name string) string {
	var value string
	h.Must(func() error {
		b, err := os.ReadFile("/proc/sys/" + name)
		value = strings.TrimSpace(string(b))
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
	return value
}

// Run runs a program in the namespace and returns its output.
func (h *Host) Run(name string, args ...string) (string, error) {
	var out []byte
	err := h.Do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	return string(out), err
}

// Link joins a and b by a veth pair with the given interface names and
// addresses (one per family, "10.0.0.1/24").
func Link(t testing.TB, a *Host, aName string, aAddrs []string, b *Host, bName string, bAddrs []string) {
	t.Helper()
	peer, err := netns.GetFromPath(b.NetNS())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	if err := a.Net.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(peer), PeerTxQLen: -1}); err != nil {
		t.Fatalf("make link %s to %s: %v", aName, bName, err)
	}
	a.up(aName, aAddrs)
	b.up(bName, bAddrs)
	a.knows(aName, b, bName, bAddrs)
	b.knows(bName, a, aName, aAddrs)
}

// knows spares h the neighbour discovery, which may lose its first question: the kernel joins
// multicast groups in the background.
func (h *Host) knows(name string, other *Host, otherName string, addrs []string) {
	h.t.Helper()
	link, err := h.Net.LinkByName(name)
	if err != nil {
		h.t.Fatal(err)
	}
	peer, err := other.Net.LinkByName(otherName)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, a := range addrs {
		n := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: net.IP(netip.MustParsePrefix(a).Addr().AsSlice()), HardwareAddr: peer.Attrs().HardwareAddr,
		}
		if err := h.Net.NeighSet(n); err != nil {
			h.t.Fatalf("set neighbour %s: %v", a, err)
		}
	}
}

func (h *Host) up(name string, addrs []string) {
	h.t.Helper()
	link, err := h.Net.LinkByName(name)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			h.t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := h.Net.AddrAdd(link, addr); err != nil {
			h.t.Fatalf("give %s to %s: %v", a, name, err)
		}
	}
	if err := h.Net.LinkSetUp(link); err != nil {
		h.t.Fatal(err)
	}
}

// Route adds a route.
func (h *Host) Route(dst, via string) {
	h.t.Helper()
	_, to, err := net.ParseCIDR(dst)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.Net.RouteAdd(&netlink.Route{Dst: to, Gw: net.ParseIP(via)}); err != nil {
		h.t.Fatalf("add route to %s via %s: %v", dst, via, err)
	}
}

// Serve answers on a TCP or UDP port with "NAME PEER": who serves, and the
// client's address as the server sees it. It ends with the test.
func (h *Host) Serve(name, network string, addr netip.AddrPort) {
	h.t.Helper()
	h.Must(func() error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
			if err != nil {
				return err
			}
			h.t.Cleanup(func() { c.Close() })
			go serveUDP(c, name)
			return nil
		}
		l, err := net.ListenTCP(network, net.TCPAddrFromAddrPort(addr))
		if err != nil {
			return err
		}
		h.t.Cleanup(func() { l.Close() })
		go serveTCP(l, name)
		return nil
	})
}

func serveTCP(l *net.TCPListener, name string) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%s %s", name, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
		c.Close()
	}
}

func serveUDP(c *net.UDPConn, name string) {
	buf := make([]byte, 2048)
	for {
		_, peer, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s", name, peer.Addr().Unmap()), peer)
	}
}

// Call asks a server started by Serve; network is "tcp" or "udp".
func (h *Host) Call(network string, addr netip.AddrPort) (answer string, err error) {
	err = h.Do(func() error {
		c, err := net.DialTimeout(network, addr.String(), time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			buf := make([]byte, 2048)
			n, err := c.Read(buf)
			answer = string(buf[:n])
			return err
		}
		b, err := io.ReadAll(c)
		answer = string(b)
		return err
	})
	return answer, err
}
