//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// streamPod is a pod with servers for port-forward and a container to attach to.
type streamPod struct {
	*kubelet
	sandbox, main, talker string
	hungUp                chan error // of the talkers in the pod
}

func newStreamPod(t *testing.T, name string) *streamPod {
	k := newKubelet(t, newNode(t, name))
	sandbox, main := k.up("streams", "while :; do sleep 1000; done")
	c, err := k.runtime.CreateContainer(k.ctx, &criv1.CreateContainerRequest{
		PodSandboxId: sandbox, SandboxConfig: k.sandboxConfig("streams"),
		Config: &criv1.ContainerConfig{
			Metadata: &criv1.ContainerMetadata{Name: "talker"}, Image: &criv1.ImageSpec{Image: busybox}, Stdin: true, LogPath: "talker.log",
			Command: []string{"sh", "-c", "while read line; do echo heard $line; echo beside >&2; done"},
			Linux:   &criv1.LinuxContainerConfig{SecurityContext: &criv1.LinuxContainerSecurityContext{}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.runtime.StartContainer(k.ctx, &criv1.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	p := &streamPod{k, sandbox, main, c.ContainerId, make(chan error, 10)}
	p.serve(t)
	return p
}

// serve has servers in the pod's network: 8081 echoes, 8082 talks for ever and
// tells when it cannot any more, 8083 resets its connection once it is asked.
func (p *streamPod) serve(t *testing.T) {
	for port, answer := range map[string]func(*net.TCPConn){
		"8081": func(c *net.TCPConn) { _, _ = io.Copy(c, struct{ io.Reader }{c}) },
		"8082": func(c *net.TCPConn) {
			for {
				if _, err := c.Write([]byte("more and more\n")); err != nil {
					p.hungUp <- err
					return
				}
			}
		},
		"8083": func(c *net.TCPConn) {
			_, _ = c.Read(make([]byte, 1))
			_ = c.SetLinger(0)
		},
	} {
		var l net.Listener
		err := place(p.n.Path(p.n.netnsOf("streams"))).in(func() (err error) {
			l, err = net.Listen("tcp", "127.0.0.1:"+port)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					answer(c.(*net.TCPConn))
				}()
			}
		}()
	}
}

// reach turns an address on the host's loopback into one that a client here can use.
func (p *streamPod) reach(address string) *url.URL {
	p.n.t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		p.n.t.Fatal(err)
	}
	u.Host = p.n.relay(u.Port())
	return u
}

// dialect is a protocol of exec and attach: spdy, or a version over WebSocket.
type dialect string

func (d dialect) stream(ctx context.Context, u *url.URL, o remotecommand.StreamOptions) error {
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	if d != "spdy" {
		e, err = remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, u.String(), string(d))
	}
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, o)
}

func (p *streamPod) exec(ctx context.Context, d dialect, o remotecommand.StreamOptions, command ...string) error {
	r, err := p.runtime.Exec(p.ctx, &criv1.ExecRequest{
		ContainerId: p.main, Cmd: command, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		return err
	}
	return d.stream(ctx, p.reach(r.Url), o)
}

// The streams of a pod, with the clients that Kubernetes uses, at the addresses that the runtime gives.
func TestCRIStreams(t *testing.T) {
	p := newStreamPod(t, "streams")
	for _, d := range []dialect{"spdy", "v4.channel.k8s.io", "v5.channel.k8s.io"} {
		t.Run(string(d), func(t *testing.T) {
			p.checkExec(t, d)
			p.checkTerminal(t, d)
			p.checkAttach(t, d)
			p.checkVanish(t, d)
		})
	}
	t.Run("forward", p.checkForward)
	for range 2 { // the forward's client has gone
		select {
		case <-p.hungUp:
		case <-time.After(30 * time.Second):
			t.Fatal("the pod still talks to a client that has gone")
		}
	}
	t.Run("crictl", p.checkCrictl)
	p.checkRemoval(t)
}

func (p *streamPod) checkExec(t *testing.T, d dialect) {
	var out, errOut bytes.Buffer
	err := p.exec(p.ctx, d, remotecommand.StreamOptions{Stdin: strings.NewReader("a line\n"), Stdout: &out, Stderr: &errOut}, "sh", "-c", "read line; echo $line; echo beside >&2; exit 7")
	if exitCode(err) != 7 || out.String() != "a line\n" || errOut.String() != "beside\n" {
		t.Errorf("exec gave %q, %q, %v", out.String(), errOut.String(), err)
	}
	out.Reset()
	if d != "v4.channel.k8s.io" { // which knows no end of stdin
		err := p.exec(p.ctx, d, remotecommand.StreamOptions{Stdin: strings.NewReader("to the end"), Stdout: &out}, "cat")
		if err != nil || out.String() != "to the end" {
			t.Errorf("cat gave %q, %v", out.String(), err)
		}
	}
	out.Reset()
	if err := p.exec(p.ctx, d, remotecommand.StreamOptions{Stdout: &out}, "sh", "-c", "yes | head -c 3000000"); err != nil || out.Len() != 3000000 {
		t.Errorf("of 3000000 bytes came %d, %v", out.Len(), err)
	}
}

func (p *streamPod) checkTerminal(t *testing.T, d dialect) {
	in, keys := io.Pipe()
	sizes := make(sizeQueue, 1)
	sizes <- remotecommand.TerminalSize{Width: 97, Height: 31}
	screen := &untilText{text: "31 97", seen: sync.OnceFunc(func() {
		sizes <- remotecommand.TerminalSize{Width: 61, Height: 17}
		close(sizes)
	})}
	go func() {
		_, _ = io.WriteString(keys, "until stty size | tee /dev/tty | grep -q '17 61'; do sleep 0.1; done; exit 5\n")
	}()
	err := p.exec(p.ctx, d, remotecommand.StreamOptions{Stdin: in, Stdout: screen, Tty: true, TerminalSizeQueue: sizes}, "sh")
	keys.Close()
	if exitCode(err) != 5 || !strings.Contains(screen.all.String(), "17 61") {
		t.Errorf("the terminal showed %q, %v", screen.all.String(), err)
	}
}

func (p *streamPod) checkAttach(t *testing.T, d dialect) {
	r, err := p.runtime.Attach(p.ctx, &criv1.AttachRequest{ContainerId: p.talker, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.ctx, 30*time.Second)
	defer cancel()
	in, keys := io.Pipe()
	defer keys.Close()
	go func() { _, _ = io.WriteString(keys, string(d)+"\n") }()
	out := &untilText{text: "heard " + string(d) + "\n", seen: cancel}
	_ = d.stream(ctx, p.reach(r.Url), remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: io.Discard}) // ended by us
	if out.all.String() != out.text {
		t.Errorf("attach gave %q", out.all.String())
	}
}

// checkVanish has a client go while its command runs: the command goes as well.
func (p *streamPod) checkVanish(t *testing.T, d dialect) {
	ctx, cancel := context.WithTimeout(p.ctx, 30*time.Second)
	defer cancel()
	up := &untilText{text: "up\n", seen: cancel}
	if err := p.exec(ctx, d, remotecommand.StreamOptions{Stdout: up}, "sh", "-c", "echo up; sleep 4243; true"); err == nil {
		t.Error("an exec whose client went ended well")
	}
	if !strings.Contains(up.all.String(), "up") {
		t.Fatalf("the command said %q", up.all.String())
	}
	p.n.eventually("the command is gone", func() error { return p.runs("sleep 4243", 0) })
}

// runs finds how often a command runs.
func (p *streamPod) runs(command string, want int) error {
	procs, err := p.n.Processes()
	if err != nil {
		return err
	}
	have := 0
	for _, proc := range procs {
		if proc.Cmdline == command {
			have++
		}
	}
	if have != want {
		return fmt.Errorf("%q runs %d times", command, have)
	}
	return nil
}

// forward listens here for the pod's ports; done gives the forward's end.
func (p *streamPod) forward(t *testing.T) (dial func(port uint16) *net.TCPConn, done <-chan error) {
	r, err := p.runtime.PortForward(p.ctx, &criv1.PortForwardRequest{PodSandboxId: p.sandbox})
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, p.reach(r.Url))
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	t.Cleanup(func() { close(stop) })
	f, err := portforward.New(dialer, []string{"0:8081", "0:8082", "0:8083"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("forward ports: %v", err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return func(port uint16) *net.TCPConn {
		for _, forwarded := range ports {
			if forwarded.Remote == port {
				conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", forwarded.Local))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				return conn.(*net.TCPConn)
			}
		}
		return nil
	}, ended
}

// echoes has a text come back over a connection.
func echoes(conn net.Conn, text string) error {
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	back := make([]byte, len(text))
	if n, err := io.ReadFull(conn, back); err != nil {
		return fmt.Errorf("of %d bytes came back %d: %w", len(text), n, err)
	}
	if string(back) != text {
		return fmt.Errorf("%d bytes came back changed", len(text))
	}
	return nil
}

// checkForward has many connections in one forward. Resets of some by either side end neither the others nor the forward.
func (p *streamPod) checkForward(t *testing.T) {
	dial, done := p.forward(t)
	var conns []*net.TCPConn
	for range 20 {
		conns = append(conns, dial(8081))
	}
	var all sync.WaitGroup
	for i, conn := range conns {
		all.Go(func() {
			if err := echoes(conn, strings.Repeat(fmt.Sprint(i), 20000)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	talkers := []*net.TCPConn{dial(8082), dial(8082)}
	for _, conn := range talkers {
		if _, err := io.ReadFull(conn, make([]byte, 100000)); err != nil {
			t.Error(err)
		}
	}
	for _, conn := range append(talkers, conns[:5]...) {
		_ = conn.SetLinger(0)
		conn.Close()
	}
	for range 2 {
		conn := dial(8083)
		if err := echoes(conn, "?"); err == nil {
			t.Error("a connection that the pod resets echoed")
		}
	}
	for _, conn := range append(conns[5:], dial(8081)) {
		if err := echoes(conn, "still here"); err != nil {
			t.Errorf("after the resets of others: %v", err)
		}
	}
	select {
	case err := <-done:
		t.Errorf("the forward ended: %v", err)
	default:
	}
}

// checkRemoval removes the pod while streams of all kinds are open: they end.
func (p *streamPod) checkRemoval(t *testing.T) {
	ends := make(chan error, 5)
	for _, d := range []dialect{"spdy", "v4.channel.k8s.io", "v5.channel.k8s.io"} {
		go func() { ends <- p.exec(p.ctx, d, remotecommand.StreamOptions{Stdout: io.Discard}, "sleep", "4244") }()
	}
	r, err := p.runtime.Attach(p.ctx, &criv1.AttachRequest{ContainerId: p.talker, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		ends <- dialect("spdy").stream(p.ctx, p.reach(r.Url), remotecommand.StreamOptions{Stdout: io.Discard})
	}()
	dial, _ := p.forward(t)
	conn := dial(8081)
	if err := echoes(conn, "open"); err != nil {
		t.Fatal(err)
	}
	p.n.eventually("the commands run", func() error { return p.runs("sleep 4244", 3) })
	p.down(p.sandbox, p.main)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		ends <- err
	}()
	for range cap(ends) {
		select {
		case err := <-ends:
			if errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a stream of a removed pod goes on")
		}
	}
}
