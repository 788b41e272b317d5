package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

func mtuOf(t testing.TB, h *hosttest.Host, name string) int {
	t.Helper()
	link, err := h.Net.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().MTU
}

func setMTU(t testing.TB, h *hosttest.Host, name string, mtu int) {
	t.Helper()
	must0(t, h.Net.LinkSetMTU(must(h.Net.LinkByName(name)), mtu))
}

// TestMTUFollowsTheWayOut: also that of pods that run already.
func TestMTUFollowsTheWayOut(t *testing.T) {
	h, _, m := twoHosts(t)
	p, _ := newPod(t, m, "aaaa")
	limited, _, err := podWith(t, m, "bbbb", map[string]string{"kubernetes.io/egress-bandwidth": "10M"})
	must0(t, err)
	for _, mtu := range []int{1400, 1500, 1280} {
		setMTU(t, h, "uplink", mtu)
		if what, err := damage(m); !strings.Contains(what, fmt.Sprint("the way out ", mtu)) || err != nil {
			t.Errorf("damage: %q, %v", what, err)
		}
		must0(t, m.Sync(t.Context()))
		if what, err := damage(m); what != "" || err != nil {
			t.Errorf("damage after Sync: %q, %v", what, err)
		}
		q, _ := newPod(t, m, "cccc")
		for _, got := range []int{mtuOf(t, h, "pausa0"), mtuOf(t, p, "eth0"), mtuOf(t, limited, "eth0"), mtuOf(t, q, "eth0")} {
			if got != mtu {
				t.Errorf("mtu %d, want %d", got, mtu)
			}
		}
		detach(t, m, "cccc")
	}
	// A mtu of the default route itself counts more than its link's.
	must(h.Run("ip", "route", "replace", "default", "via", "192.0.2.2", "mtu", "1300"))
	setMTU(t, h, "uplink", 1500)
	must0(t, m.Sync(t.Context()))
	if got := mtuOf(t, p, "eth0"); got != 1300 {
		t.Errorf("mtu %d, want that of the route, 1300", got)
	}
	detach(t, m, "aaaa")
	detach(t, m, "bbbb")
	wantNothing(t, h, m)
}

// TestPostOverSmallLink: 100 KB through a link that is smaller than the pods' own,
// while nobody tells them.
func TestPostOverSmallLink(t *testing.T) {
	h, other, m := twoHosts(t, func(o *Options) { o.MTU = 1500 })
	p, _ := newPod(t, m, "aaaa")
	setMTU(t, h, "uplink", 1280)
	setMTU(t, other, "uplink", 1280)
	must(h.Run("nft", `add table inet deaf; add chain inet deaf out { type filter hook output priority 0; };
		add rule inet deaf out icmp type destination-unreachable drop; add rule inet deaf out icmpv6 type packet-too-big drop`))
	for _, to := range []string{"192.0.2.2:9000", "[2001:db8::2]:9000"} {
		got := make(chan int64, 1)
		other.Must(func() error {
			l, err := net.Listen("tcp", to)
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				n, _ := io.Copy(io.Discard, c)
				got <- n
			}()
			return nil
		})
		p.Must(func() error {
			c, err := net.DialTimeout("tcp", to, 5*time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(make([]byte, 100<<10))
			return err
		})
		if n := <-got; n != 100<<10 {
			t.Errorf("%s: %d bytes came through", to, n)
		}
	}
	must(h.Run("nft", "delete table inet deaf"))
	detach(t, m, "aaaa")
}

// TestErrorsReachPods: what others say of a pod's datagrams, also through the
// masquerade, comes back to it: refused ports and links that are too small.
func TestErrorsReachPods(t *testing.T) {
	h, other, m := twoHosts(t, func(o *Options) { o.MTU = 1500 })
	p, _ := newPod(t, m, "aaaa")
	for _, to := range []string{"192.0.2.2:9", "[2001:db8::2]:9"} {
		for range 3 { // the rate of errors is limited, but not so low
			if _, err := p.Call("udp", ap(to)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: %v, want refused", to, err)
			}
		}
	}
	setMTU(t, h, "uplink", 1280)
	setMTU(t, other, "uplink", 1280)
	for _, to := range []string{"192.0.2.2:9", "[2001:db8::2]:9"} {
		p.Must(func() error {
			c, err := net.Dial("udp", to)
			if err != nil {
				return err
			}
			defer c.Close()
			raw, err := c.(*net.UDPConn).SyscallConn()
			if err != nil {
				return err
			}
			var set error
			err = raw.Control(func(fd uintptr) { // never in pieces
				if to[0] != '[' {
					set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
				} else {
					set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
				}
			})
			if err := errors.Join(err, set); err != nil {
				return err
			}
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if _, err := c.Write(make([]byte, 1400)); errors.Is(err, unix.EMSGSIZE) {
					return nil
				}
			}
			t.Errorf("%s: the pod never heard that its packets are too big", to)
			return nil
		})
	}
	detach(t, m, "aaaa")
}
