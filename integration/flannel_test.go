//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pausa-run/pausa/integration/host"
)

// Flannel between three hosts, over both families: pods see each other's own
// addresses, by its tunnel and by its routes, also through a Service.
func TestFlannel(t *testing.T) {
	flanneld := filepath.Join(binaries(t), "tools", "flanneld")
	if _, err := os.Stat(flanneld); err != nil {
		t.Skipf("needs flanneld, which 'make networks' builds: %v", err)
	}
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skipf("needs etcd, which 'make networks' installs: %v", err)
	}
	for _, backend := range []string{"vxlan", "host-gw"} {
		t.Run(backend, func(t *testing.T) { testFlannel(t, flanneld, backend) })
	}
}

func testFlannel(t *testing.T, flanneld, backend string) {
	nodes := []*node{newHost(t, "one"), newHost(t, "two"), newHost(t, "three")}
	if err := host.Segment(1, nodes[0].Host, nodes[1].Host, nodes[2].Host); err != nil {
		t.Fatal(err)
	}
	const etcd = "http://10.253.1.1:2379"
	background(t, nodes[0], "etcd", "--data-dir", nodes[0].Dir+"/etcd", "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--logger", "zap", "--log-level", "error", "--unsafe-no-fsync")
	config := `{"Network":"10.40.0.0/16","EnableIPv6":true,"IPv6Network":"fd40::/48","EnableNFTables":true,"Backend":{"Type":"` + backend + `"}}`
	nodes[0].eventually("etcd has the configuration", func() error {
		return nodes[0].place().in(func() error {
			return putEtcd(strings.TrimPrefix(etcd, "http://"), "/coreos.com/network/config", config)
		})
	})
	var places []place
	var addrs [][]netip.Addr
	for _, n := range nodes {
		background(t, n, flanneld, "-etcd-endpoints", etcd, "-iface", "segment1", "-ip-masq", "-set-node-network-unavailable=false", "-healthz-ip", "127.0.0.1")
		subnet := n.flannelSubnet()
		conf := filepath.Join(n.Dir, "cni")
		// What Flannel's own CNI plugin makes of subnet.env.
		text := fmt.Sprintf(`{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"bridge","bridge":"cni0","mtu":%s,"isDefaultGateway":true,"hairpinMode":true,
			"ipam":{"type":"host-local","ranges":[[{"subnet":%q}],[{"subnet":%q}]],"dataDir":"/run/ipam"}},
			{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}]}`, subnet["FLANNEL_MTU"], masked(subnet["FLANNEL_SUBNET"]), masked(subnet["FLANNEL_IPV6_SUBNET"]))
		if err := errors.Join(os.MkdirAll(conf, 0o755), os.WriteFile(filepath.Join(conf, "10-flannel.conflist"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		n.Env = append(n.Env, "PAUSA_NETWORK_CNI_BIN_DIRS="+filepath.Join(n.Bin, "tools", "cni"))
		if _, err := n.Output("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"); err != nil {
			t.Fatal(err)
		}
		if err := n.Serve(); err != nil {
			t.Fatal(err)
		}
		n.importBusybox()
		n.apply(podOn(n.Name, "{}"))
		n.waitReady("", 1)
		at := n.placeOf(*n.pod(n.Name))
		at.serve(t, n.Name, 8080)
		places, addrs = append(places, at), append(addrs, n.addrsOf(n.Name))
	}
	ends := map[string][]netip.Addr{}
	for i, from := range places {
		ends[nodes[i].Name] = addrs[i]
		for j, to := range nodes {
			if i == j {
				continue
			}
			for _, addr := range addrs[j] { // Flannel tells the hosts of each other in its own time
				to.eventually("there is a way to "+to.Name, func() error {
					_, err := from.ask("tcp", netip.AddrPortFrom(addr, 8080).String())
					return err
				})
			}
			to.reaches(backend+", from "+nodes[i].Name, from, to.Name, addrs[j])
		}
	}
	one := nodes[0]
	for _, ip := range one.leadTo("far", map[string][]netip.Addr{"two": ends["two"], "three": ends["three"]}) {
		to := netip.AddrPortFrom(netip.MustParseAddr(ip), 80)
		one.reachAll(backend+", a Service with endpoints on other hosts", places[0], to, netip.Addr{}, "two", "three")
	}
	for _, n := range nodes {
		n.ok("delete", "--all", "-A")
	}
}

// flannelSubnet waits for the file in which flanneld says what is the host's.
func (n *node) flannelSubnet() map[string]string {
	n.t.Helper()
	out := map[string]string{}
	n.eventually("flanneld has a subnet", func() error {
		raw, err := os.ReadFile(n.Path("/run/flannel/subnet.env"))
		for line := range strings.Lines(string(raw)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			out[key] = value
		}
		if err == nil && out["FLANNEL_IPV6_SUBNET"] == "" {
			err = fmt.Errorf("it says %s", raw)
		}
		return err
	})
	return out
}

func masked(prefix string) string { return netip.MustParsePrefix(prefix).Masked().String() }

// putEtcd writes a key through etcd's JSON gateway. http.Client would connect on another thread, in another namespace.
func putEtcd(addr, key, value string) error {
	body, err := json.Marshal(map[string]string{
		"key": base64.StdEncoding.EncodeToString([]byte(key)), "value": base64.StdEncoding.EncodeToString([]byte(value)),
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+addr+"/v3/kv/put", bytes.NewReader(body))
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := req.Write(c); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd says %s", resp.Status)
	}
	return nil
}

// background runs a program on a host until the test ends; what it says is told if the test fails.
func background(t *testing.T, n *node, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := n.Command(context.Background(), args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Kill(filepath.Base(args[0]), args[1], syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("%s on host %s said:\n%s", filepath.Base(args[0]), n.Name, said.Bytes()[max(0, said.Len()-3000):])
		}
	})
}
