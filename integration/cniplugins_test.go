//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/integration/host"
)

// cniNode is a host whose daemon uses the reference plugins, and another host on its network.
type cniNode struct {
	*node
	other *node
	conf  string // the CNI directory
}

func newCNINode(t *testing.T) cniNode {
	t.Helper()
	n, other := newHost(t, "cni"), newHost(t, "other")
	plugins := filepath.Join(n.Bin, "tools", "cni")
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		t.Fatalf("%v: run 'make bin/tools/cni' first", err)
	}
	if err := host.Join(n.Host, other.Host, 1); err != nil {
		t.Fatal(err)
	}
	n.Env = append(n.Env, "PAUSA_NETWORK_CNI_BIN_DIRS="+plugins)
	c := cniNode{n, other, filepath.Join(n.Dir, "cni")}
	if err := os.MkdirAll(c.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	return c
}

// use makes a list of plugins the network of new pods, as anybody changes the file: by putting another in its place.
func (c cniNode) use(version, name string, plugins ...string) {
	c.t.Helper()
	text := fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, version, name, strings.Join(plugins, ","))
	if !json.Valid([]byte(text)) {
		c.t.Fatalf("no JSON: %s", text)
	}
	tmp := filepath.Join(c.Dir, "next")
	if err := errors.Join(os.WriteFile(tmp, []byte(text), 0o600), os.Rename(tmp, filepath.Join(c.conf, "10.conflist"))); err != nil {
		c.t.Fatal(err)
	}
}

func (c cniNode) run(args ...string) {
	c.t.Helper()
	if _, err := c.Output(args...); err != nil {
		c.t.Fatal(err)
	}
}

// pair makes two pods that reach each other over both families, and returns their places and addresses.
func (c cniNode) pair(annotations ...string) (places [2]place, addrs [2][]netip.Addr) {
	c.t.Helper()
	for i, name := range []string{"a", "b"} {
		notes := "{}"
		if i < len(annotations) {
			notes = annotations[i]
		}
		c.apply(podOn(name, notes))
		c.waitReady("app="+name, 1)
		places[i], addrs[i] = c.placeOf(*c.pod(name)), c.addrsOf(name)
		places[i].serve(c.t, name, 8080)
	}
	for _, a := range addrs[1] { // the kernel looks for duplicates of IPv6 addresses first
		c.eventually("there is a way between the pods", func() error {
			_, err := places[0].ask("tcp", netip.AddrPortFrom(a, 8080).String())
			return err
		})
	}
	c.reaches("pod to pod", places[0], "b", addrs[1])
	c.reaches("pod to pod", places[1], "a", addrs[0])
	return places, addrs
}

// end deletes the pods, and wants nothing of them in the folders of the plugins.
func (c cniNode) end(left ...string) {
	c.t.Helper()
	c.ok("delete", "--all", "-A")
	for _, pattern := range append(left, host.RunDir+"/network/attempts/*", host.RunDir+"/network/cni/results/*") {
		files, err := filepath.Glob(c.Path(pattern))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, f := range files {
			if base := filepath.Base(f); !strings.HasPrefix(base, "last_reserved") && base != "lock" {
				c.t.Errorf("left: %s", f)
			}
		}
	}
}

// hostLocal is the ipam section for both families; the addresses are kept in the host's /run.
const hostLocal = `"ipam":{"type":"host-local","dataDir":"/run/ipam","ranges":[[{"subnet":"10.30.0.0/24"}],[{"subnet":"fd30::/64"}]]}`

// The reference plugins as a daemon runs them, one network after the other by
// changing the file while the daemon runs.
func TestReferencePlugins(t *testing.T) {
	c := newCNINode(t)
	c.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for _, part := range []struct {
		name string
		test func(*testing.T, cniNode)
	}{
		{"bridge", testBridgePlugin},
		{"versions", testPluginVersions},
		{"ptp", testPtpPlugin},
		{"macvlan and static", testMacvlanPlugin},
		{"macvlan and dhcp", testDHCPPlugin},
	} {
		passed := t.Run(part.name, func(t *testing.T) {
			n, other := *c.node, *c.other
			n.t, other.t = t, t
			part.test(t, cniNode{&n, &other, c.conf})
		})
		if !passed {
			return // its pods are left, and in the way of the others
		}
	}
}

