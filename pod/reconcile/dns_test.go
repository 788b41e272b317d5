package reconcile

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/network/dns"
	"github.com/pausa-run/pausa/pod/manifest"
)

// names is a DNS server that only remembers.
type names struct {
	mu      sync.Mutex
	now     dns.Records
	updates int
	off     bool
}

func (n *names) cluster() *ClusterDNS {
	return &ClusterDNS{
		Domain: "cluster.local", Addrs: parseAddrs([]string{"10.96.0.10"}),
		Listeners: []dns.Listener{{Protocol: "UDP", Addr: netip.MustParseAddrPort("10.88.0.1:10053")}, {Protocol: "TCP", Addr: netip.MustParseAddrPort("10.88.0.1:53")}},
		Set: func(r dns.Records) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.now = r
		},
		Update: func(c dns.Change) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.updates++
			n.now.Services = slices.DeleteFunc(slices.Clone(n.now.Services), func(s dns.Service) bool {
				id := dns.ID{Namespace: s.Namespace, Name: s.Name}
				return slices.Contains(c.GoneServices, id) ||
					slices.ContainsFunc(c.Set.Services, func(o dns.Service) bool { return id == dns.ID{Namespace: o.Namespace, Name: o.Name} })
			})
			n.now.Pods = slices.DeleteFunc(slices.Clone(n.now.Pods), func(p dns.Pod) bool {
				id := dns.ID{Namespace: p.Namespace, Name: p.Name}
				return slices.Contains(c.GonePods, id) ||
					slices.ContainsFunc(c.Set.Pods, func(o dns.Pod) bool { return id == dns.ID{Namespace: o.Namespace, Name: o.Name} })
			})
			n.now.Services = append(n.now.Services, c.Set.Services...)
			n.now.Pods = append(n.now.Pods, c.Set.Pods...)
		},
		Reachable: func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return !n.off
		},
	}
}

// service is what is told of a Service, as text; "" if there is none.
func (n *names) service(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.IndexFunc(n.now.Services, func(s dns.Service) bool { return s.Name == name })
	if i < 0 {
		return ""
	}
	s := n.now.Services[i]
	var to []string
	for _, e := range s.Endpoints {
		to = append(to, fmt.Sprintf("%s@%s%v", e.Hostname, e.Addr, e.Ports))
	}
	slices.Sort(to)
	return fmt.Sprintf("%v %s %v %v", s.ClusterIPs, s.ExternalName, s.Ports, to)
}

func (n *names) pods() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.now.Pods)
}

// newNamedWorld is a world with DNS, and a host's resolv.conf.
func newNamedWorld(t *testing.T) (*world, *names) {
	n := &names{}
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("search example.org svc.cluster.local\nnameserver 192.0.2.53\noptions timeout:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return newWorldWith(t, func(o *Options) { o.DNS, o.ResolvConf = n.cluster(), resolv }), n
}

func TestResolverOfPods(t *testing.T) {
	w, n := newNamedWorld(t)
	const cluster = "[10.96.0.10] [shop.svc.cluster.local svc.cluster.local cluster.local example.org"
	for _, c := range []struct{ spec, want string }{
		{"", cluster + "] [ndots:5]"},
		{"dnsPolicy: ClusterFirst, hostNetwork: true", "the host's"},
		{"dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true", cluster + "] [ndots:5]"},
		{"dnsPolicy: Default", "the host's"},
		{"dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.1], searches: [a.b]}", "[192.0.2.1] [a.b] []"},
		{
			"dnsConfig: {nameservers: [192.0.2.1, 10.96.0.10], searches: [a.b, cluster.local], options: [{name: ndots, value: \"2\"}, {name: edns0}]}",
			"[10.96.0.10 192.0.2.1] [shop.svc.cluster.local svc.cluster.local cluster.local example.org a.b] [ndots:2 edns0]",
		},
		{"dnsPolicy: Default, dnsConfig: {searches: [a.b]}", "[192.0.2.53] [example.org svc.cluster.local a.b] [timeout:1]"},
	} {
		text := "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {" + c.spec + strings.Repeat(", ", min(1, len(c.spec))) + "containers: [{name: c, image: x}]}"
		o := w.decode(text)[0]
		manifest.Default(o)
		d, err := w.e.dns("shop", &o.Value().(*corev1.Pod).Spec)
		got := "the host's"
		if d != nil {
			got = fmt.Sprint(d.Servers, d.Searches, d.Options)
		}
		if err != nil || got != c.want {
			t.Errorf("%s: %s, %v; want %s", c.spec, got, err, c.want)
		}
	}
	n.mu.Lock()
	n.off = true
	n.mu.Unlock()
	if d, err := w.e.dns("shop", &corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst}); d != nil || err != nil {
		t.Errorf("a server that cannot be reached: %v, %v; want the host's resolver", d, err)
	}
}

