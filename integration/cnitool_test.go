//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cnitypes "github.com/containernetworking/cni/pkg/types/100"
)

// The built-in plugin also works for others: cnitool runs the binary as it runs any plugin.
func TestCnitool(t *testing.T) {
	n := newHost(t, "cni")
	tool := filepath.Join(n.Bin, "tools", "cnitool")
	if _, err := os.Stat(tool); err != nil {
		t.Fatalf("%v: run 'make bin/tools/cnitool' first", err)
	}
	for dir, file := range map[string]string{"net.d/10-test.conflist": `{"cniVersion": "1.0.0", "name": "test", "plugins": [
		{"type": "pausa", "bridge": "test0", "ranges": ["10.77.0.0/24", "fd77::/64"], "dataDir": "/run/cni-test"}]}`} {
		path := filepath.Join(n.Dir, dir)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cni := func(verb, ns string) (string, error) {
		return n.Output("env", "CNI_PATH="+n.Bin, "NETCONFPATH="+n.Dir+"/net.d", tool, verb, "test", "/run/netns/"+ns)
	}
	base, err := n.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	addrs := map[string]string{}
	for _, ns := range []string{"one", "two"} {
		if _, err := n.Output("ip", "netns", "add", ns); err != nil {
			t.Fatal(err)
		}
		out, err := cni("add", ns)
		if err != nil {
			t.Fatal(err)
		}
		var res cnitypes.Result
		if err := json.Unmarshal([]byte(out), &res); err != nil || len(res.IPs) != 2 {
			t.Fatalf("result %s: %v", out, err)
		}
		addrs[ns] = res.IPs[0].Address.IP.String()
		if out, err := cni("check", ns); err != nil {
			t.Errorf("check: %v %s", err, out)
		}
		if out, err := cni("status", ns); err != nil {
			t.Errorf("status: %v %s", err, out)
		}
	}
	if _, err := n.Output("nsenter", "--net=/run/netns/one", "busybox", "ping", "-c", "1", "-W", "5", addrs["two"]); err != nil {
		t.Error(err)
	}
	for _, ns := range []string{"one", "two", "two"} { // DEL may come twice
		if _, err := cni("del", ns); err != nil {
			t.Errorf("del %s: %v", ns, err)
		}
	}
	if _, err := cni("check", "one"); err == nil {
		t.Error("check finds the network that was deleted")
	}
	for _, ns := range []string{"one", "two"} {
		if _, err := n.Output("ip", "netns", "del", ns); err != nil {
			t.Error(err)
		}
	}
	left, err := n.Leaks(base, 10*time.Second, func(l string) bool {
		return infrastructure(strings.ReplaceAll(l, "test0", "pausa0")) || l == "mount /run/netns"
	})
	if err != nil || len(left) != 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	records, err := filepath.Glob(n.Path("/run/cni-test") + "/*/10.*")
	if err != nil || len(records) != 0 {
		t.Errorf("addresses that are still taken: %v, %v", records, err)
	}
}
