package network

import (
	"strings"
	"testing"
)

// TestForeignForwardPolicy is a host with docker: its chain drops what is forwarded.
func TestForeignForwardPolicy(t *testing.T) {
	h, other, m := twoHosts(t)
	a, _ := newPod(t, m, "aaaa")
	other.Serve("other", "tcp", ap("[::]:7000"))
	if found, err := m.Blockers(); len(found) != 0 || err != nil {
		t.Errorf("without one: %v, %v", found, err)
	}
	run := func(script string) {
		t.Helper()
		if out, err := h.Run("sh", "-ec", script); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	run(`nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }
		add rule ip filter FORWARD iifname "pausa0" tcp dport 1 accept; add rule ip filter FORWARD oifname "docker0" accept'`)
	wantNoAnswer(t, a, "tcp", ap("192.0.2.2:7000"))
	found, err := m.Blockers()
	if err != nil || len(found) != 1 || !strings.HasPrefix(found[0], "chain ip filter FORWARD drops") {
		t.Fatalf("found %v, %v", found, err)
	}
	_, cure, _ := strings.Cut(found[0], "run ")
	run(cure)
	wantCall(t, a, "tcp", ap("192.0.2.2:7000"), "other 192.0.2.1")
	if found, err := m.Blockers(); len(found) != 0 || err != nil {
		t.Errorf("cured: %v, %v", found, err)
	}
	run("nft delete table ip filter")
	detach(t, m, "aaaa")
}

// TestCureInTheirWords: each firewall is told by its rules, and its exceptions are seen.
func TestCureInTheirWords(t *testing.T) {
	h, _, m := twoHosts(t)
	nft := func(script string) {
		t.Helper()
		if out, err := h.Run("nft", script); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	for table, theirs := range map[string]struct{ rules, cure, cured string }{
		"inet firewalld": {
			`add chain inet firewalld trusted; add rule inet firewalld trusted accept; add chain inet firewalld zones
			add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }
			add rule inet firewalld filter_FORWARD ct status dnat accept; add rule inet firewalld filter_FORWARD jump zones
			add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited`,
			"firewall-cmd --permanent --zone=trusted --add-interface=pausa0 && firewall-cmd --reload",
			`add rule inet firewalld zones iifname "pausa0" goto trusted`,
		},
		"ip6 filter": {
			`add chain ip6 filter DOCKER-USER; add chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }
			add rule ip6 filter FORWARD counter jump DOCKER-USER`,
			"ip6tables -I DOCKER-USER -i pausa0 -j ACCEPT && ip6tables -I DOCKER-USER -o pausa0 -j ACCEPT",
			`add rule ip6 filter DOCKER-USER iifname "pausa0" counter accept; add rule ip6 filter DOCKER-USER oifname "pausa0" counter accept`,
		},
		"ip filter": { // beside docker's
			`add chain ip filter DOCKER-USER; add chain ip filter ufw-user-forward; add chain ip filter ufw-before-forward
			add rule ip filter ufw-before-forward jump ufw-user-forward; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }
			add rule ip filter FORWARD jump DOCKER-USER; add rule ip filter FORWARD jump ufw-before-forward`,
			"ufw allow in on pausa0 && ufw route allow in on pausa0 && ufw route allow out on pausa0",
			`add rule ip filter ufw-user-forward iifname "pausa0" accept; add rule ip filter ufw-user-forward oifname "pausa0" accept`,
		},
	} {
		nft("add table " + table + "; " + theirs.rules)
		found, err := m.Blockers()
		if err != nil || len(found) != 1 || !strings.HasSuffix(found[0], ": run "+theirs.cure) {
			t.Errorf("found %v, %v, want %s", found, err, theirs.cure)
		}
		nft(theirs.cured)
		if found, err := m.Blockers(); len(found) != 0 || err != nil {
			t.Errorf("after %s: %v, %v", theirs.cured, found, err)
		}
		nft("delete table " + table)
	}
}
