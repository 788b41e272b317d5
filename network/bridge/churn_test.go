package bridge

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

var (
	churnPods = flag.Int("churn", 150, "pods that TestChurn makes; make networks makes 10,000")
	churnSeed = flag.Uint64("churn.seed", uint64(time.Now().UnixNano()), "what TestChurn does when")
)

// churn is pods that come and go on one small range.
type churn struct {
	t    *testing.T
	p    *Plugin
	host *hosttest.Host
	exe  string // the plugin as a program
	conf []byte

	mu     sync.Mutex // guards what follows
	made   int
	killed int
	refuse int
	live   map[netip.Addr]string
}

// TestChurn leads pods through a /28, several at a time; some are refused, some
// of the plugin's processes are killed at any moment. No address is given twice,
// and at the end none is lost.
func TestChurn(t *testing.T) {
	h := hosttest.New(t)
	dir, bin := t.TempDir(), t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, Type)); err != nil {
		t.Fatal(err)
	}
	c := &churn{t: t, p: newPlugin(t, h), host: h, exe: filepath.Join(bin, Type), conf: confOf(dir, "1.1.0", ""), live: map[netip.Addr]string{}}
	if _, err := c.p.Run(t.Context(), request("STATUS", "", h, c.conf)); err != nil {
		t.Fatal(err)
	}
	h.Serve("listener", "tcp", netip.MustParseAddrPort("0.0.0.0:80")) // what refused pods want
	before := state(t, h, c.p, dir)
	start := time.Now()
	var workers sync.WaitGroup
	for w := range 4 {
		pod := hosttest.New(t)
		random := rand.New(rand.NewPCG(*churnSeed, uint64(w)))
		workers.Go(func() {
			for c.next() && !t.Failed() {
				c.pod(pod, fmt.Sprintf("%d-%08x", w, random.Uint32()), random)
			}
		})
	}
	workers.Wait()
	t.Logf("seed %d: %d pods in %s; %d processes killed, %d pods refused", *churnSeed, *churnPods, time.Since(start).Round(time.Second), c.killed, c.refuse)
	// Half-written records of killed processes are for GC; everything else goes by DEL.
	halves := regexp.MustCompile(`(?m)^file .*/\.tmp-.*\n`)
	if after := halves.ReplaceAllString(state(t, h, c.p, dir), ""); after != before {
		t.Errorf("left\n%s\nwas\n%s", after, before)
	}
	if _, err := c.p.Run(t.Context(), request("GC", "", h, c.conf)); err != nil {
		t.Error(err)
	}
	if after := state(t, h, c.p, dir); after != before {
		t.Errorf("left after GC\n%s\nwas\n%s", after, before)
	}
	for i := range usable(netip.MustParsePrefix("10.5.0.0/28")) {
		if _, err := c.p.Run(t.Context(), request("ADD", fmt.Sprint("last", i), hosttest.New(t), c.conf)); err != nil {
			t.Fatalf("an address was lost: %v", err)
		}
	}
}

func (c *churn) next() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made++
	return c.made <= *churnPods
}

// pod lets one pod live.
func (c *churn) pod(ns *hosttest.Host, id string, random *rand.Rand) {
	switch dice := random.IntN(100); {
	case dice < 4:
		c.kill("ADD", ns, id, random)
	case dice < 8:
		conf := bytes.Replace(c.conf, []byte(`"cniVersion"`), []byte(`"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":1,"protocol":"tcp"}]},"cniVersion"`), 1)
		if _, err := c.p.Run(c.t.Context(), churnRequest("ADD", id, ns, conf)); err == nil {
			c.t.Errorf("%s got a port that is taken", id)
		}
		c.count(&c.refuse)
	default:
		out, err := c.p.Run(c.t.Context(), churnRequest("ADD", id, ns, c.conf))
		if err != nil {
			c.t.Errorf("ADD %s: %v", id, err)
			return
		}
		addrs := c.hold(id, out)
		if random.IntN(25) == 0 {
			if _, err := c.p.Run(c.t.Context(), churnRequest("CHECK", id, ns, c.conf)); err != nil {
				c.t.Errorf("CHECK %s: %v", id, err)
			}
		}
		c.letGo(addrs)
		if random.IntN(25) == 0 {
			c.kill("DEL", ns, id, random)
		}
	}
	// As a runtime does after each end and each failure.
	if _, err := c.p.Run(c.t.Context(), churnRequest("DEL", id, ns, c.conf)); err != nil {
		c.t.Errorf("DEL %s: %v", id, err)
	}
}

// churnRequest has an interface of its own for each pod: the namespaces are used again before an
// earlier one's link is gone.
func churnRequest(command, id string, ns *hosttest.Host, conf []byte) Request {
	r := request(command, id, ns, conf)
	r.IfName = "e" + id
	return r
}

// kill runs the plugin as a process and ends it at any moment.
func (c *churn) kill(command string, ns *hosttest.Host, id string, random *rand.Rand) {
	cmd := exec.Command(c.exe)
	cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + ns.NetNS(), "CNI_IFNAME=e" + id}
	cmd.Stdin = bytes.NewReader(c.conf)
	if err := c.host.Do(cmd.Start); err != nil {
		c.t.Error(err)
		return
	}
	time.Sleep(time.Duration(random.IntN(30_000)) * time.Microsecond)
	_ = cmd.Process.Kill() // it may have been faster
	_ = cmd.Wait()
	c.count(&c.killed)
}

func (c *churn) count(n *int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*n++
}

func (c *churn) hold(id string, result []byte) []netip.Addr {
	var r types100.Result
	if err := json.Unmarshal(result, &r); err != nil || len(r.IPs) != 2 {
		c.t.Errorf("result of %s: %s, %v", id, result, err)
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var addrs []netip.Addr
	for _, ip := range r.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		if other := c.live[a.Unmap()]; other != "" {
			c.t.Errorf("%s of %s is given to %s too", a, other, id)
		}
		c.live[a.Unmap()] = id
		addrs = append(addrs, a.Unmap())
	}
	return addrs
}

func (c *churn) letGo(addrs []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range addrs {
		delete(c.live, a)
	}
}
