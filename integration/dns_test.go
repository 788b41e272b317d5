//go:build integration

package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/internal/thread"
)

// named is a headless Service of one pod with a name, and a name for elsewhere.
const named = `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {type: ExternalName, externalName: outside.example}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, labels: {app: db}}
spec:
  hostname: first
  subdomain: db
  terminationGracePeriodSeconds: 1
  containers:
  - name: front
    image: localhost/busybox:latest
    command: [sh, -c, "mkdir /www; echo db > /www/index.html; exec httpd -f -p 8080 -h /www"]
---
apiVersion: v1
kind: Pod
metadata: {name: outer, namespace: default}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 1
  containers: [{name: front, image: "localhost/busybox:latest", command: [sleep, "1000"]}]
`

// lookup is what a pod finds for a name, sorted, "" for nothing.
func (n *node) lookup(pod, name string) string {
	out, _, _ := n.CLI("", "exec", pod, "-c", "front", "--", "timeout", "6", "nslookup", name)
	var found []string
	for line := range strings.Lines(out) {
		if a, ok := strings.CutPrefix(line, "Address: "); ok {
			found = append(found, strings.TrimSpace(a))
		}
	}
	slices.Sort(found)
	return strings.Join(found, " ")
}

// inside calls f on a thread in the host's network namespace.
func (n *node) inside(f func() error) error {
	return thread.InNetNSAt(fmt.Sprintf("/proc/%d/ns/net", n.Pid()), f)
}

// upstream is a name server of the test's, on all IPv4 addresses of the host, as
// some have one: it knows one name.
func (n *node) upstream() {
	n.t.Helper()
	var conn net.PacketConn
	err := n.inside(func() (err error) {
		conn, err = new(net.ListenConfig).ListenPacket(context.Background(), "udp4", "0.0.0.0:53")
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg).SetRcode(m, dns.RcodeNameError)
		if q := m.Question[0]; strings.EqualFold(q.Name, "outside.example.") {
			reply.Rcode = dns.RcodeSuccess
			if q.Qtype == dns.TypeA {
				reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(203, 0, 113, 9)}}
			}
		}
		_ = w.WriteMsg(reply)
	})}
	go func() { _ = server.ActivateAndServe() }()
	n.t.Cleanup(func() { conn.Close() })
}

