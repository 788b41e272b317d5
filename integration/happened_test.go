//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// events are what `pausa events` prints with further arguments.
func (n *node) events(args ...string) []corev1.Event {
	n.t.Helper()
	var list struct{ Items []corev1.Event }
	if err := json.Unmarshal([]byte(n.ok(append([]string{"events", "-o", "json"}, args...)...)), &list); err != nil {
		n.t.Fatal(err)
	}
	return list.Items
}

// tells waits for an event of an object (KIND/NAME) with a text in its message.
func (n *node) tells(object, reason, text string) corev1.Event {
	n.t.Helper()
	var found corev1.Event
	n.eventually(object+" "+reason, func() error {
		all := n.events("--for", object)
		for _, e := range all {
			if e.Reason == reason && strings.Contains(e.Message, text) {
				found = e
				return nil
			}
		}
		return fmt.Errorf("only %+v", all)
	})
	return found
}

const eventPods = `
apiVersion: v1
kind: Pod
metadata: {name: good, labels: {app: good}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "localhost/busybox:latest", command: [httpd, -f, -p, "8080"], readinessProbe: {httpGet: {path: /none, port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: bad}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "localhost/none:1"}, {name: dies, image: "localhost/busybox:latest", command: ["false"]}]
---
apiVersion: v1
kind: Service
metadata: {name: good}
spec: {selector: {app: good}, ports: [{port: 80, targetPort: 8080}]}
`

// What happens to pods, and what somebody does to the network, is told, is there
// after the daemon was killed, and is counted.
func TestEvents(t *testing.T) {
	n := newNode(t, "events")
	n.apply(eventPods)
	for _, e := range [][3]string{
		{"pod/good", "Pulled", `Container image "localhost/busybox:latest" already present on machine`},
		{"pod/good", "Created", "Created container: main"},
		{"pod/good", "Started", "Started container main"},
		{"pod/good", "Unhealthy", "Readiness probe failed: "},
		{"pod/bad", "Failed", `Failed to pull image "localhost/none:1": `},
		{"pod/bad", "BackOff", `Back-off pulling image "localhost/none:1"`},
		{"pod/bad", "BackOff", "Back-off restarting failed container dies in pod bad"},
		{"node/events", "Starting", "Starting pausa"},
	} {
		n.tells(e[0], e[1], e[2])
	}
	if out := n.ok("describe", "pod", "bad"); !strings.Contains(out, "Events:\n  TYPE") || !strings.Contains(out, `Failed to pull image "localhost/none:1"`) {
		t.Errorf("describe tells no events:\n%s", out)
	}
	n.ok("exec", "good", "--", "touch", "/none")
	n.waitReady("app=good", 1)
	n.tells("service/good", "EndpointsReady", "")

	cni := n.Dir + "/cni"
	for _, c := range []struct{ broken, mend, reason, text string }{
		{"nft flush ruleset", "", "RulesChanged", "rules of pausa were changed by nft; it was made again"},
		{"nft add chain inet pausa theirs", "", "RulesChanged", "rules of pausa were changed by nft"},
		{"nft delete table bridge pausa", "", "RulesChanged", "rules of pausa were changed by nft"},
		{"ip link set pausa0 down", "", "BridgeDown", "bridge pausa0 is down; it was made again"},
		{"ip link del pausa0", "", "BridgeDeleted", "bridge pausa0 is gone; it was made again"},
		{"ip addr del 10.88.0.1/16 dev pausa0", "", "AddressRemoved", "address 10.88.0.1/16 of bridge pausa0 is gone"},
		{"ip addr del 10.96.0.10/32 dev lo", "", "DNSAddressRemoved", "address 10.96.0.10 of DNS is gone from lo"},
		{"ip link set pausa0 mtu 1400", "", "MTUChanged", "bridge pausa0 has mtu 1400"},
		{"sysctl -qw net.ipv4.ip_forward=0", "", "KernelSettingChanged", `sysctl net.ipv4.ip_forward is "0"`},
		{"mkdir -p " + cni + "; echo '{' > " + cni + "/1.conf", "rm " + cni + "/1.conf", "NetworkNotReady", "New pods get no network: "},
		{"", "", "NetworkReady", "New pods get a network again"},
	} {
		n.sh(c.broken)
		n.tells("node/events", c.reason, c.text)
		n.sh(c.mend)
		n.eventually("after "+c.broken+" a Service answers", func() error {
			_, err := n.wget("http://" + n.service("good").Spec.ClusterIP + "/none")()
			return err
		})
	}
	if first := n.tells("node/events", "RulesChanged", "by nft"); first.Count != 3 || first.Type != corev1.EventTypeWarning || first.Source.Host != "events" {
		t.Errorf("three changes of rules: %+v", first)
	}
	if out := n.ok("events", "--for", "node/events", "--types", "Warning"); !strings.Contains(out, "(x3 over ") {
		t.Errorf("a table without counts:\n%s", out)
	}
	n.eventually("it is on the disk", func() error {
		raw, err := os.ReadFile(n.Path("/run/pausa/events.json"))
		if err == nil && !strings.Contains(string(raw), "NetworkReady") {
			err = errors.New("not yet")
		}
		return err
	})
	if err := errors.Join(n.KillDaemon(syscall.SIGKILL), n.Serve()); err != nil {
		t.Fatal(err)
	}
	if e := n.tells("node/events", "RulesChanged", "by nft"); e.Count != 3 {
		t.Errorf("after a restart: %+v", e)
	}
	if e := n.tells("node/events", "Starting", ""); e.Count != 2 {
		t.Errorf("the second start: %+v", e)
	}
	if err := n.KillKeeper(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.tells("node/events", "KeeperRestarted", "another one runs")
	n.ok("delete", "pod", "good")
	n.tells("pod/good", "Killing", "Stopping container main")
	n.tells("service/good", "NoReadyEndpoints", "")
}