const named = `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 5432, targetPort: 54320}]}
---
apiVersion: v1
kind: Service
metadata: {name: db-v6}
spec: {clusterIP: None, ipFamilies: [IPv6], selector: {app: db}}
---
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {type: ExternalName, externalName: www.example.org}
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec: {clusterIP: 10.96.0.7, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, labels: {app: db}}
spec: {hostname: first, subdomain: db, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-1, labels: {app: db}}
spec: {hostname: second, subdomain: other, containers: [{name: c, image: x}]}
`

// Names lead to what is ready, and follow it.
func TestNamesFollowThePods(t *testing.T) {
	w, n := newNamedWorld(t)
	w.apply(named)
	w.until("both pods are ready", func() bool { return w.ready("db-0")() && w.ready("db-1")() })
	ip := func(name string) string { return w.pod(name).Status.PodIP }
	both := []string{"first@" + ip("db-0") + "[{sql TCP 54320}]", "@" + ip("db-1") + "[{sql TCP 54320}]"}
	slices.Sort(both)
	w.until("the headless service leads to both", func() bool { return n.service("db") == fmt.Sprintf("[]  [] %v", both) })
	for name, want := range map[string]string{
		"db-v6":    "[]  [] []",
		"out":      "[] www.example.org [] []",
		"front":    "[10.96.0.7]  [{ TCP 80}] []",
		"kube-dns": "[10.96.0.10]  [{dns UDP 53} {dns-tcp TCP 53}] []",
	} {
		if got := n.service(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for _, p := range w.pods.Pods() {
		if want := map[string]string{"db-0": "db.default.svc.cluster.local", "db-1": "other.default.svc.cluster.local"}[p.Config.Name]; p.Config.Domain != want {
			t.Errorf("%s has the domain %q, want %q", p.Config.Name, p.Config.Domain, want)
		}
	}
	if n.pods() != 2 {
		t.Errorf("%d pods have names, want 2", n.pods())
	}
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Pod", Namespace: "default", Name: "db-0", Wait: true}); err != nil {
		t.Fatal(err)
	}
	w.until("one is left", func() bool {
		return n.pods() == 1 && n.service("db") == "[]  [] [@"+ip("db-1")+"[{sql TCP 54320}]]"
	})
}

func TestExternalNameIsNoAddress(t *testing.T) {
	w, _ := newNamedWorld(t)
	w.apply(named)
	list, err := w.e.Get(manifest.KindService, "default", "out", nil)
	if err != nil || list[0].Value().(*corev1.Service).Spec.ClusterIP != "" {
		t.Errorf("%v, %v", list, err)
	}
	changed := strings.Replace(named, "type: ExternalName, externalName: www.example.org", "ports: [{port: 80}]", 1)
	if _, err := w.e.Apply(context.Background(), w.decode(changed), false); err == nil || !strings.Contains(err.Error(), "type cannot be changed from ExternalName to ClusterIP") {
		t.Errorf("another type: %v", err)
	}
}

// The server's address is nobody else's, also when a Service of its name is declared.
func TestBuiltinService(t *testing.T) {
	w, n := newNamedWorld(t)
	ends := func(name string) string {
		w.table.mu.Lock()
		defer w.table.mu.Unlock()
		for _, s := range w.table.now {
			if s.Name == name {
				return fmt.Sprint(s.ClusterIPs, s.Ports[0].Endpoints, len(s.Ports))
			}
		}
		return ""
	}
	builtin := func() bool { return ends(dnsTitle) == "[10.96.0.10] [10.88.0.1:10053] 2" }
	w.until("the table has the built-in Service", builtin)
	const taken = "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}"
	refused := func() {
		t.Helper()
		if _, err := w.e.Apply(context.Background(), w.decode(taken), false); err == nil || !strings.Contains(err.Error(), "belongs to service kube-system/kube-dns, the built-in one") {
			t.Errorf("the server's address for another Service: %v", err)
		}
	}
	refused()
	w.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system}\n---\n" +
		"apiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}\nspec: {clusterIP: 10.96.0.53, ports: [{port: 53, protocol: UDP}]}")
	w.until("the declared one has the name", func() bool { return n.service(dnsName) == "[10.96.0.53]  [{ UDP 53}] []" })
	if got := ends(dnsName); got != "[10.96.0.53] [] 1" || !builtin() {
		t.Errorf("the declared one is %s in the table, the built-in one %s", got, ends(dnsTitle))
	}
	if _, err := w.e.Delete(context.Background(), DeleteOptions{Kind: "Service", Namespace: dnsNamespace, Name: dnsName, Wait: true}); err != nil {
		t.Fatal(err)
	}
	w.until("the name is the built-in one's again", func() bool { return strings.HasPrefix(n.service(dnsName), "[10.96.0.10] ") })
	refused()
}
