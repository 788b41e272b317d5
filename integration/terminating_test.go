//go:build integration

package integration

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// slowPod takes two seconds to end, and answers meanwhile.
func slowPod(name string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: slow}}
spec:
  terminationGracePeriodSeconds: 3
  containers:
  - name: c
    image: localhost/busybox:latest
    command: [sleep, "1000"]
    ports: [{containerPort: 8080}]
    lifecycle: {preStop: {sleep: {seconds: 2}}}
`, name)
}

// echo answers each line with the name, for as long as the connection lasts.
func (p place) echo(t *testing.T, name string, port int) {
	t.Helper()
	err := p.in(func() error {
		ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", fmt.Sprintf(":%d", port))
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
				go func() {
					defer c.Close()
					for lines := bufio.NewScanner(c); lines.Scan(); {
						fmt.Fprintln(c, name)
					}
				}()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// says sends a line and reads the answer.
func says(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, "?"); err != nil {
		return "", err
	}
	return bufio.NewReader(c).ReadString('\n')
}

// A pod that is being ended keeps the connections that it has, and gets new ones
// only while nobody else is ready; endpoints that are not pods are used as well.
func TestTerminatingPod(t *testing.T) {
	n := newNode(t, "ending")
	n.apply("apiVersion: v1\nkind: Service\nmetadata: {name: slow}\nspec: {selector: {app: slow}, ports: [{port: 80, targetPort: 8080}]}\n")
	n.apply(slowPod("first"))
	n.waitReady("app=slow", 1)
	n.placeOf(*n.pod("first")).echo(t, "first", 8080)
	to := net.JoinHostPort(n.service("slow").Spec.ClusterIP, "80")
	dial := func() (c net.Conn, err error) {
		err = n.place().in(func() error { c, err = net.DialTimeout("tcp", to, 3*time.Second); return err })
		return c, err
	}
	who := func() string {
		c, err := dial()
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		name, err := says(c)
		if err != nil {
			return err.Error()
		}
		return name
	}
	old, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if got, err := says(old); err != nil || got != "first\n" {
		t.Fatalf("%q, %v", got, err)
	}
	n.ok("delete", "pod", "first", "--wait=false")
	n.eventually("its end is asked for", func() error {
		if p := n.pod("first"); p == nil || p.DeletionTimestamp == nil {
			return fmt.Errorf("it is %v", p)
		}
		return nil
	})
	if got := who(); got != "first\n" {
		t.Errorf("the last pod, while it ends: %q", got)
	}
	if out := n.ok("describe", "service", "slow"); !strings.Contains(out, "terminating: gets connections only while no other is ready") {
		t.Errorf("describe says nothing of a pod that ends:\n%s", out)
	}
	// Another one, without a pod: the host itself, by an EndpointSlice.
	n.place().echo(t, "second", 8081)
	n.apply(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: slow-host, labels: {kubernetes.io/service-name: slow}}
addressType: IPv4
endpoints: [{addresses: [10.88.0.1]}]
ports: [{port: 8081}]
`)
	n.eventually("new connections go elsewhere", func() error {
		if got := who(); got != "second\n" {
			return fmt.Errorf("%q answers", got)
		}
		return nil
	})
	if n.pod("first") != nil {
		if got, err := says(old); err != nil || got != "first\n" {
			t.Errorf("the connection that it had: %q, %v", got, err)
		}
	} else {
		t.Error("the pod ended too soon to tell")
	}
	n.apply(strings.Replace(slowPod("broken"), "lifecycle:", "readinessProbe: {tcpSocket: {port: 9}}\n    lifecycle:", 1))
	n.eventually("describe says why a pod is not ready", func() error {
		if out := n.ok("describe", "service", "slow"); !strings.Contains(out, "not ready: containers with unready status: [c]") || !strings.Contains(out, "10.88.0.1:8081") {
			return fmt.Errorf("it says\n%s", out)
		}
		return nil
	})
	n.eventually("it is gone", func() error {
		if n.pod("first") != nil {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	for range 5 {
		if got := who(); got != "second\n" {
			t.Errorf("afterwards: %q", got)
		}
	}
}
