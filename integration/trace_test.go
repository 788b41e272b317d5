//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// traced is what `pausa trace -o json` prints.
type traced struct {
	Through bool
	Steps   []struct{ Step, Verdict, What, Cure string }
}

// first is the first step with a verdict, as "STEP: WHAT".
func (r traced) first(verdict string) string {
	for _, s := range r.Steps {
		if s.Verdict == verdict {
			return s.Step + ": " + s.What
		}
	}
	return ""
}

func (n *node) trace(args ...string) traced {
	n.t.Helper()
	out, stderr, code := n.CLI("", append([]string{"trace", "-o", "json", "--timeout", "1s"}, args...)...)
	var r traced
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		n.t.Fatalf("pausa trace %v: %v\n%s%s", args, err, out, stderr)
	}
	if r.Through != (code == 0) {
		n.t.Errorf("pausa trace %v: exit status %d, and through is %v", args, code, r.Through)
	}
	return r
}

// tracePods are a client, a server, one that is never ready, and one that
// listens on its own loopback alone; and Services for each, and for nobody.
const tracePods = `
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "localhost/busybox:latest", command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "localhost/busybox:latest", command: [sh, -c, "httpd -p 127.0.0.1:8081; exec httpd -f -p 8080"], ports: [{containerPort: 8080, hostPort: 8088}, {containerPort: 8079, hostPort: 8089}], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: lazy, labels: {app: lazy}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "localhost/busybox:latest", command: [sleep, "1000"], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: mistaken}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8079}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: server}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: lazy}
spec: {selector: {app: lazy}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
`

