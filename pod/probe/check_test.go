package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// listen accepts connections and says nothing.
func listen(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func portOf(t *testing.T, server *httptest.Server) int32 {
	t.Helper()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(u.Port(), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return int32(n)
}

func ask(t *testing.T, h corev1.ProbeHandler, target Target) answer {
	t.Helper()
	p := command("")
	p.ProbeHandler = h
	if target.Host == "" {
		target.Host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	a := newCheck(&direct{}, target, p)(ctx)
	if !a.known {
		t.Errorf("%+v is not known", a)
	}
	return a
}

// pages is a web server for probes.
func pages(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/slow":
		<-r.Context().Done()
	case "/here":
		http.Redirect(w, r, "/503", http.StatusFound)
	case "/elsewhere":
		http.Redirect(w, r, "http://203.0.113.1/", http.StatusFound)
	case "/circle":
		http.Redirect(w, r, "/circle", http.StatusFound)
	case "/endless":
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<10)); err != nil {
				return
			}
		}
	case "/headers":
		if r.Host != "name.example" || strings.Join(r.Header["X-A"], ",") != "1,2" || r.UserAgent() != "me" || r.URL.Query().Get("q") != "1" {
			w.WriteHeader(http.StatusTeapot)
		}
	default:
		n, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		w.WriteHeader(n)
	}
}

func TestHTTP(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(pages))
	defer plain.Close()
	secret := httptest.NewTLSServer(http.HandlerFunc(pages))
	defer secret.Close()
	at := portOf(t, plain)
	for path, ok := range map[string]bool{
		"/200": true, "/399": true, "/400": false, "/503": false, "204": true,
		"/here": false, "/elsewhere": true, "/circle": false, "/endless": true, "/headers?q=1": true,
	} {
		g := &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(at), HTTPHeaders: []corev1.HTTPHeader{
			{Name: "host", Value: "name.example"}, {Name: "X-A", Value: "1"}, {Name: "X-A", Value: "2"}, {Name: "User-Agent", Value: "me"},
		}}
		if a := ask(t, corev1.ProbeHandler{HTTPGet: g}, Target{}); a.ok != ok {
			t.Errorf("%s: %+v, want %v", path, a, ok)
		}
	}
	tls := &corev1.HTTPGetAction{Path: "/200", Port: intstr.FromInt32(portOf(t, secret)), Scheme: corev1.URISchemeHTTPS}
	if a := ask(t, corev1.ProbeHandler{HTTPGet: tls}, Target{}); !a.ok {
		t.Errorf("HTTPS with a certificate of nobody: %+v", a)
	}
	named := &corev1.HTTPGetAction{Path: "/200", Port: intstr.FromString("web"), Host: "localhost"}
	ports := []corev1.ContainerPort{{Name: "web", ContainerPort: at}}
	if a := ask(t, corev1.ProbeHandler{HTTPGet: named}, Target{Host: "203.0.113.1", Ports: ports}); !a.ok {
		t.Errorf("named port on a host of its own: %+v", a)
	}
	if a := ask(t, corev1.ProbeHandler{HTTPGet: named}, Target{}); a.ok || a.message != `the container has no port "web"` {
		t.Errorf("port that has no name: %+v", a)
	}

	ctx, cancel := context.WithCancel(context.Background())
	p := command("")
	p.ProbeHandler = corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/slow", Port: intstr.FromInt32(at)}}
	time.AfterFunc(20*time.Millisecond, cancel)
	if a := newCheck(&direct{}, Target{Host: "127.0.0.1"}, p)(ctx); a.ok || !a.known {
		t.Errorf("an answer that does not come: %+v", a)
	}
}

func TestTCP(t *testing.T) {
	if a := ask(t, corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(int32(listen(t)))}}, Target{}); !a.ok {
		t.Errorf("somebody listens: %+v", a)
	}
	if a := ask(t, corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{}}, Target{}); a.ok {
		t.Error("nobody listens")
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := int32(l.Addr().(*net.TCPAddr).Port)
	server, state := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, state)
	state.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	probe := func(service string) answer {
		return ask(t, corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: at, Service: &service}}, Target{})
	}
	if a := probe(""); !a.ok {
		t.Errorf("the server as a whole: %+v", a)
	}
	if a := probe("down"); a.ok || !strings.Contains(a.message, "NOT_SERVING") {
		t.Errorf("a service that is down: %+v", a)
	}
	if a := probe("unknown"); a.ok {
		t.Errorf("a service that is not there: %+v", a)
	}
	bare := grpc.NewServer()
	l2, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = bare.Serve(l2) }()
	defer bare.Stop()
	at = int32(l2.Addr().(*net.TCPAddr).Port)
	if a := probe(""); a.ok || !strings.Contains(a.message, "no grpc.health.v1.Health service") {
		t.Errorf("a server without the service: %+v", a)
	}
}

func TestExec(t *testing.T) {
	for _, c := range []struct {
		code      int
		err       error
		ok, known bool
		message   string
	}{
		{0, nil, true, true, ""},
		{3, nil, false, true, "the command ends with 3: why"},
		{0, context.DeadlineExceeded, false, true, "the command did not end within 1s"},
		{0, errors.New("no keeper"), false, false, "no keeper"},
	} {
		a := newCheck(&direct{code: c.code, err: c.err}, Target{}, command("x"))(context.Background())
		if a.ok != c.ok || a.known != c.known || a.message != c.message {
			t.Errorf("%d, %v: %+v", c.code, c.err, a)
		}
	}
}

func TestHook(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(pages))
	defer server.Close()
	get := func(path string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(portOf(t, server))}}
	}
	run := &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}
	ctx, target := context.Background(), Target{Host: "127.0.0.1"}
	if err := errors.Join(Hook(ctx, &direct{}, target, get("/200")), Hook(ctx, &direct{}, target, run)); err != nil {
		t.Error(err)
	}
	if err := Hook(ctx, &direct{}, target, get("/500")); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("a hook's bad answer: %v", err)
	}
	if err := Hook(ctx, &direct{code: 1}, target, run); err == nil || err.Error() != "the command ends with 1: why" {
		t.Errorf("a hook's bad end: %v", err)
	}
}
