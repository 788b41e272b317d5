package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// api serves just what kube-proxy asks for: lists and watches of three kinds.
type api struct {
	mu      sync.Mutex // guards what follows
	version int
	objects map[string]map[string]any // by path and name
	watches map[string][]chan event
}

type event struct {
	Type   string `json:"type"`
	Object any    `json:"object"`
}

const (
	servicesPath = "/api/v1/services"
	slicesPath   = "/apis/discovery.k8s.io/v1/endpointslices"
	nodesPath    = "/api/v1/nodes"
	nodeName     = "bench"
)

func newAPI() *api {
	a := &api{version: 1, objects: map[string]map[string]any{}, watches: map[string][]chan event{}}
	a.put(nodesPath, nodeName, &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: nodeName},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: hostAddr}}},
	})
	return a
}

// put stores an object (nil: removes it) and tells who watches.
func (a *api) put(path, name string, o metav1.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.objects[path] == nil {
		a.objects[path] = map[string]any{}
	}
	old, had := a.objects[path][name]
	a.version++
	e := event{"ADDED", o}
	if had {
		e.Type = "MODIFIED"
	}
	if o == nil {
		e = event{"DELETED", old}
		old.(metav1.Object).SetResourceVersion(fmt.Sprint(a.version))
		delete(a.objects[path], name)
	} else {
		o.SetResourceVersion(fmt.Sprint(a.version))
		a.objects[path][name] = o
	}
	for _, w := range a.watches[path] {
		w <- e
	}
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimSuffix(r.URL.Path, "/"+nodeName)
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method != http.MethodGet:
		w.WriteHeader(http.StatusCreated) // events
		fmt.Fprint(w, "{}")
	case r.URL.Query().Get("watch") != "":
		a.watch(w, r, path, r.URL.Query().Get("sendInitialEvents") == "true")
	case path != r.URL.Path:
		a.mu.Lock()
		defer a.mu.Unlock()
		_ = json.NewEncoder(w).Encode(a.objects[path][nodeName])
	default:
		a.mu.Lock()
		defer a.mu.Unlock()
		items := make([]any, 0, len(a.objects[path]))
		for _, o := range a.objects[path] {
			items = append(items, o)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"kind": "List", "apiVersion": "v1", "metadata": map[string]string{"resourceVersion": fmt.Sprint(a.version)}, "items": items,
		})
	}
}

func (a *api) watch(w http.ResponseWriter, r *http.Request, path string, initial bool) {
	a.mu.Lock()
	ch := make(chan event, 100000)
	a.watches[path] = append(a.watches[path], ch)
	if initial {
		for _, o := range a.objects[path] {
			ch <- event{"ADDED", o}
		}
		ch <- event{"BOOKMARK", bookmark(path, a.version)}
	}
	a.mu.Unlock()
	out := json.NewEncoder(w)
	flush := w.(http.Flusher)
	flush.Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-ch:
			if out.Encode(e) != nil {
				return
			}
			if len(ch) == 0 {
				flush.Flush()
			}
		}
	}
}

// bookmark ends the first part of a watch.
func bookmark(path string, version int) any {
	kinds := map[string][2]string{servicesPath: {"v1", "Service"}, slicesPath: {"discovery.k8s.io/v1", "EndpointSlice"}, nodesPath: {"v1", "Node"}}
	k := kinds[path]
	return map[string]any{"apiVersion": k[0], "kind": k[1], "metadata": map[string]any{
		"resourceVersion": fmt.Sprint(version), "annotations": map[string]string{metav1.InitialEventsAnnotationKey: "true"},
	}}
}

// declare puts Service i and its endpoints; variant changes one of these.
func (a *api) declare(i, endpoints int, real bool, variant int) {
	name := fmt.Sprint("s", i)
	tcp, port, ready := corev1.ProtocolTCP, int32(8080), true
	ip := vip(i).String()
	single := corev1.IPFamilyPolicySingleStack
	svc := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "bench"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			IPFamilyPolicy: &single, Ports: []corev1.ServicePort{{Port: 80, Protocol: tcp}},
		},
	}
	slice := &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  metav1.ObjectMeta{Name: name, Namespace: "bench", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	empty := ""
	for e := range endpoints {
		addr := endpointOf(i, e).String()
		if e == 0 && variant > 0 {
			addr = endpointOf(i+variant, 9).String()
		}
		if real {
			// All of the pod's: kube-proxy has one port for a slice.
			addr, port = podAddr, int32(firstPort)
		}
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
		if real {
			break
		}
	}
	slice.Ports = []discoveryv1.EndpointPort{{Name: &empty, Port: &port, Protocol: &tcp}}
	a.put(servicesPath, name, svc)
	a.put(slicesPath, name, slice)
}

func (a *api) remove(i int) {
	name := fmt.Sprint("s", i)
	a.put(slicesPath, name, nil)
	a.put(servicesPath, name, nil)
}

// kubeProxy measures kube-proxy in this namespace. Its changes are timed until
// they can be felt, since it gathers them.
func kubeProxy(ctx context.Context, o options, mode string, m kernelMemory) (f figures, err error) {
	f.Subject = "kube-proxy, " + mode
	w, err := newWorld(1)
	if err != nil {
		return f, err
	}
	direct := fmt.Sprintf("%s:%d", podAddr, firstPort)
	if f.Direct, err = w.connect(direct, o.connects); err != nil {
		return f, err
	}
	a := newAPI()
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return f, err
	}
	server := &http.Server{Handler: a, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(ln) }()
	defer server.Close()
	for i := range o.services {
		a.declare(i, o.endpoints, i == o.services-1, 0)
	}
	log, err := os.CreateTemp("", "kube-proxy-")
	if err != nil {
		return f, err
	}
	defer os.Remove(log.Name())
	cmd := exec.CommandContext(ctx, o.proxy, "--master=http://"+ln.Addr().String(), "--proxy-mode="+mode, "--hostname-override="+nodeName,
		"--cluster-cidr=10.1.0.0/16", "--kube-api-content-type=application/json", "--kube-api-qps=1000", "--kube-api-burst=1000",
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		"--iptables-min-sync-period=10ms", "--metrics-bind-address=127.0.0.1:10249", "--healthz-bind-address=127.0.0.1:10256")
	cmd.Stdout, cmd.Stderr = log, log
	before := m.mb()
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return f, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if err != nil {
			text, _ := os.ReadFile(log.Name())
			err = errors.Join(err, fmt.Errorf("kube-proxy says: %s", text[max(0, len(text)-3000):]))
		}
	}()
	last := vip(o.services-1).String() + ":80"
	if _, err := w.reachable(last, true, o.timeout); err != nil {
		return f, err
	}
	f.Load = time.Since(began).Seconds()
	f.KernelMB = m.mb() - before
	f.RSSMB = rssMB(cmd.Process.Pid)
	if f.ConnectAll, err = w.connect(last, o.connects); err != nil {
		return f, err
	}
	time.Sleep(3 * time.Second) // its first pass may have a second one behind it
	return f, proxyChanges(w, a, o, &f)
}

func proxyChanges(w *world, a *api, o options, f *figures) error {
	var added, removed []time.Duration
	n := o.services + 1
	to := vip(n).String() + ":80"
	for range o.rounds {
		a.declare(n, 1, true, 0)
		took, err := w.reachable(to, true, time.Minute)
		if err != nil {
			return err
		}
		added = append(added, took)
		a.remove(n)
		if took, err = w.reachable(to, false, time.Minute); err != nil {
			return err
		}
		removed = append(removed, took)
	}
	f.AddOne, f.RemoveOne = median(added), median(removed)
	return nil
}
