package trace

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	goruntime "runtime"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// inNamespace calls f in a network namespace of its own, which ends with it.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace of its own needs root")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("the rules of others are written by nft, which is not here")
	}
	done := make(chan error)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What others' rules say of a packet from pod 10.88.0.2 to 10.88.0.3:8080 is what the kernel would.
func TestRulesOfOthers(t *testing.T) {
	from, to := netip.MustParseAddrPort("10.88.0.2:0"), netip.MustParseAddrPort("10.88.0.3:8080")
	p := packet{src: from, dst: to, proto: unix.IPPROTO_TCP, iif: "pausa0", oif: "pausa0"}
	for _, c := range []struct {
		rules string
		want  int
		why   string
	}{
		{"policy accept;", passes, ""},
		{"policy drop;", drops, "policy drop"},
		{"policy drop; iifname \"pausa0\" accept", passes, ""},
		{"policy drop; iifname \"docker0\" accept", drops, "policy drop"},
		{"policy drop; iifname \"pausa*\" accept", passes, ""},
		{"policy drop; ct state established,related accept", drops, "policy drop"},
		{"policy drop; ct state new accept", passes, ""},
		{"ip daddr 10.88.0.3 tcp dport 8080 drop", drops, "rule handle"},
		{"ip daddr 10.88.0.3 tcp dport 8081 drop", passes, ""},
		{"ip saddr 10.88.0.0/16 reject", drops, "rule handle"},
		{"ip saddr != 10.88.0.0/16 reject", passes, ""},
		{"udp dport 8080 drop", passes, ""},
		{"tcp dport 8000-9000 drop", drops, "rule handle"},
		{"tcp dport { 22, 8080 } drop", drops, "rule handle"},
		{"tcp dport { 22, 80 } drop", passes, ""},
		{"jump inner; drop", drops, "rule handle"},
		{"ip protocol tcp goto inner; drop", passes, ""},
		{"ip protocol udp goto inner; drop", drops, "rule handle"},
		{"jump accepting; drop", passes, ""},
		{"counter log drop", drops, "rule handle"},
		{"meta skuid 1000 drop", unsure, "only the kernel knows"},
		{"meta skuid 1000 counter", passes, ""},
		{"policy drop; meta skuid 1000 accept", unsure, "only the kernel knows"},
		{"ip ttl 1 drop", unsure, "only the kernel knows"},
		{"tcp dport 8080 accept; drop", passes, ""},
	} {
		inNamespace(t, func() error {
			rules := strings.ReplaceAll(c.rules, "; ", "\n")
			text := "table ip other { chain inner { return\n}; chain accepting { accept\n}; chain theirs { type filter hook forward priority 0; " + rules + "\n}; }"
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil {
				return errors.New(string(out))
			}
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			chains, err := others(conn, to.Addr())
			if err != nil || len(chains) != 1 {
				t.Errorf("%s: %d chains, %v", c.rules, len(chains), err)
				return nil
			}
			if f := follow(conn, chains[0], p); f.verdict != c.want || !strings.Contains(f.why, c.why) {
				t.Errorf("%s: %d (%s), want %d (%s)", c.rules, f.verdict, f.why, c.want, c.why)
			}
			return nil
		})
	}
}