// bridge, portmap, bandwidth and tuning; firewall where there is an iptables.
func testBridgePlugin(t *testing.T, c cniNode) {
	plugins := []string{
		`{"type":"bridge","bridge":"ref0","isDefaultGateway":true,"hairpinMode":true,` + hostLocal + `,"capabilities":{"ips":true,"mac":true}}`,
		`{"type":"portmap","backend":"nftables","snat":true,"capabilities":{"portMappings":true}}`,
		`{"type":"bandwidth","capabilities":{"bandwidth":true}}`,
		`{"type":"tuning","sysctl":{"net.ipv4.conf.IFNAME.arp_announce":"2"},"capabilities":{"mac":true}}`,
	}
	if _, err := exec.LookPath("iptables"); err == nil {
		plugins = append(plugins, `{"type":"firewall","backend":"iptables"}`)
	} else {
		t.Log("without iptables here, so without the plugin firewall")
	}
	c.use("1.0.0", "ref", plugins...)
	places, addrs := c.pair(`{pausa.run/ips: "10.30.0.77", pausa.run/mac: "02:00:00:00:00:77", kubernetes.io/ingress-bandwidth: 20M}`)
	if addrs[0][0].String() != "10.30.0.77" || len(addrs[0]) != 2 {
		t.Errorf("addresses %v", addrs[0])
	}
	err := places[0].in(func() error {
		out, err := exec.Command("ip", "link", "show", "eth0").CombinedOutput()
		if err == nil && !strings.Contains(string(out), "02:00:00:00:00:77") {
			err = errors.New(string(out))
		}
		return err
	})
	if err != nil {
		t.Errorf("hardware address: %v", err)
	}
	if out, err := c.Output("tc", "qdisc", "show"); err != nil || !strings.Contains(out, "tbf") || !strings.Contains(out, "rate 20Mbit") {
		t.Errorf("no limit: %s, %v", out, err)
	}
	c.apply(strings.Replace(podOn("published", "{}"), "command:", "ports: [{containerPort: 8080, hostPort: 8081}], command:", 1))
	c.waitReady("app=published", 1)
	c.placeOf(*c.pod("published")).serve(t, "published", 8080)
	if got, err := c.other.place().ask("tcp", "10.253.1.1:8081"); err != nil || got.name != "published" {
		t.Errorf("host port: %+v, %v", got, err)
	}
	c.apply(podOn("taken", `{pausa.run/ips: "10.30.0.77"}`))
	c.eventually("the plugin's word is told", func() error {
		if out := c.ok("describe", "pod", "taken"); !strings.Contains(out, "10.30.0.77") || !strings.Contains(out, "not available") {
			return errors.New(out)
		}
		return nil
	})
	c.end("/run/ipam/ref/*")
}

// Each version of the specification, by the same plugins.
func testPluginVersions(t *testing.T, c cniNode) {
	for i, version := range []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		name := fmt.Sprintf("v%d", i)
		ipam := hostLocal
		if version < "0.3.0" { // one address of each family is all that the results could hold
			ipam = `"ipam":{"type":"host-local","dataDir":"/run/ipam","subnet":"10.30.0.0/24"}`
		}
		c.use(version, name, `{"type":"bridge","bridge":"ref0","isDefaultGateway":true,`+ipam+`}`,
			`{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}`)
		c.pair()
		c.end("/run/ipam/" + name + "/*")
	}
}

