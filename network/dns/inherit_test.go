package dns

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A server that ends hands its sockets on: what was asked meanwhile waits in
// them, and is answered by the next one, at the same ports.
func TestQuestionsWaitForTheNextServer(t *testing.T) {
	open := func(inherited map[string]*os.File) (*Server, context.CancelFunc, chan error) {
		t.Helper()
		s, err := Listen(Options{Domain: "cluster.local", Addrs: addrs("127.0.0.87"), ResolvConf: filepath.Join(t.TempDir(), "none"), Inherited: inherited})
		if err != nil {
			t.Fatal(err)
		}
		s.Set(world())
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx) }()
		return s, stop, done
	}
	first, stop, done := open(nil)
	want := fmt.Sprint(first.Listeners())
	kept, err := first.Files()
	if err != nil {
		t.Fatal(err)
	}
	udp, tcp := first.at("UDP"), first.at("TCP")
	if _, err := exchange(first, "UDP", "web.default.svc.cluster.local.", 0); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var waiting []*dns.Conn
	for range 500 {
		waiting = append(waiting, askAt(t, "udp", udp))
	}
	for range 20 {
		waiting = append(waiting, askAt(t, "tcp", tcp))
	}
	second, stop, done := open(kept)
	for _, f := range kept {
		f.Close()
	}
	if got := fmt.Sprint(second.Listeners()); got != want || len(second.Warnings()) > 0 {
		t.Errorf("the next server is at %s, want %s; %v", got, want, second.Warnings())
	}
	for i, conn := range waiting {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if m, err := conn.ReadMsg(); err != nil || len(m.Answer) != 1 {
			t.Errorf("question %d: %v, %v", i, m, err)
		}
		conn.Close()
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func askAt(t *testing.T, network, at string) *dns.Conn {
	t.Helper()
	conn, err := dns.Dial(network, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// A question that is being worked out when the server ends is answered.
func TestLastAnswerIsGiven(t *testing.T) {
	asked, answer := make(chan struct{}, 8), make(chan struct{})
	upstream := &dns.Server{Addr: "127.0.0.88:53", Net: "udp", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		asked <- struct{}{}
		<-answer
		reply := new(dns.Msg).SetReply(m)
		reply.Answer = []dns.RR{addrRR(m.Question[0].Name, addrs("192.0.2.1")[0])}
		_ = w.WriteMsg(reply)
	})}
	go func() { _ = upstream.ListenAndServe() }()
	defer upstream.Shutdown()
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.88\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Listen(Options{Domain: "cluster.local", Addrs: addrs("127.0.0.89"), ResolvConf: resolv})
	if err != nil {
		t.Fatal(err)
	}
	s.handler.forward.try = 20 * time.Second
	s.Set(world())
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	conn, err := dns.Dial("udp", s.at("UDP"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion("outside.example.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	<-asked
	stop()
	close(answer)
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if m, err := conn.ReadMsg(); err != nil || len(m.Answer) != 1 {
		t.Errorf("%v, %v", m, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
