package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/netnstest"
)

// TestMain runs the tests in a network namespace of their own, which is the
// host of the tests with real packets.
func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// place is a network namespace with real sockets: a pod or another host.
type place struct {
	t    testing.TB
	ns   netns.NsHandle // None: the host, in which the test itself runs
	addr map[int]string // by family
}

// in runs f on a thread in the namespace.
func (p *place) in(f func()) {
	if p.ns == netns.None() {
		f()
		return
	}
	done := make(chan error)
	go func() {
		// The thread is thrown away with its namespace.
		goruntime.LockOSThread()
		err := netns.Set(p.ns)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		p.t.Fatal(err)
	}
}

func run(t testing.TB, line string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// world is a host with a bridge and pods behind it, and another host.
type world struct {
	host, other *place
	pods        []*place
}

const podCount = 4

// newWorld builds it: pods have /32 and /128 addresses and send all by the host.
func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs the ip program to build a network")
	}
	// A client's port that an earlier test used must not lead where it led then.
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
	run(t, `ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
# A forwarded pod-to-pod packet causes a redirect, which uses up the rate of ICMP errors.
echo 0 >/proc/sys/net/ipv4/conf/all/send_redirects; echo 0 >/proc/sys/net/ipv4/conf/default/send_redirects
echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit
for f in iptables ip6tables; do echo 0 >/proc/sys/net/bridge/bridge-nf-call-$f; done 2>/dev/null || true
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link add br0 type bridge; `+askSoon("br0")+`ip link set br0 up
ip addr add 10.1.0.1/24 dev br0; ip -6 addr add fd01::1/64 dev br0 nodad`)
	w := &world{host: &place{t: t, ns: netns.None(), addr: map[int]string{4: "192.168.0.1", 6: "fd00::1"}}}
	for i := range podCount {
		p := newPlace(t, fmt.Sprintf("pod%d", i), "br0")
		p.addr = map[int]string{4: fmt.Sprintf("10.1.0.%d", 11+i), 6: fmt.Sprintf("fd01::%d", 11+i)}
		p.configure(`ip addr add ` + p.addr[4] + `/32 dev eth0; ip -6 addr add ` + p.addr[6] + `/128 dev eth0 nodad
ip route add 10.1.0.1 dev eth0; ip route add default via 10.1.0.1
ip -6 route add fd01::1 dev eth0; ip -6 route add default via fd01::1`)
		w.pods = append(w.pods, p)
	}
	w.other = newPlace(t, "other", "")
	w.other.addr = map[int]string{4: "192.168.0.2", 6: "fd00::2"}
	w.other.configure(`ip addr add 192.168.0.2/24 dev eth0; ip -6 addr add fd00::2/64 dev eth0 nodad
ip route add default via 192.168.0.1; ip -6 route add default via fd00::1`)
	run(t, `ip addr add 192.168.0.1/24 dev other; ip -6 addr add fd00::1/64 dev other nodad; ip link set other up
ip route add 192.0.2.0/24 via 192.168.0.2; ip -6 route add 2001:db8::/32 via fd00::2`)
	awaitLocal(t, "fd01::1", "fd00::1")
	w.awaitNeighbours()
	t.Cleanup(func() { run(t, `ip link del br0; nft flush ruleset`) })
	return w
}

// awaitLocal waits until the kernel's worker has made the routes of new IPv6
// addresses. Before, they are not the host's: a SYN that comes in goes on to the
// link, and when it is repeated its connection is tracked without translation
// and refused by the host.
func awaitLocal(t testing.TB, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		for deadline := time.Now().Add(10 * time.Second); !strings.HasPrefix(run(t, "ip -6 route get "+a), "local "); {
			if time.Now().After(deadline) {
				t.Fatalf("address %s never became the host's", a)
			}
		}
	}
}

// askSoon is a command for a new device: a neighbour that was asked before it was ready
// is asked again soon, and link-local addresses are valid at once. While that of the
// bridge is checked for a duplicate the kernel forwards to no new IPv6 neighbour. A pod
// that took a redirect would answer others past the host, which has to translate.
func askSoon(dev string) string {
	return "for f in ipv4 ipv6; do echo 50 >/proc/sys/net/$f/neigh/" + dev + "/retrans_time_ms; done\n" +
		"for d in all " + dev + "; do for k in accept_dad accept_redirects; do echo 0 >/proc/sys/net/ipv6/conf/$d/$k; done; done\n"
}

// awaitNeighbours returns when the host reaches every place and is reached by it.
func (w *world) awaitNeighbours() {
	for _, p := range append(slices.Clone(w.pods), w.other) {
		for _, family := range []int{4, 6} {
			w.host.awaitRefusal(p.addr[family])
			p.awaitRefusal(map[int]string{4: "192.168.0.1", 6: "fd00::1"}[family])
		}
	}
}

