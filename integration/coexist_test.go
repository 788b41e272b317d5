//go:build integration

package integration

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pausa-run/pausa/integration/host"
)

// neighbour is a firewall of somebody else's on the same host.
type neighbour struct {
	name          string
	start, reload string   // commands
	cures         []string // parts of the commands that doctor names: one check each
	first         bool     // starts before us
}

// neighbours are what people run beside Pausa. Each starts as its package comes;
// ufw leaves the kernel's settings alone, which are the host's.
func neighbours() []neighbour {
	const docker = "dockerd --data-root $DIR/docker --exec-root /run/docker -p /run/docker.pid -H unix:///run/docker.sock --storage-driver vfs >>$DIR/docker.log 2>&1 & " +
		"for i in $(seq 600); do docker version >/dev/null 2>&1 && exit; sleep .1; done; tail $DIR/docker.log; exit 1"
	// A bus of its own for firewalld, whose user the package's installation makes.
	const firewalld = "echo messagebus:x:65001:65001::/:/bin/false >>/etc/passwd; mkdir -p /run/dbus; dbus-daemon --system --fork; firewalld --nofork --nopid >>$DIR/firewalld.log 2>&1 & " +
		"for i in $(seq 600); do firewall-cmd --state 2>/dev/null && exit; sleep .1; done; tail $DIR/firewalld.log; exit 1"
	const again = "kill $(cat /run/docker.pid); while test -e /run/docker.pid; do sleep .1; done; " + docker
	return []neighbour{
		{
			name: "ufw", start: "sed -i 's/^IPT_SYSCTL=.*/IPT_SYSCTL=/' /etc/default/ufw; ufw --force enable", reload: "ufw reload",
			cures: []string{"ufw allow in on pausa0 && ufw route allow in on pausa0"},
		},
		{
			name: "docker", start: docker, reload: again,
		},
		{
			name: "docker first", start: docker, reload: again, first: true,
			cures: []string{"iptables -I DOCKER-USER -i pausa0 -j ACCEPT && iptables -I DOCKER-USER -o pausa0 -j ACCEPT"},
		},
		{
			name: "firewalld", start: firewalld, reload: "firewall-cmd --reload",
			cures: []string{"firewall-cmd --permanent --zone=trusted --add-interface=pausa0 && firewall-cmd --reload"},
		},
	}
}

// lay puts the programs of bin/tools/firewalls over /usr and /etc of the host, whose mounts are its own.
func (n *node) lay(programs string) {
	n.t.Helper()
	n.sh(fmt.Sprintf("mkdir -p %[1]s/etc %[1]s/work; mount -t overlay -o lowerdir=%[2]s/usr:/usr overlay /usr; mount -t overlay -o lowerdir=%[2]s/etc:/etc,upperdir=%[1]s/etc,workdir=%[1]s/work overlay /etc",
		n.Dir, programs))
}

// everythingAnswers asks the Services from everywhere, their names from a pod, and from
// another pod that one and another host.
func (n *node) everythingAnswers(other *node) error {
	errs := []error{n.everyRuleAnswers(other)}
	out, _, _ := n.CLI("", "exec", "a", "--", "timeout", "2", "nslookup", "one.default.svc.cluster.local", "10.96.0.10")
	if !strings.Contains(out, n.service("one").Spec.ClusterIP) {
		errs = append(errs, fmt.Errorf("a pod asks for a name: %s", out))
	}
	b := n.placeOf(*n.pod("b"))
	for _, ip := range append(n.service("one").Spec.ClusterIPs, n.service("away").Spec.ClusterIPs...) {
		_, err := b.ask("tcp", net.JoinHostPort(ip, "80"))
		errs = append(errs, err)
	}
	for _, ip := range append(n.addrsOf("a"), netip.MustParseAddr("10.253.1.2"), netip.MustParseAddr("fd53:1::2")) {
		to := netip.AddrPortFrom(ip, 8080).String()
		_, err := b.ask("tcp", to)
		_, fromHost := n.place().ask("tcp", to)
		errs = append(errs, err, fromHost)
	}
	return errors.Join(errs...)
}

// Beside firewalls of others all works, or doctor names the command that makes
// it work; their rules stay as they are, and ours are back when they reload theirs.
func TestNeighbours(t *testing.T) {
	programs, err := filepath.Abs("../bin/tools/firewalls")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(programs); err != nil {
		t.Skip("needs the firewalls: make bin/tools/firewalls")
	}
	for _, f := range neighbours() {
		t.Run(f.name, func(t *testing.T) {
			n, other := newHost(t, "beside"), newHost(t, "outside")
			if err := host.Join(n.Host, other.Host, 1); err != nil {
				t.Fatal(err)
			}
			if _, err := other.Output("ip", "route", "add", "192.0.2.77/32", "via", "10.253.1.1"); err != nil {
				t.Fatal(err)
			}
			n.lay(programs)
			run := func(line string) { t.Helper(); t.Logf("%s: %s", line, n.sh("DIR="+n.Dir+"; "+line)) }
			if f.first {
				run(f.start)
			}
			if err := n.Serve(); err != nil {
				t.Fatal(err)
			}
			n.applyEveryRule(other)
			if !f.first {
				if err := n.everythingAnswers(other); err != nil {
					t.Fatal(err)
				}
				run(f.start)
			}
			if len(f.cures) > 0 && n.everythingAnswers(other) == nil {
				t.Errorf("beside %s all answers without a cure", f.name)
			}
			checks, _ := n.doctor()
			var said []string
			for _, c := range checks {
				if c.Check == "firewall" && c.Verdict == "fail" {
					said = append(said, c.Cure)
					run(c.Cure)
				}
			}
			for _, want := range f.cures {
				if !strings.Contains(strings.Join(said, "\n"), want) {
					t.Errorf("doctor's cures are %q, without %q", said, want)
				}
			}
			n.eventually("after doctor's cure all answers", func() error { return n.everythingAnswers(other) })
			if left := finding(n.checks(), "firewall", "fail"); left != "" {
				t.Errorf("after the cure doctor says %s", left)
			}
			before := n.without()
			if err := errors.Join(n.KillDaemon(syscall.SIGTERM), n.Serve()); err != nil {
				t.Fatal(err)
			}
			n.apply(shellPod("more", "sleep 1000"))
			n.waitReady("app=more", 1)
			n.ok("delete", "pod", "more")
			if after := n.without(); after != before {
				t.Errorf("rules of %s before\n%s\nafter\n%s", f.name, before, after)
			}
			run(f.reload)
			n.eventually("after a reload all answers", func() error { return n.everythingAnswers(other) })
			n.ok("delete", "--all", "-A")
		})
	}
}

func (n *node) checks() []check {
	n.t.Helper()
	checks, _ := n.doctor()
	return checks
}
