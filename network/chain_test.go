package network

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

// The reference plugins, built from their module: bridge with host-local, portmap by nftables.
func TestReferencePlugins(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the reference plugins")
	}
	bin, dir := t.TempDir(), t.TempDir()
	// In their own module, for the sums of what they need; from the module cache, there is no network here.
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/containernetworking/plugins").Output()
	if err != nil {
		t.Skipf("the reference plugins' module is not here: %v", err)
	}
	build := exec.Command("go", "build", "-o", bin, "./plugins/main/bridge", "./plugins/ipam/host-local", "./plugins/meta/portmap")
	build.Dir, build.Env = strings.TrimSpace(string(module)), append(os.Environ(), "GOPROXY=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("the reference plugins cannot be built here: %v: %s", err, out)
	}
	must0(t, os.WriteFile(filepath.Join(dir, "10-ref.conflist"), []byte(`{"cniVersion":"1.0.0","name":"ref","plugins":[
		{"type":"bridge","bridge":"ref0","isDefaultGateway":true,"ipam":{"type":"host-local","dataDir":"`+t.TempDir()+`",
			"ranges":[[{"subnet":"10.30.0.0/24"}],[{"subnet":"fd30::/64"}]]}},
		{"type":"portmap","backend":"nftables","snat":true,"capabilities":{"portMappings":true}}]}`), 0o600))
	h, other := hosttest.New(t), hosttest.New(t)
	hosttest.Link(t, h, "uplink", []string{"192.0.2.1/24"}, other, "uplink", []string{"192.0.2.2/24"})
	other.Route("10.30.0.0/24", "192.0.2.1")
	m := newManager(t, h, func(o *Options) { o.ConfDir, o.BinDirs = dir, []string{bin} })
	must0(t, m.Status(t.Context()))
	p, r := newPod(t, m, "aaaa", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	if len(r.IPs) != 2 || r.Network != "ref" || r.MAC == "" {
		t.Errorf("result %+v", r)
	}
	p.Serve("pod", "tcp", ap("[::]:80"))
	must0(t, h.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	got, err := other.Call("tcp", ap("192.0.2.1:8080"))
	for range 4 { // the bridge's port needs a moment
		if err != nil {
			got, err = other.Call("tcp", ap("192.0.2.1:8080"))
		}
	}
	if err != nil || !strings.HasPrefix(got, "pod ") {
		t.Errorf("host port: %q, %v", got, err)
	}
	must0(t, m.Check(t.Context(), "aaaa"))
	detach(t, m, "aaaa")
	detach(t, m, "aaaa")
	if left, _ := filepath.Glob(m.path("attempts/*")); len(left) > 0 {
		t.Errorf("attempts are left: %v", left)
	}
}