// Each thing on the way of a connection is broken, and the trace names it.
func TestTrace(t *testing.T) {
	n := newNode(t, "trace")
	n.apply(tracePods)
	server := n.waitReady("app=server", 1)[0]
	client := n.waitReady("app=client", 1)[0]
	n.eventually("lazy runs", func() error {
		if p := n.pod("lazy"); p == nil || p.Status.PodIP == "" {
			return errors.New("it has no address")
		}
		return nil
	})
	n.eventually("a connection goes through", func() error {
		if r := n.trace("client", "svc/server:http"); !r.Through || r.first("warn") != "" {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	for _, args := range [][]string{{"host", "svc/server:80"}, {"client", "server:8080"}, {"client", "svc/headless:8080"}, {"client", "10.96.0.10:53/UDP"}, {"client", server.Status.PodIPs[1].IP + ":8080"}} {
		if args[1] == server.Status.PodIPs[1].IP+":8080" {
			args[1] = "[" + server.Status.PodIPs[1].IP + "]:8080"
		}
		if r := n.trace(args...); !r.Through {
			t.Errorf("%v: %+v", args, r)
		}
	}
	hostAddr := "10.88.0.1"
	for _, from := range []string{"client", "host"} {
		r := n.trace(from, hostAddr+":8088")
		if !r.Through || !strings.Contains(fmt.Sprint(r.Steps), "host port 8088/TCP leads to "+server.Status.PodIP+":8080, pod default/server") {
			t.Errorf("from %s to a host port: %+v", from, r)
		}
	}
	var veth string
	for _, s := range n.trace("client", "server:8080").Steps {
		if s.Step == "host link" {
			veth = strings.Fields(s.What)[0]
		}
	}
	netns := n.netnsOf("client")
	const drop = "table ip other { chain theirs { type filter hook forward priority 0; policy %s; %s; }; }"
	for _, c := range []struct {
		what          string
		broken, mend  string // commands
		from, to      string
		want, cure    string
		alsoByPackets bool
	}{
		{what: "no pod has the labels", from: "client", to: "svc/nobody:80", want: "endpoints: service default/nobody has no endpoint: no pod of namespace default has the labels app=nobody", cure: "--show-labels"},
		{what: "not ready", from: "client", to: "svc/lazy:80", want: "endpoints: service default/lazy has no ready endpoint: lazy (", cure: "pausa describe pod lazy"},
		{what: "no such port", from: "client", to: "svc/server:81", want: "service: service default/server has no port 81, it has http (80/TCP)"},
		{what: "no such port of an address", from: "client", to: n.service("server").Spec.ClusterIP + ":81", want: "service rules: " + n.service("server").Spec.ClusterIP + " is a cluster IP, and has no port 81/TCP"},
		{what: "wrong target", from: "client", to: "svc/mistaken:80", want: "end: nothing in pod default/server listens on port 8079/TCP", cure: "targetPort"},
		{what: "host port without a listener", from: "client", to: hostAddr + ":8089", want: "end: nothing in pod default/server listens on port 8079/TCP"},
		{what: "loopback alone", from: "client", to: "server:8081", want: "end: pod default/server listens on port 8081/TCP at 127.0.0.1 alone", cure: "0.0.0.0"},
		{what: "policy of others", broken: "nft '" + fmt.Sprintf(drop, "drop", "counter") + "'", mend: "nft delete table ip other", from: "client", to: "svc/server:80", want: "other rules: chain ip other theirs drops it: policy drop", cure: `iifname "pausa0" accept`, alsoByPackets: true},
		{what: "rule of others", broken: "nft '" + fmt.Sprintf(drop, "accept", "ip daddr "+server.Status.PodIP+" tcp dport 8080 reject") + "'", mend: "nft delete table ip other", from: "client", to: "svc/server:80", want: "other rules: chain ip other theirs drops it: rule handle", cure: "nft delete rule ip other theirs handle"},
		{what: "route gone", broken: "nsenter --net=" + netns + " ip route del default", mend: "nsenter --net=" + netns + " ip route add default via 10.88.0.1 dev eth0 onlink", from: "client", to: "server:8080", want: "route: pod default/client has no route to " + server.Status.PodIP},
	} {
		n.sh(c.broken)
		r := n.trace(c.from, c.to)
		packets := traced{}
		if c.alsoByPackets {
			packets = n.trace(c.from, c.to, "--packet")
		}
		n.sh(c.mend)
		if got := r.first("stop"); r.Through || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: stops at %q, want %q\n%+v", c.what, got, c.want, r.Steps)
		}
		if i := slices.IndexFunc(r.Steps, func(s struct{ Step, Verdict, What, Cure string }) bool { return s.Verdict == "stop" }); i >= 0 && !strings.Contains(r.Steps[i].Cure, c.cure) {
			t.Errorf("%s: the cure is %q, without %q", c.what, r.Steps[i].Cure, c.cure)
		}
		if last := len(packets.Steps) - 1; c.alsoByPackets && (last < 0 || packets.Steps[last].Step != "packet" || !strings.Contains(packets.Steps[last].What, "ip other theirs, policy drop: here it is dropped")) {
			t.Errorf("%s: packets end at %+v", c.what, packets.Steps)
		}
	}
	if out := n.sh("nft list tables"); strings.Contains(out, "trace") {
		t.Errorf("a table of the trace is left:\n%s", out)
	}
	// A datagram's connection of before that leads to a pod that is no endpoint.
	dnsIP := "10.96.0.10"
	n.sh("nft 'table ip other { chain theirs { type nat hook prerouting priority -150; ip saddr " + client.Status.PodIP + " udp dport 53 dnat to " + server.Status.PodIP + "; }; }'")
	_, _, _ = n.CLI("", "exec", "client", "--", "timeout", "2", "nslookup", "-timeout=1", "-retry=1", "x.", dnsIP)
	n.sh("nft delete table ip other")
	stale := n.trace("client", dnsIP+":53/UDP")
	if got := stale.first("warn"); !strings.HasPrefix(got, "tracked: datagrams of before still lead elsewhere: ") || !strings.Contains(got, server.Status.PodIP+":53, pod default/server") {
		t.Errorf("a stale connection: %q in %+v", got, stale.Steps)
	}
	n.tracesAreRemoved()
	// What the daemon would mend at once.
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.sh("sysctl -qw net.ipv4.ip_forward=0")
	if got := n.trace("client", "server:8080").first("stop"); !strings.HasPrefix(got, `forwarding: net.ipv4.ip_forward is "0"`) {
		t.Errorf("without forwarding it stops at %q", got)
	}
	n.sh("sysctl -qw net.ipv4.ip_forward=1; ip link set " + veth + " down")
	if got := n.trace("client", "server:8080").first("stop"); !strings.HasPrefix(got, "pod link: "+veth+", the host's end of the pod's eth0, is down") {
		t.Errorf("without the link it stops at %q", got)
	}
	n.sh("ip link set " + veth + " up; ip link set pausa0 down")
	if got := n.trace("client", "server:8080").first("stop"); !strings.HasPrefix(got, "host link: bridge pausa0 is down") {
		t.Errorf("without the bridge it stops at %q", got)
	}
	n.sh("ip link set pausa0 up")
	n.fails("", 1, []string{"the daemon is not running"}, "trace", "client", "svc/server:80")
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
}

// tracesAreRemoved kills a trace while its table is there, beside another one.
func (n *node) tracesAreRemoved() {
	n.t.Helper()
	n.sh("nft 'table ip other { chain theirs { type filter hook forward priority 0; tcp dport 8080 drop; }; }'")
	begin := func() *exec.Cmd {
		cmd := n.CLICommand(n.t.Context(), "trace", "client", "server:8080", "--packet", "--timeout", "1s")
		if err := cmd.Start(); err != nil {
			n.t.Fatal(err)
		}
		return cmd
	}
	traces := func(want int) {
		n.t.Helper()
		n.eventually(fmt.Sprint(want, " tables of traces"), func() error {
			if out := n.sh("nft list tables"); strings.Count(out, "pausa-trace-") != want {
				return fmt.Errorf("there are %s", out)
			}
			return nil
		})
	}
	one, two := begin(), begin()
	traces(2)
	if err := n.Kill("pausa", "trace", syscall.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
	_, _ = one.Process.Wait()
	_, _ = two.Process.Wait()
	traces(0)
	n.sh("nft delete table ip other")
}

// sh runs a line of shell on the host; "" is nothing.
func (n *node) sh(line string) string {
	n.t.Helper()
	out, err := n.Output("sh", "-c", line)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// netnsOf is the path of a pod's network namespace on the host.
func (n *node) netnsOf(name string) string {
	n.t.Helper()
	return strings.TrimSpace(n.sh(`for f in /run/pausa/pods/*/pod.json; do if grep -q '"name": *"` + name + `"' $f; then echo /run/pausa/network/netns/$(basename $(dirname $f)); fi; done`))
}
