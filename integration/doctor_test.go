//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// check is one line of `pausa doctor -o json`.
type check struct{ Check, Verdict, What, Cure string }

// doctor runs the checks with the settings of the host's daemon.
func (n *node) doctor() (checks []check, code int) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := n.CLICommand(ctx, "doctor", "--state", n.StateDir, "-o", "json")
	cmd.Env = append(append(os.Environ(), "PAUSA_CGROUP_PARENT="+n.CgroupParent), n.Env...)
	out, err := cmd.Output()
	if json.Unmarshal(out, &checks) != nil {
		n.t.Fatalf("pausa doctor: %v\n%s", err, out)
	}
	return checks, cmd.ProcessState.ExitCode()
}

// finding is what the first check of a name and a verdict found, "" if there is none.
func finding(checks []check, name, verdict string) string {
	for _, c := range checks {
		if c.Check == name && c.Verdict == verdict {
			return c.What + "; cure: " + c.Cure
		}
	}
	return ""
}

// Each thing is broken, the doctor names it, and is content after the cure.
func TestDoctor(t *testing.T) {
	n := newNode(t, "doctor")
	n.apply(web)
	n.waitReady("app=web", 2)
	healthy, code := n.doctor()
	for _, c := range healthy {
		if c.Verdict == "fail" || c.Verdict == "warn" && c.Check != "capabilities" && c.Check != "upstream" {
			t.Errorf("on a healthy host: %+v", c)
		}
	}
	if code != 0 {
		t.Errorf("on a healthy host the exit status is %d", code)
	}
	cni := filepath.Join(n.Dir, "cni")
	const id = "feedfeedfeedfeedfeedfeedfeedfeedfeedfeedfeedfeedfeedfeedfeedfeed"
	veth := n.sh(`ip -o link show master pausa0 | head -1 | sed 's/^[0-9]*: \(.\{6\}\).*/\1/'`)
	veth = strings.TrimSpace(veth)
	for _, c := range []struct {
		broken, mend   string // commands
		check, verdict string
		want           []string
	}{
		{"nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'", "nft delete table ip filter", "firewall", "fail", []string{"chain ip filter FORWARD drops", `iifname "pausa0" accept`}},
		{"nft 'table ip other { chain theirs { type filter hook output priority 0; udp dport 53 drop; }; }'", "nft delete table ip other", "names", "fail", []string{"10.96.0.10 does not answer", "pausa trace host 10.96.0.10:53/UDP"}},
		{"mkdir -p " + cni + "; echo '{' > " + cni + "/1.conf", "rm " + cni + "/1.conf", "network", "fail", []string{cni + "/1.conf: decode"}},
		{"echo '" + `{"cniVersion":"1.0.0","name":"x","type":"absent"}` + "' > " + cni + "/1.conf", "rm " + cni + "/1.conf", "network", "warn", []string{"plugin absent is in none of"}},
		{"mkdir -p /run/pausa/bad/x", "rmdir /run/pausa/bad/x /run/pausa/bad", "files", "warn", []string{"/run/pausa/bad/x"}},
		{"mkdir -p " + n.StateDir + "/objects/bad; touch " + n.StateDir + "/objects/bad/x", "rm -r " + n.StateDir + "/objects/bad", "files", "warn", []string{"/objects/bad/x"}},
		{"mkdir /run/pausa/pods/x; echo nonsense > /run/pausa/pods/x/pod.json", "rm -r /run/pausa/pods/x", "files", "fail", []string{"/run/pausa/pods/x/pod.json"}},
		{"mkdir " + n.StateDir + "/images/content/blobs/sha256/" + id + "; touch " + n.StateDir + "/images/content/blobs/sha256/" + id + "/x", "rm -r " + n.StateDir + "/images/content/blobs/sha256/" + id, "images", "warn", []string{"belong to no image"}},
		{"touch /run/pausa/network/netns/" + id, "rm /run/pausa/network/netns/" + id, "leaks", "warn", []string{"network namespace /run/pausa/network/netns/" + id}},
		{"ln -s " + id + ":eth0 /run/pausa/network/ipam/pausa/addresses/10.88.9.9", "rm /run/pausa/network/ipam/pausa/addresses/10.88.9.9", "leaks", "warn", []string{"address 10.88.9.9 of " + id}},
		{"ip link add " + veth + "ab type veth peer name left", "ip link del left", "leaks", "warn", []string{"link " + veth + "ab"}},
		{"mkdir /run/pausa/images/rootfs/" + id + "; mount -t tmpfs x /run/pausa/images/rootfs/" + id, "umount /run/pausa/images/rootfs/" + id + "; rmdir /run/pausa/images/rootfs/" + id, "leaks", "warn", []string{"mount /run/pausa/images/rootfs/" + id}},
		{"mkdir " + n.cgroup() + "/pod" + id, "rmdir " + n.cgroup() + "/pod" + id, "leaks", "warn", []string{"cgroup ", "/pod" + id}},
	} {
		n.sh(c.broken)
		checks, code := n.doctor()
		n.sh(c.mend)
		got := finding(checks, c.check, c.verdict)
		for _, w := range c.want {
			if !strings.Contains(got, w) {
				t.Errorf("after %q check %s says %q, without %q", c.broken, c.check, got, w)
			}
		}
		if (code == 1) != (c.verdict == "fail") {
			t.Errorf("after %q the exit status is %d", c.broken, code)
		}
	}
	after, _ := n.doctor()
	for _, c := range after {
		if c.Verdict == "fail" || c.Verdict == "warn" && c.Check != "capabilities" && c.Check != "upstream" {
			t.Errorf("after all was mended: %+v", c)
		}
	}
	// It works without the daemon, and sees what that would have mended.
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.sh("sysctl -qw net.ipv4.ip_forward=0")
	checks, code := n.doctor()
	if code != 1 || !strings.Contains(finding(checks, "daemon", "fail"), "the daemon is not running") || !strings.Contains(finding(checks, "settings", "fail"), `net.ipv4.ip_forward is "0"`) ||
		finding(checks, "keeper", "ok") == "" || finding(checks, "leaks", "ok") == "" {
		t.Errorf("without the daemon: exit status %d, %+v", code, checks)
	}
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
}

// cgroup is the host's parent group in one hierarchy.
func (n *node) cgroup() string {
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if _, err := os.Stat(root + n.CgroupParent); err == nil {
			return root + n.CgroupParent
		}
	}
	n.t.Fatal("the host has no cgroup")
	return ""
}