// awaitRefusal connects to a port that nobody serves until there is an answer.
func (p *place) awaitRefusal(addr string) {
	p.t.Helper()
	p.in(func() {
		for deadline := time.Now().Add(20 * time.Second); ; {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, "9"), 200*time.Millisecond)
			switch {
			case err == nil:
				_ = c.Close()
				p.t.Errorf("somebody serves port 9 of %s", addr)
				return
			case errors.Is(err, unix.ECONNREFUSED):
				return
			case time.Now().After(deadline):
				p.t.Errorf("%s is never reached: %v", addr, err)
				return
			}
		}
	})
}

// newPlace makes a namespace with eth0, whose other end is dev on the host.
func newPlace(t testing.TB, dev, bridge string) *place {
	t.Helper()
	ready, done := make(chan error), make(chan struct{})
	p := &place{t: t}
	go func() {
		goruntime.LockOSThread()
		ns, err := netns.New()
		p.ns = ns
		ready <- err
		<-done
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	close(done)
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(p.ns))
	run(t, `ip link add `+dev+` type veth peer name eth0 netns `+path+`; ip link set `+dev+` up`)
	if bridge != "" {
		run(t, `ip link set `+dev+` master `+bridge)
	}
	t.Cleanup(func() {
		_ = exec.Command("ip", "link", "del", dev).Run()
		_ = p.ns.Close()
	})
	return p
}

func (p *place) configure(script string) {
	p.t.Helper()
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(p.ns))
	file := filepath.Join(p.t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(askSoon("eth0")+"ip link set lo up; ip link set eth0 up\n"+script), 0o600); err != nil {
		p.t.Fatal(err)
	}
	run(p.t, `nsenter --net=`+path+` sh -e `+file)
}

// serve answers TCP and UDP on a port of the place with "name client-address".
func (p *place) serve(name string, port int) {
	p.t.Helper()
	p.serveAt(name, fmt.Sprintf(":%d", port))
}

func (p *place) serveAt(name, addr string) {
	p.t.Helper()
	p.in(func() {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			p.t.Error(err)
			return
		}
		pc, err := net.ListenPacket("udp", addr)
		if err != nil {
			p.t.Error(err)
			return
		}
		p.t.Cleanup(func() { _ = ln.Close(); _ = pc.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(name + " " + addrOf(c.RemoteAddr())))
				_ = c.Close()
			}
		}()
		go func() {
			buf := make([]byte, 1500)
			for {
				_, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo([]byte(name+" "+addrOf(from)), from)
			}
		}()
	})
}

func addrOf(a net.Addr) string {
	return netip.MustParseAddrPort(a.String()).Addr().Unmap().String()
}

// ask sends a request from the place; the answer is "name client-address".
func (p *place) ask(network, to string) (answer string, err error) {
	p.in(func() { answer, err = ask(network, to) })
	return answer, err
}

