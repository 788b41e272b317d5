//go:build integration

package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pausa-run/pausa/integration/host"
)

const udpService = `
apiVersion: v1
kind: Service
metadata: {name: udp}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: udp}
  externalIPs: [192.0.2.77]
  ports: [{port: 53, targetPort: 8080, nodePort: 30053, protocol: UDP}]
`

// udpPod is behind the Service and has a host port, so that there can be one at a time.
func udpPod(name string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: udp}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: localhost/busybox:latest
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    ports: [{containerPort: 8080, hostPort: 8053, protocol: UDP}]
`, name)
}

// sender sends datagrams from one port all the time.
type sender struct {
	what string
	last atomic.Value // string: who answers, "refused" or "silence"
}

// The outcomes of a datagram that no pod answers.
const refused, silence = "refused", "silence"

func (p place) sender(t *testing.T, what, to string) *sender {
	t.Helper()
	s := &sender{what: what}
	s.last.Store(silence)
	var conn net.Conn
	if err := p.in(func() (err error) { conn, err = net.Dial("udp", to); return err }); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 256)
		for {
			_, err := conn.Write([]byte("?"))
			if err == nil {
				_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				var n int
				if n, err = conn.Read(buf); err == nil {
					name, _, _ := strings.Cut(string(buf[:n]), " ")
					s.last.Store(name)
				}
			}
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case errors.Is(err, os.ErrDeadlineExceeded):
				// ICMP errors are few: silence after one says nothing new.
				if s.last.Load() != refused {
					s.last.Store(silence)
				}
			case err != nil: // ECONNREFUSED, or EPERM of the host's own datagrams
				s.last.Store(refused)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return s
}

// become waits until all senders have the outcome. conntrack would keep them at
// what was for 30 seconds and more.
func become(t *testing.T, after, want string, senders ...*sender) {
	t.Helper()
	began := time.Now()
	for _, s := range senders {
		for s.last.Load() != want {
			if time.Since(began) > 10*time.Second {
				t.Errorf("%s: a lasting sender to the %s gets %q, want %q", after, s.what, s.last.Load(), want)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	t.Logf("%s: all senders get %q after %v", after, want, time.Since(began).Round(time.Millisecond))
}

// Datagrams from one port reach the right pod, or are refused, whatever comes and
// goes: conntrack would go on translating them as it began.
func TestLastingUDPSenders(t *testing.T) {
	n := newHost(t, "udp")
	other := newHost(t, "outside")
	if err := host.Join(n.Host, other.Host, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Output("ip", "route", "add", "192.0.2.77/32", "via", "10.253.1.1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	n.baseline()
	n.apply(udpService)
	svc := n.service("udp")
	senders := []*sender{
		n.place().sender(t, "cluster IP", net.JoinHostPort(svc.Spec.ClusterIPs[0], "53")),
		n.place().sender(t, "cluster IP over IPv6", net.JoinHostPort(svc.Spec.ClusterIPs[1], "53")),
		other.place().sender(t, "node port", "10.253.1.1:30053"),
		other.place().sender(t, "node port over IPv6", "[fd53:1::1]:30053"),
		other.place().sender(t, "external IP", "192.0.2.77:53"),
		other.place().sender(t, "host port", "10.253.1.1:8053"),
		other.place().sender(t, "host port over IPv6", "[fd53:1::1]:8053"),
	}
	of, fixed := senders[:5], senders[5:]
	start := func(name string) {
		t.Helper()
		n.apply(udpPod(name))
		n.eventually(name+" is ready", func() error {
			if p := n.pod(name); p == nil || !isReady(*p) {
				return errors.New("it is not")
			}
			return nil
		})
		n.placeOf(*n.pod(name)).serve(t, name, 8080)
	}
	become(t, "before there is a pod", refused, senders...)
	start("one")
	become(t, "the first pod", "one", senders...)
	n.ok("delete", "pod", "one")
	become(t, "the last pod is gone", refused, senders...)
	start("two")
	become(t, "another pod", "two", senders...)
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	become(t, "the daemon is killed", "two", senders...)
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.ok("delete", "pod", "two", "--grace-period=0", "--force")
	start("three")
	become(t, "another pod after a kill of both", "three", senders...)
	n.ok("delete", "service", "udp")
	become(t, "the Service is gone", refused, of[:4]...)
	become(t, "the Service is gone", silence, of[4]) // forwarded to whoever has the address
	become(t, "the Service is gone", "three", fixed...)
	n.apply(udpService)
	svc2 := n.service("udp")
	if svc2.Spec.ClusterIP != svc.Spec.ClusterIP {
		t.Fatalf("the Service has another address: %s, had %s", svc2.Spec.ClusterIP, svc.Spec.ClusterIP)
	}
	become(t, "the Service is back", "three", senders...)
}
