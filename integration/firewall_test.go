//go:build integration

package integration

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pausa-run/pausa/integration/host"
)

// everyRule is a pod behind Services of each form that has rules of its own.
const everyRule = matrixObjects + `
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {sessionAffinity: ClientIP, selector: {app: a}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: some}
spec:
  type: LoadBalancer
  loadBalancerIP: 10.253.1.1
  loadBalancerSourceRanges: [10.253.1.0/24]
  selector: {app: a}
  ports: [{port: 81, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: away}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: away, labels: {kubernetes.io/service-name: away}}
addressType: IPv4
endpoints: [{addresses: [10.253.1.2]}]
ports: [{port: 8080}]
`

// foreignRules are somebody else's.
const foreignRules = `
table ip filter {
	set some { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 } }
	chain INPUT { type filter hook input priority filter; policy accept; counter; ip saddr @some drop; }
}
table inet pausa2 { chain x { type filter hook prerouting priority -90; policy accept; tcp dport 9 drop; }; }
`

// without is the ruleset but for Pausa's tables, and without counters.
func (n *node) without() string {
	n.t.Helper()
	out, err := n.Output("nft", "--stateless", "list", "ruleset")
	if err != nil {
		n.t.Fatal(err)
	}
	var keep []string
	ours := false
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "table ") {
			ours = line == "table inet pausa {\n" || line == "table bridge pausa {\n"
		}
		if !ours {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "")
}

// everyRuleAnswers asks every Service of everyRule from another host or this one.
func (n *node) everyRuleAnswers(other *node) error {
	var errs []error
	for _, to := range []string{"10.253.1.1:30080", "[fd53:1::1]:30080", "10.253.1.1:8088", "10.253.1.1:81", "192.0.2.77:80"} {
		if _, err := other.place().ask("tcp", to); err != nil {
			errs = append(errs, fmt.Errorf("another host to %s: %w", to, err))
		}
	}
	for _, name := range []string{"one", "sticky", "away"} {
		for _, ip := range n.service(name).Spec.ClusterIPs {
			if _, err := n.place().ask("tcp", net.JoinHostPort(ip, "80")); err != nil {
				errs = append(errs, fmt.Errorf("the host to %s of %s: %w", ip, name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// ruleHosts are a host with a pod behind everyRule, and another one.
func ruleHosts(t *testing.T, env ...string) (n, other *node) {
	t.Helper()
	n, other = newHost(t, "rules"), newHost(t, "outside")
	n.Env = append(n.Env, env...)
	if err := host.Join(n.Host, other.Host, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Output("ip", "route", "add", "192.0.2.77/32", "via", "10.253.1.1"); err != nil {
		t.Fatal(err)
	}
	cmd := n.Command(t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(foreignRules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return n, other
}

func (n *node) applyEveryRule(other *node) {
	n.t.Helper()
	n.importBusybox()
	n.apply(everyRule)
	n.waitReady("", 2)
	n.placeOf(*n.pod("a")).serve(n.t, "a", 8080)
	other.place().serve(n.t, "away", 8080)
}

// The rules of others stay as they are, to the byte; nft prints all of ours; a
// flush by somebody is healed.
func TestRulesOfOthers(t *testing.T) {
	n, other := ruleHosts(t)
	before := n.without()
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.baseline()
	n.applyEveryRule(other)
	if err := n.everyRuleAnswers(other); err != nil {
		t.Error(err)
	}
	if after := n.without(); after != before {
		t.Errorf("rules of others before\n%s\nafter\n%s", before, after)
	}
	if _, err := n.Output("nft", "flush", "ruleset"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	n.eventually("everything is back after a flush", func() error { return n.everyRuleAnswers(other) })
	t.Logf("healed and asked within %v", time.Since(began).Round(time.Millisecond))
	if after := n.without(); strings.TrimSpace(after) != "" {
		t.Errorf("rules that nobody has made: %s", after)
	}
	n.ok("delete", "--all", "-A")
}

// With firewall = print no rule is written, and what the command shows does the
// same once it is loaded.
func TestFirewallPrint(t *testing.T) {
	n, other := ruleHosts(t, "PAUSA_NETWORK_FIREWALL=print")
	before := n.without()
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.applyEveryRule(other)
	if out, err := n.Output("nft", "--stateless", "list", "ruleset"); err != nil || out != before {
		t.Errorf("rules were written: %v\n%s", err, out)
	}
	if _, err := other.place().ask("tcp", "10.253.1.1:30080"); err == nil {
		t.Error("a node port answers without rules")
	}
	text := n.ok("firewall", "--run", host.RunDir)
	for range 2 { // the second time it replaces what is there
		cmd := n.Command(t.Context(), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("load what is printed: %v: %s\n%s", err, out, numbered(text))
		}
	}
	if err := n.everyRuleAnswers(other); err != nil {
		t.Error(err)
	}
	if after := n.without(); after != before {
		t.Errorf("rules of others before\n%s\nafter\n%s", before, after)
	}
}

func numbered(text string) string {
	var b strings.Builder
	i := 0
	for line := range strings.Lines(text) {
		i++
		b.WriteString(strconv.Itoa(i) + " " + line)
	}
	return b.String()
}