// ptp, alone and with sbr, which keeps all routes for packets that have the pod's address already.
func testPtpPlugin(t *testing.T, c cniNode) {
	ptp := `{"type":"ptp",` + strings.Replace(hostLocal, `"ranges"`, `"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"ranges"`, 1) + `}`
	c.use("1.1.0", "ptp", ptp)
	c.pair()
	c.end("/run/ipam/ptp/*")
	c.use("1.1.0", "ptp", ptp, `{"type":"sbr"}`)
	c.apply(podOn("a", "{}"))
	c.waitReady("app=a", 1)
	at := c.placeOf(*c.pod("a"))
	at.serve(t, "a", 8080)
	for _, addr := range c.addrsOf("a") { // TCP alone: a datagram from any address has no route any more
		if got, err := c.place().ask("tcp", netip.AddrPortFrom(addr, 8080).String()); err != nil || got.name != "a" {
			t.Errorf("host to pod at %s: %+v, %v", addr, got, err)
		}
	}
	err := at.in(func() error {
		out, err := exec.Command("ip", "rule").CombinedOutput()
		if err == nil && !strings.Contains(string(out), "from 10.30.0.") {
			err = fmt.Errorf("no rule of sbr: %s", out)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	c.end("/run/ipam/ptp/*")
}

// macvlan on the cable, with addresses by annotation alone.
func testMacvlanPlugin(t *testing.T, c cniNode) {
	c.use("1.0.0", "mac", `{"type":"macvlan","master":"cable1","mode":"bridge","ipam":{"type":"static"},"capabilities":{"ips":true,"mac":true}}`)
	places, addrs := c.pair(`{pausa.run/ips: "10.253.1.50/24,fd53:1::50/64", pausa.run/mac: "02:00:00:00:00:50"}`, `{pausa.run/ips: "10.253.1.51/24,fd53:1::51/64"}`)
	c.reaches("another host to pod", c.other.place(), "a", addrs[0])
	c.other.place().serve(t, "other", 8080)
	c.reaches("pod to another host", places[1], "other", []netip.Addr{netip.MustParseAddr("10.253.1.2"), netip.MustParseAddr("fd53:1::2")})
	c.end()
}

// macvlan on the cable, with addresses of a DHCP server on the other host.
func testDHCPPlugin(t *testing.T, c cniNode) {
	conf := filepath.Join(c.other.Dir, "udhcpd.conf")
	text := "start 10.253.1.100\nend 10.253.1.120\ninterface cable1\nlease_file " + c.other.Dir + "/leases\noption subnet 255.255.255.0\noption lease 3600\n"
	if err := errors.Join(os.WriteFile(conf, []byte(text), 0o600), os.WriteFile(c.other.Dir+"/leases", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	background(t, c.other, "busybox", "udhcpd", "-f", "-S", conf)
	background(t, c.node, filepath.Join(c.Bin, "tools", "cni", "dhcp"), "daemon", "-socketpath", "/run/cni/dhcp.sock")
	c.eventually("the plugin dhcp listens", func() error {
		_, err := os.Stat(c.Path("/run/cni/dhcp.sock"))
		return err
	})
	c.use("1.0.0", "dhcp", `{"type":"macvlan","master":"cable1","ipam":{"type":"dhcp"}}`)
	_, addrs := c.pair()
	if !strings.HasPrefix(addrs[0][0].String(), "10.253.1.1") || len(addrs[0]) != 1 {
		t.Errorf("addresses %v", addrs[0])
	}
	c.reaches("another host to pod", c.other.place(), "b", addrs[1])
	c.end()
}

// ipvlan, vlan, vrf and dummy, which need a kernel that has them.
func TestReferencePluginsOfOtherKernels(t *testing.T) {
	c := newCNINode(t)
	for _, kind := range []string{"ipvlan", "vlan", "dummy", "vrf"} {
		args := []string{"ip", "link", "add", "try0"}
		if kind == "ipvlan" || kind == "vlan" {
			args = append(args, "link", "cable1")
		}
		args = append(args, "type", kind)
		switch kind {
		case "vlan":
			args = append(args, "id", "7")
		case "vrf":
			args = append(args, "table", "77")
		}
		if _, err := c.Output(args...); err != nil {
			t.Skipf("this kernel has no %s; make networks runs this in a VM: %v", kind, err)
		}
		c.run("ip", "link", "del", "try0")
	}
	ips := func(i int) string { return fmt.Sprintf(`{pausa.run/ips: "10.253.1.%d/24,fd53:1::%[1]d/64"}`, i) }
	static := `"ipam":{"type":"static"},"capabilities":{"ips":true}`
	c.use("1.0.0", "ipvlan", `{"type":"ipvlan","master":"cable1",`+static+`}`)
	_, addrs := c.pair(ips(60), ips(61))
	c.reaches("another host to pod", c.other.place(), "a", addrs[0])
	c.end()

	for i, n := range []*node{c.node, c.other} {
		for _, args := range [][]string{
			{"ip", "link", "add", "link", "cable1", "name", "tagged", "type", "vlan", "id", "7"},
			{"ip", "addr", "add", fmt.Sprintf("10.60.0.%d/24", i+1), "dev", "tagged"},
			{"ip", "link", "set", "tagged", "up"},
		} {
			if i == 0 {
				continue // the plugin makes its own
			}
			if _, err := n.Output(args...); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.use("1.0.0", "vlan", `{"type":"vlan","master":"cable1","vlanId":7,"linkInContainer":false,`+static+`}`)
	c.apply(podOn("a", `{pausa.run/ips: "10.60.0.60/24"}`))
	c.waitReady("app=a", 1)
	c.placeOf(*c.pod("a")).serve(t, "a", 8080)
	c.reaches("another host to pod with a VLAN", c.other.place(), "a", c.addrsOf("a"))
	c.end()

	c.use("1.0.0", "dummy", `{"type":"dummy",`+static+`}`)
	c.apply(podOn("a", `{pausa.run/ips: "10.61.0.60/24"}`))
	c.waitReady("app=a", 1)
	if got := fmt.Sprint(c.addrsOf("a")); got != "[10.61.0.60]" {
		t.Errorf("dummy: %s", got)
	}
	c.end()

	c.use("1.0.0", "vrf", `{"type":"bridge","bridge":"ref0","isGateway":true,`+hostLocal+`}`, `{"type":"vrf","vrfname":"red"}`)
	c.apply(podOn("a", "{}"))
	c.waitReady("app=a", 1)
	err := c.placeOf(*c.pod("a")).in(func() error {
		out, err := exec.Command("ip", "link", "show", "eth0").CombinedOutput()
		if err == nil && !strings.Contains(string(out), "master red") {
			err = errors.New(string(out))
		}
		return err
	})
	if err != nil {
		t.Errorf("vrf: %v", err)
	}
	c.end("/run/ipam/vrf/*")
}

// The network's condition follows the folder: within a second, and by name of the file that is wrong.
func TestNetworkConditionFollowsTheFolder(t *testing.T) {
	c := newCNINode(t)
	conn, err := c.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ready := func(want bool, word string) {
		t.Helper()
		got, message, err := networkCondition(conn)
		if err != nil || got != want || !strings.Contains(message, word) {
			t.Errorf("ready %v, %q, %v; want %v, %q", got, message, err, want, word)
		}
	}
	ready(true, "") // the built-in network
	c.use("1.0.0", "ref", `{"type":"absent"}`)
	ready(false, "find plugin absent")
	bad := filepath.Join(c.conf, "05-bad.conflist")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.use("1.0.0", "ref", `{"type":"bridge",`+hostLocal+`}`)
	ready(true, "")
	c.eventually("the bad file is named in the log", func() error {
		if raw := c.LogTail(); !strings.Contains(raw, "05-bad.conflist") {
			return errors.New(raw)
		}
		return nil
	})
	if err := os.Remove(filepath.Join(c.conf, "10.conflist")); err != nil {
		t.Fatal(err)
	}
	ready(false, "05-bad.conflist")
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	ready(true, "")
}

// networkCondition is NetworkReady as a kubelet sees it.
func networkCondition(conn *grpc.ClientConn) (ready bool, message string, err error) {
	st, err := criv1.NewRuntimeServiceClient(conn).Status(context.Background(), &criv1.StatusRequest{})
	for _, c := range st.GetStatus().GetConditions() {
		if c.Type == criv1.NetworkReady {
			return c.Status, c.Message, err
		}
	}
	return false, "", errors.Join(err, errors.New("there is no such condition"))
}
