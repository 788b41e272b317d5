//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/integration/host"
)

// matrixObjects are a pod behind everything that a packet can be sent to, and
// another pod. Service "near" keeps clients outside to endpoints of this host.
const matrixObjects = `
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: a}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: localhost/busybox:latest
    command: [sleep, "1000"]
    ports: [{containerPort: 8080, hostPort: 8088}, {containerPort: 8080, hostPort: 8088, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: b}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "localhost/busybox:latest", command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Service
metadata: {name: one}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: a}
  externalIPs: [192.0.2.77, "2001:db8::77"]
  ports: [{name: t, port: 80, targetPort: 8080, nodePort: 30080}, {name: u, port: 80, targetPort: 8080, nodePort: 30080, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  selector: {app: a}
  ports: [{name: t, port: 80, targetPort: 8080, nodePort: 30081}, {name: u, port: 80, targetPort: 8080, nodePort: 30081, protocol: UDP}]
`

// The columns and rows of the table in docs/services.md.
var (
	matrixClients   = []string{"the pod itself", "another pod", "the host", "127.0.0.1, ::1", "another host"}
	matrixFrontends = []string{"cluster IP", "external IP", "node port", "node port, policy Local", "host port"}
)

// notMeaningful says why there is nothing to test.
func notMeaningful(frontend, client string) string {
	if client == "127.0.0.1, ::1" && (frontend == "cluster IP" || frontend == "external IP") {
		return "not the host's loopback address"
	}
	return ""
}

const matrixDoc = "../docs/services.md"

// Every way to reach a pod through a Service or a host port works, over both
// families and protocols, and the pod sees the client that docs/services.md says.
func TestMatrix(t *testing.T) {
	n := newHost(t, "matrix")
	other := newHost(t, "outside")
	if err := host.Join(n.Host, other.Host, 1); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []string{
		// As hosts have it: without a route of any kind a connect fails before it comes to a rule.
		"ip route add default via 10.253.1.2", "ip -6 route add default via fd53:1::2",
	} {
		if _, err := n.Output(strings.Fields(cmd)...); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []string{"10.96.0.0/16", "192.0.2.77/32"} {
		if _, err := other.Output("ip", "route", "add", to, "via", "10.253.1.1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []string{"fd96::/112", "2001:db8::77/128"} {
		if _, err := other.Output("ip", "-6", "route", "add", to, "via", "fd53:1::1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	n.baseline()
	n.apply(matrixObjects)
	n.waitReady("", 2)
	a, b := n.placeOf(*n.pod("a")), n.placeOf(*n.pod("b"))
	a.serve(t, "a", 8080)
	places := map[string]place{
		"the pod itself": a, "another pod": b, "the host": n.place(), "127.0.0.1, ::1": n.place(), "another host": other.place(),
	}
	ips := n.service("one").Spec.ClusterIPs
	cells := map[[2]string][]string{}
	for _, front := range matrixFrontends {
		for _, client := range matrixClients {
			if notMeaningful(front, client) != "" {
				continue
			}
			for v, family := range []string{"IPv4", "IPv6"} {
				for _, network := range []string{"tcp", "udp"} {
					to := matrixTarget(front, client, ips, v)
					got, err := places[client].ask(network, to)
					if err != nil || got.name != "a" {
						t.Errorf("%s over %s %s from %s: %q, %v", front, family, network, client, got.name, err)
						continue
					}
					key := [2]string{front, client}
					if who := n.whoIs(got, to); !slices.Contains(cells[key], who) {
						cells[key] = append(cells[key], who)
					}
				}
			}
		}
	}
	if t.Failed() {
		return
	}
	compareDoc(t, matrixDoc, "matrix", matrixTable(cells))
}

// matrixTarget is the address and port that stands for a frontend.
func matrixTarget(front, client string, clusterIPs []string, v int) string {
	own := []string{"10.253.1.1", "fd53:1::1"}[v]
	if client == "127.0.0.1, ::1" {
		own = []string{"127.0.0.1", "::1"}[v]
	}
	switch front {
	case "cluster IP":
		return net.JoinHostPort(clusterIPs[v], "80")
	case "external IP":
		return net.JoinHostPort([]string{"192.0.2.77", "2001:db8::77"}[v], "80")
	}
	port := map[string]int{"node port": 30080, "node port, policy Local": 30081, "host port": 8088}[front]
	return net.JoinHostPort(own, strconv.Itoa(port))
}

// whoIs says in words whose address the pod saw.
func (n *node) whoIs(r reply, to string) string {
	n.t.Helper()
	bridge := []netip.Addr{netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd88::1")}
	switch asked := netip.MustParseAddrPort(to).Addr(); {
	case slices.Contains(bridge, r.seen):
		return "the bridge's"
	case r.seen == asked:
		return "the one asked"
	case r.seen == r.mine:
		return "its own"
	}
	return "somebody else's: " + r.seen.String()
}

func matrixTable(cells map[[2]string][]string) string {
	var b strings.Builder
	b.WriteString("| to | " + strings.Join(matrixClients, " | ") + " |\n|---|" + strings.Repeat("---|", len(matrixClients)) + "\n")
	for _, front := range matrixFrontends {
		b.WriteString("| " + front + " |")
		for _, client := range matrixClients {
			text := strings.Join(cells[[2]string{front, client}], "; ")
			if why := notMeaningful(front, client); why != "" {
				text = "(" + why + ")"
			}
			b.WriteString(" " + text + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// compareDoc holds the part of a page between <!-- NAME --> and <!-- /NAME --> to
// what was found, or writes it there if PAUSA_TEST_UPDATE is set.
func compareDoc(t *testing.T, path, name, want string) {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := []byte(fmt.Sprintf("<!-- %s -->\n", name)), []byte(fmt.Sprintf("<!-- /%s -->\n", name))
	head, rest, ok1 := bytes.Cut(page, begin)
	have, tail, ok2 := bytes.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no part %s", path, name)
	}
	if string(have) == want {
		return
	}
	if os.Getenv("PAUSA_TEST_UPDATE") == "" {
		t.Errorf("%s says\n%s\nfound\n%s\nrenew it with PAUSA_TEST_UPDATE=1 if that is meant", path, have, want)
		return
	}
	if err := os.WriteFile(path, slices.Concat(head, begin, []byte(want), end, tail), 0o644); err != nil { //nolint:gosec // a page of the project
		t.Fatal(err)
	}
}