// Pods call Services and one another by name, from the pod network and from the
// host's. Another name server has port 53 of all addresses, and is the one to
// ask for names outside of the cluster.
func TestNames(t *testing.T) {
	n := newHost(t, "names")
	resolv := filepath.Join(n.Dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("search corp.example\nnameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Output("mount", "--bind", resolv, "/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	n.upstream()
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	if out := n.ok("info"); !strings.Contains(out, "DNS: port 53/UDP of 10.96.0.10 is taken by ") {
		t.Errorf("info does not tell who has port 53:\n%s", out)
	}
	n.importBusybox()
	n.baseline()
	n.apply(web)
	n.apply(named)
	pods := n.waitReady("app=web", 2)
	db := n.waitReady("app=db", 1)[0]
	n.eventually("the pod on the host's network is ready", func() error {
		if out, _, _ := n.CLI("", "get", "pod", "outer"); !strings.Contains(out, "Running") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	pod := pods[0].Name
	out := n.ok("exec", pod, "-c", "front", "--", "cat", "/etc/resolv.conf")
	if want := "search default.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n"; out != want {
		t.Errorf("resolv.conf of a pod:\n%swant\n%s", out, want)
	}
	for _, name := range []string{"web", "web.default", "web.default.svc.cluster.local", "web.default.svc.cluster.local."} {
		n.answers("the name "+name, pods, n.wgetFrom(pod, "http://"+name+"/cgi-bin/name"))
	}
	n.answers("the name from the host's network", pods, n.wgetFrom("outer", "http://web/cgi-bin/name"))
	if got, err := n.wgetFrom(pod, "http://first.db:8080/")(); err != nil || got != "db\n" {
		t.Errorf("a pod by its hostname: %q, %v", got, err)
	}
	if out := n.ok("exec", db.Name, "-c", "front", "--", "hostname", "-f"); out != "first.db.default.svc.cluster.local\n" {
		t.Errorf("a pod's full name: %q", out)
	}
	ips := strings.Join([]string{db.Status.PodIPs[0].IP, db.Status.PodIPs[1].IP}, " ")
	for name, want := range map[string]string{
		"db.default.svc.cluster.local":                                               ips,
		"first.db.default.svc.cluster.local":                                         ips,
		strings.ReplaceAll(db.Status.PodIP, ".", "-") + ".default.pod.cluster.local": db.Status.PodIP,
		"none.default.svc.cluster.local":                                             "",
		"outside.example":                                                            "203.0.113.9",
		"out.default.svc.cluster.local":                                              "203.0.113.9",
		"kube-dns.kube-system.svc.cluster.local":                                     "10.96.0.10 fd96::a",
	} {
		if got := n.lookup(pod, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	// A killed daemon takes the names with it, the next one has them again.
	if err := n.KillDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.answers("the name after the daemon was killed", pods, n.wgetFrom(pod, "http://web/cgi-bin/name"))
	n.ok("delete", "service", "web")
	n.eventually("the deleted Service has no name", func() error {
		if got := n.lookup(pod, "web.default.svc.cluster.local"); got != "" {
			return fmt.Errorf("it is still %s", got)
		}
		return nil
	})
}

// 200 questions a second, each over a socket of its own through the Service's
// address, while pods come and go: every one is answered, and with pods.
func TestNamesWhilePodsChange(t *testing.T) {
	n := newNode(t, "churn")
	questions := *dnsQuestions
	n.apply(web + "---\napiVersion: v1\nkind: Service\nmetadata: {name: all}\nspec: {clusterIP: None, selector: {app: web}}\n")
	n.waitReady("app=web", 2)
	var asked, lost atomic.Int32
	slowest := map[string]time.Duration{} // by protocol; read when all is asked
	stale := 0
	gone := &departures{at: map[string]time.Time{}, suspect: map[string]string{}}
	n.eventually("the names are known", func() error {
		if n.lookup(n.pods("app=web")[0].Name, "all.default.svc.cluster.local") == "" {
			return errors.New("all has no address")
		}
		return nil
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := n.inside(func() error {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for i := range questions {
				began := time.Now()
				name := []string{"all", "web"}[i%2] + ".default.svc.cluster.local."
				server := []string{"10.96.0.10:53", "[fd96::a]:53"}[i/2%2]
				c := dns.Client{Net: []string{"udp", "tcp"}[i/4%8/7], Timeout: 5 * time.Second} // a resolver's
				m, err := dialed(&c, server, new(dns.Msg).SetQuestion(name, dns.TypeA))
				took := time.Since(began)
				slowest[c.Net] = max(slowest[c.Net], took)
				if took > time.Second {
					t.Logf("question %d, %s of %s over %s, took %s", i, name, server, c.Net, took)
				}
				if asked.Add(1); err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 {
					lost.Add(1)
					t.Logf("question %d, %s of %s over %s: %v, %v", i, name, server, c.Net, m, err)
				} else {
					gone.look(m, began)
				}
				<-tick.C
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}()
	changes := 0
	for ended := false; !ended; changes++ {
		count := []int{8, 2}[changes%2]
		n.apply(strings.Replace(web, "replicas: 2", fmt.Sprint("replicas: ", count), 1))
		for _, old := range gone.note(n.waitReady("app=web", count)) {
			stale++
			t.Log("an answer has ", old)
		}
		select {
		case <-done:
			ended = true
		default:
		}
	}
	t.Logf("%d questions, %d lost, %d answers with pods that have gone, while %d pods came and went; slowest %v", asked.Load(), lost.Load(), stale, 6*changes, slowest)
	if lost.Load() > 0 || stale > 0 || changes < 3 {
		t.Error("answers were lost or old, or too little has changed")
	}
}

// dnsQuestions: 120000 are ten minutes of 200 a second.
var dnsQuestions = flag.Int("dns-questions", 2000, "how many questions are asked while pods change")

// departures are the addresses of pods that have gone, and since when.
type departures struct {
	mu    sync.Mutex        // guards what follows
	alive map[string]string // addresses by the pod's name
	at    map[string]time.Time
	// suspect are answers with such an address. A new pod may have got it: that
	// shows when the pods are listed next.
	suspect map[string]string
}

// note compares the pods that are there with those before, and returns the
// answers that had addresses of nobody.
func (d *departures) note(pods []corev1.Pod) (stale []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	alive := map[string]string{}
	for _, p := range pods {
		alive[p.Name] = p.Status.PodIP
		delete(d.at, p.Status.PodIP)
		delete(d.suspect, p.Status.PodIP)
	}
	for name, ip := range d.alive {
		if _, there := alive[name]; !there && !slices.Contains(slices.Collect(maps.Values(alive)), ip) {
			d.at[ip] = time.Now()
		}
	}
	stale = slices.Collect(maps.Values(d.suspect))
	d.alive, d.suspect = alive, map[string]string{}
	return stale
}

// look suspects an answer to a question that was asked more than a second after
// the pod of one of its addresses had gone.
func (d *departures) look(m *dns.Msg, asked time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			if at, gone := d.at[a.A.String()]; gone && asked.Sub(at) > time.Second {
				d.suspect[a.A.String()] = fmt.Sprintf("%s of a pod that was gone for %s", a.A, asked.Sub(at))
			}
		}
	}
}

// dialed asks without leaving the calling thread: its namespace decides where a socket is.
func dialed(c *dns.Client, server string, m *dns.Msg) (*dns.Msg, error) {
	conn, err := c.Dial(server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	reply, _, err := c.ExchangeWithConn(m, conn)
	return reply, err
}

// 200 questions a second, while the daemon is killed, ended, and started again,
// and the keeper killed under it. Each is asked once: all are answered before a
// resolver would ask again, since they wait in the sockets that the keeper holds.
func TestNamesWhileDaemonRestarts(t *testing.T) {
	const patience = 5 * time.Second // that of a resolver for one try
	n := newNode(t, "resolve")
	n.apply(web)
	n.waitReady("app=web", 2)
	n.eventually("the name is known", func() error {
		if n.lookup(n.pods("app=web")[0].Name, "web.default.svc.cluster.local") == "" {
			return errors.New("web has no address")
		}
		return nil
	})
	var asked, lost atomic.Int32
	var slowest atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		_ = n.inside(func() error {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				server := []string{"10.96.0.10:53", "[fd96::a]:53"}[i%2]
				c := dns.Client{Net: "udp", Timeout: patience}
				conn, err := c.Dial(server)
				if err != nil {
					return err
				}
				all.Go(func() { // the socket is of the host's network, wherever it is used
					defer conn.Close()
					began := time.Now()
					m, _, err := c.ExchangeWithConn(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA), conn)
					for took := int64(time.Since(began)); ; {
						if old := slowest.Load(); took <= old || slowest.CompareAndSwap(old, took) {
							break
						}
					}
					if asked.Add(1); err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
						lost.Add(1)
						t.Logf("question %d to %s: %v, %v", i, server, m, err)
					}
				})
				<-tick.C
			}
			return nil
		})
	})
	for i, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		time.Sleep(time.Duration(100+37*i) * time.Millisecond)
		if i == 3 { // the next keeper is given the sockets, too
			if err := n.KillKeeper(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			n.eventually("another keeper runs", func() error {
				if strings.Contains(n.ok("info"), "the keeper does not answer") {
					return errors.New("not yet")
				}
				return nil
			})
		}
		if err := errors.Join(n.KillDaemon(sig), n.Serve()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	stop()
	all.Wait()
	t.Logf("%d questions, %d lost, the slowest answer took %s", asked.Load(), lost.Load(), time.Duration(slowest.Load()).Round(time.Millisecond))
	// One that the daemon had read when it was killed is asked again by a resolver.
	if lost.Load() > 3 || asked.Load() < 100 {
		t.Error("answers were lost, or too little was asked")
	}
}

// Pods of a network that is not the built-in one ask the same server, at the
// same address: here of one with another bridge and range. The address comes back
// when somebody takes it away, and is given up with DNS.
func TestNamesOnAnotherNetwork(t *testing.T) {
	n := newHost(t, "elsewhere")
	cni := filepath.Join(n.Dir, "cni")
	conf := `{"cniVersion": "1.0.0", "name": "theirs", "plugins": [{"type": "pausa", "bridge": "theirs0", "ranges": ["10.77.0.0/16"], "dataDir": "/run/pausa/network/ipam"}]}`
	if err := errors.Join(os.MkdirAll(cni, 0o755), os.WriteFile(filepath.Join(cni, "10-theirs.conflist"), []byte(conf), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	n.apply(web)
	pods := n.waitReady("app=web", 2)
	if !strings.HasPrefix(pods[0].Status.PodIP, "10.77.") {
		t.Fatalf("the pod is on another network: %s", pods[0].Status.PodIP)
	}
	service := n.service("web")
	known := func() error {
		if got := n.lookup(pods[0].Name, "web"); !strings.Contains(got, service.Spec.ClusterIP) {
			return fmt.Errorf("web is %q", got)
		}
		return nil
	}
	n.eventually("a pod finds the Service by its name", known)
	if out := n.ok("exec", pods[0].Name, "-c", "front", "--", "cat", "/etc/resolv.conf"); !strings.Contains(out, "nameserver 10.96.0.10\n") {
		t.Errorf("resolv.conf of the pod: %s", out)
	}
	n.sh("ip addr del 10.96.0.10/32 dev lo")
	n.eventually("a pod finds it again", known)
	if err := n.KillDaemon(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.Env = append(n.Env, "PAUSA_NETWORK_DNS_ENABLED=false")
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	if out := n.sh("ip -o addr show dev lo; ss -lnu"); strings.Contains(out, "10.96.0.10") {
		t.Errorf("without DNS its address is still there:\n%s", out)
	}
	n.ok("delete", "--all", "-A")
}
