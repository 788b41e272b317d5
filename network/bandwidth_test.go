package network

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

// transfer sends from one place to another for a time and returns bits per second.
func transfer(t testing.TB, from, to *hosttest.Host, at netip.AddrPort, how time.Duration) float64 {
	t.Helper()
	type sum struct {
		n     int64
		after time.Duration
	}
	got := make(chan sum, 1)
	to.Must(func() error {
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			return err
		}
		go func() {
			defer l.Close()
			c, err := l.Accept()
			if err != nil {
				got <- sum{}
				return
			}
			defer c.Close()
			start := time.Now()
			n, _ := io.Copy(io.Discard, c)
			got <- sum{n, time.Since(start)}
		}()
		return nil
	})
	from.Must(func() error {
		c, err := net.DialTimeout("tcp", at.String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		must0(t, c.(*net.TCPConn).SetWriteBuffer(64<<10)) // else what it holds is sent long after the end
		deadline := time.Now().Add(how)
		must0(t, c.SetDeadline(deadline))
		for chunk := make([]byte, 32<<10); time.Now().Before(deadline); {
			if _, err := c.Write(chunk); err != nil {
				break
			}
		}
		return nil
	})
	s := <-got
	return float64(s.n*8) / s.after.Seconds()
}

// TestBandwidth: the limit is never exceeded, whatever else the machine does; what is measured is told.
func TestBandwidth(t *testing.T) {
	const in, out = 40e6, 20e6
	h, other, m := twoHosts(t)
	p, r, err := podWith(t, m, "aaaa", map[string]string{"kubernetes.io/ingress-bandwidth": "40M", "kubernetes.io/egress-bandwidth": "20M"})
	must0(t, err)
	must0(t, m.Check(t.Context(), "aaaa"))
	other.Route("10.9.0.0/24", "192.0.2.1")
	other.Route("fd09::/64", "2001:db8::1")
	measure := func(what string, want, got float64) {
		t.Helper()
		t.Logf("%s: %.1f of %.0f Mbit/s (%+.1f %%)", what, got/1e6, want/1e6, 100*(got-want)/want)
		if got > want*1.15 || got < want*0.5 {
			t.Errorf("%s: %.1f Mbit/s, want %.0f", what, got/1e6, want/1e6)
		}
	}
	for i, to := range []string{"192.0.2.2:9001", "[2001:db8::2]:9001"} {
		measure("out to "+to, out, transfer(t, p, other, ap(to), time.Second))
		measure("in to "+r.IPs[i].String(), in, transfer(t, other, p, netip.AddrPortFrom(r.IPs[i], 9002), time.Second))
	}
	// Somebody takes the limits away.
	veth := must(h.Run("sh", "-c", "ip -o link show type veth | grep -o 'pv[0-9a-f]*' | head -1"))
	must(h.Run("tc", "qdisc", "del", "dev", strings.TrimSpace(veth), "root"))
	must(h.Run("tc", "qdisc", "del", "dev", strings.TrimSpace(veth), "ingress"))
	if err := m.Check(t.Context(), "aaaa"); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("check without limits: %v", err)
	}
	must0(t, m.Sync(t.Context()))
	must0(t, m.Check(t.Context(), "aaaa"))
	measure("out again", out, transfer(t, p, other, ap("192.0.2.2:9003"), time.Second))
	detach(t, m, "aaaa")
	wantNothing(t, h, m)
	if left, _ := h.Run("sh", "-c", "ip -o link show type ifb"); left != "" {
		t.Errorf("devices are left: %s", left)
	}
}