func ask(network, to string) (string, error) {
	c, err := net.DialTimeout(network, to, 3*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	if network == "udp" {
		if _, err := c.Write([]byte("x")); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func openTable(t testing.TB, opts Options) *Table {
	t.Helper()
	opts.ServiceCIDRs, opts.Log = testCIDRs, quiet()
	tab, err := Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tab.Remove(context.Background()); err != nil && !closed(tab) {
			t.Error(err)
		}
		if err := tab.Close(); err != nil {
			t.Error(err)
		}
	})
	return tab
}

// closed tells that a test has closed the table already.
func closed(tab *Table) bool {
	_, err := tab.rules.Chains()
	return err != nil
}

// podService leads to pods on port 8080.
func podService(w *world, pods ...int) Service {
	var eps []string
	for _, i := range pods {
		eps = append(eps, w.pods[i].addr[4]+":8080", "["+w.pods[i].addr[6]+"]:8080")
	}
	return web(append([]string{}, eps...)...)
}

// servePods makes every pod answer on port 8080.
func (w *world) servePods() {
	for i, p := range w.pods {
		p.serve(fmt.Sprintf("pod%d", i), 8080)
	}
}

func TestPackets(t *testing.T) {
	w := newWorld(t)
	tab := openTable(t, Options{RouteDev: "br0"})
	w.servePods()
	mustSync(t, tab, podService(w, 0))
	ports := map[string][2]string{"tcp": {"80", "30080"}, "udp": {"53", "30053"}}
	clients := []struct {
		name string
		from *place
	}{{"pod", w.pods[1]}, {"hairpin", w.pods[0]}, {"host", w.host}, {"other host", w.other}}
	for family, frontends := range map[int][2]string{4: {"10.96.0.1", "192.0.2.7"}, 6: {"fd96::1", "2001:db8::7"}} {
		for network, port := range ports {
			for kind, to := range map[string]string{
				"cluster IP":  net.JoinHostPort(frontends[0], port[0]),
				"external IP": net.JoinHostPort(frontends[1], port[0]),
				"node port":   net.JoinHostPort(w.host.addr[family], port[1]),
				"bridge":      net.JoinHostPort(map[int]string{4: "10.1.0.1", 6: "fd01::1"}[family], port[1]),
			} {
				for _, c := range clients {
					name := fmt.Sprintf("IPv%d %s %s from %s", family, network, kind, c.name)
					t.Run(name, func(t *testing.T) {
						got, err := c.from.ask(network, to)
						if err != nil {
							t.Fatal(err)
						}
						pod, client, _ := strings.Cut(got, " ")
						if pod != "pod0" {
							t.Errorf("answer from %s", pod)
						}
						if want := clientSeen(c.name, kind, family, c.from); !slices.Contains(want, client) {
							t.Errorf("the pod saw %s, want one of %v", client, want)
						}
					})
				}
			}
		}
	}
}

// clientSeen is which client addresses are right: the real one but for a pod
// that gets itself.
func clientSeen(client, kind string, family int, from *place) []string {
	bridge := map[int]string{4: "10.1.0.1", 6: "fd01::1"}[family]
	switch {
	case client == "hairpin":
		return []string{bridge}
	case client == "host" && kind == "cluster IP":
		return []string{bridge}
	case client == "host":
		return []string{bridge, from.addr[family]}
	}
	return []string{from.addr[family]}
}

func TestRejects(t *testing.T) {
	w := newWorld(t)
	tab := openTable(t, Options{RouteDev: "br0"})
	none := Service{
		Namespace: "default", Name: "none", ClusterIPs: addrs("10.96.0.2", "fd96::2"),
		Ports: []Port{{Protocol: "TCP", Port: 80, NodePort: 30081}, {Protocol: "UDP", Port: 53, NodePort: 30081}},
	}
	mustSync(t, tab, podService(w, 0), none)
	refused := func(from *place, network, to string) {
		t.Helper()
		start := time.Now()
		got, err := from.ask(network, to)
		// A datagram of the host itself is refused by the send, as EPERM.
		own := from == w.host && network == "udp" && errors.Is(err, unix.EPERM)
		if !errors.Is(err, unix.ECONNREFUSED) && !own {
			t.Errorf("%s %s: %q, %v after %v; want refused", network, to, got, err, time.Since(start))
		}
	}
	for _, from := range []*place{w.pods[1], w.host, w.other} {
		for _, ip := range []string{"10.96.0.2", "[fd96::2]"} {
			refused(from, "tcp", ip+":80")
			refused(from, "udp", ip+":53")
		}
		for _, ip := range []string{"10.96.0.1", "[fd96::1]"} {
			refused(from, "tcp", ip+":81")
			refused(from, "udp", ip+":81")
		}
		refused(from, "tcp", "192.168.0.1:30081")
		refused(from, "udp", "[fd00::1]:30081")
	}
	// Nobody's address: not a word. A full-length wait would be slow.
	w.pods[1].in(func() {
		c, err := net.DialTimeout("tcp", "10.96.77.77:80", 200*time.Millisecond)
		if err == nil {
			_ = c.Close()
		}
		var netErr net.Error
		if !errors.As(err, &netErr) || !netErr.Timeout() {
			t.Errorf("unallocated address: %v, want a time-out", err)
		}
	})
}

// lastingUDP opens a socket in the place and returns a function that asks once.
func lastingUDP(t *testing.T, from *place, to string) func() (string, error) {
	var c net.Conn
	from.in(func() {
		var err error
		if c, err = net.Dial("udp", to); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { _ = c.Close() })
	return func() (string, error) {
		if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			return "", err
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return "", err
		}
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
}

// TestEndpointOnTheHost is a Service of a pod in the host's network, as that of
// a DNS server on the bridge's address.
func TestEndpointOnTheHost(t *testing.T) {
	w := newWorld(t)
	// Bound to its address: else UDP answers would come from another one.
	w.host.serveAt("host", "10.1.0.1:9053")
	w.host.serveAt("host", "[fd01::1]:9053")
	tab := openTable(t, Options{RouteDev: "br0"})
	mustSync(t, tab, web("10.1.0.1:9053", "[fd01::1]:9053"))
	for _, from := range []*place{w.pods[0], w.host, w.other} {
		for network, targets := range map[string][]string{
			"tcp": {"10.96.0.1:80", "[fd96::1]:80", "192.168.0.1:30080", "[fd00::1]:30080"},
			"udp": {"10.96.0.1:53", "[fd96::1]:53"},
		} {
			for _, to := range targets {
				got, err := from.ask(network, to)
				if err != nil || !strings.HasPrefix(got, "host ") {
					t.Errorf("%s %s from %s: %q, %v", network, to, from.addr[4], got, err)
				}
			}
		}
	}
}

// echo serves TCP on a port of the place with what it gets; the function sends a
// word and wants it back.
func (p *place) echo(port int) func(c net.Conn, word string) {
	p.t.Helper()
	p.in(func() {
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			p.t.Error(err)
			return
		}
		p.t.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
	})
	return func(c net.Conn, word string) {
		p.t.Helper()
		_, err := c.Write([]byte(word))
		got := make([]byte, len(word))
		if err == nil {
			_, err = io.ReadFull(c, got)
		}
		if err != nil || string(got) != word {
			p.t.Errorf("sent %q, got %q, %v", word, got, err)
		}
	}
}

// dial opens a lasting TCP connection from the place.
func (p *place) dial(to string) (c net.Conn) {
	p.t.Helper()
	var err error
	p.in(func() { c, err = net.DialTimeout("tcp", to, 5*time.Second) })
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	return c
}
