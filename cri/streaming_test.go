package cri

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// spdyDial connects as a kubelet does.
func spdyDial(t *testing.T, address, protocol string) httpstream.Connection {
	t.Helper()
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	conn, err := rt.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func openStream(t *testing.T, conn httpstream.Connection, kind string, more ...string) httpstream.Stream {
	t.Helper()
	h := http.Header{}
	h.Set("streamType", kind)
	for i := 0; i < len(more); i += 2 {
		h.Set(more[i], more[i+1])
	}
	s, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func (d *daemon) execURL(t *testing.T, id string, r *criv1.ExecRequest, cmd ...string) string {
	t.Helper()
	r.ContainerId, r.Cmd = id, cmd
	resp, err := d.rt.Exec(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

const v4 = "v4.channel.k8s.io"

func TestExecStreams(t *testing.T) {
	d := newDaemon(t)
	id := d.start(t, d.run(t, "web"), simple("main"))
	conn := spdyDial(t, d.execURL(t, id, &criv1.ExecRequest{Stdin: true, Stdout: true, Stderr: true}, "cat"), v4)
	status, in := openStream(t, conn, "error"), openStream(t, conn, "stdin")
	out, errOut := openStream(t, conn, "stdout"), openStream(t, conn, "stderr")
	if _, err := in.Write([]byte("through and through")); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	if got := readAll(t, out); got != "through and through" {
		t.Errorf("stdout %q", got)
	}
	if got := readAll(t, errOut); got != "" {
		t.Errorf("stderr %q", got)
	}
	if got := readAll(t, status); !strings.Contains(got, `"Success"`) {
		t.Errorf("status %s", got)
	}
}

func TestExecExitCode(t *testing.T) {
	d := newDaemon(t)
	id := d.start(t, d.run(t, "web"), simple("main"))
	conn := spdyDial(t, d.execURL(t, id, &criv1.ExecRequest{Stdout: true}, "exit", "42"), v4)
	status := openStream(t, conn, "error")
	openStream(t, conn, "stdout")
	var got struct {
		Reason  string
		Details struct{ Causes []struct{ Message string } }
	}
	if err := json.Unmarshal([]byte(readAll(t, status)), &got); err != nil || got.Reason != "NonZeroExitCode" || got.Details.Causes[0].Message != "42" {
		t.Errorf("status %+v %v", got, err)
	}
}

func TestExecTerminalResizes(t *testing.T) {
	d := newDaemon(t)
	id := d.start(t, d.run(t, "web"), simple("main"))
	conn := spdyDial(t, d.execURL(t, id, &criv1.ExecRequest{Stdin: true, Stdout: true, Tty: true}, "size"), v4)
	openStream(t, conn, "error")
	openStream(t, conn, "stdin")
	out, resize := openStream(t, conn, "stdout"), openStream(t, conn, "resize")
	for _, s := range []string{`{"Width":80,"Height":24}`, `{"Width":100,"Height":30}`} {
		if _, err := resize.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	_ = resize.Close()
	if got := readAll(t, out); got != "80x24 tty=true\n100x30 tty=true\n" {
		t.Errorf("have %q", got)
	}
}

// A client that vanishes takes its process with it, over each protocol.
func TestExecClientGone(t *testing.T) {
	d := newDaemon(t)
	id := d.start(t, d.run(t, "web"), simple("main"))
	conn := spdyDial(t, d.execURL(t, id, &criv1.ExecRequest{Stdout: true}, "block"), v4)
	openStream(t, conn, "error")
	out := openStream(t, conn, "stdout")
	if _, err := io.ReadFull(out, make([]byte, len("blocking\n"))); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if got := <-d.pods.gone; got != id {
		t.Errorf("ended %s", got)
	}

	ws := wsDial(t, d.execURL(t, id, &criv1.ExecRequest{Stdout: true}, "block"), v5)
	for {
		if _, m, err := ws.ReadMessage(); err != nil {
			t.Fatal(err)
		} else if string(m) == "\x01blocking\n" {
			break
		}
	}
	_ = ws.NetConn().Close()
	if got := <-d.pods.gone; got != id {
		t.Errorf("ended %s", got)
	}
}

const v5 = "v5.channel.k8s.io"

func wsDial(t *testing.T, address string, protocols ...string) *websocket.Conn {
	t.Helper()
	dialer := websocket.Dialer{Subprotocols: protocols}
	conn, resp, err := dialer.DialContext(t.Context(), "ws"+strings.TrimPrefix(address, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// wsRead collects what each channel says until the server closes.
func wsRead(ws *websocket.Conn) map[byte]string {
	got := map[byte]string{}
	for {
		_, m, err := ws.ReadMessage()
		if err != nil {
			return got
		}
		got[m[0]] += string(m[1:])
	}
}

func wsSend(t *testing.T, ws *websocket.Conn, message string) {
	t.Helper()
	if err := ws.WriteMessage(websocket.BinaryMessage, []byte(message)); err != nil {
		t.Fatal(err)
	}
}

func TestExecWebSocket(t *testing.T) {
	d := newDaemon(t)
	id := d.start(t, d.run(t, "web"), simple("main"))
	for _, protocols := range [][]string{{v4}, {v5}, {v5, v4}} {
		ws := wsDial(t, d.execURL(t, id, &criv1.ExecRequest{Stdout: true, Stderr: true}, "echo", "hi"), protocols...)
		if ws.Subprotocol() != protocols[0] {
			t.Errorf("of %v the server speaks %q", protocols, ws.Subprotocol())
		}
		if got := wsRead(ws); got[1] != "hi\n" || got[2] != "and stderr\n" || !strings.Contains(got[3], `"Success"`) {
			t.Errorf("%v: have %q", protocols, got)
		}
		ws = wsDial(t, d.execURL(t, id, &criv1.ExecRequest{Stdout: true}, "exit", "42"), protocols...)
		if got := wsRead(ws); !strings.Contains(got[3], `"NonZeroExitCode"`) || !strings.Contains(got[3], `"message":"42"`) {
			t.Errorf("%v: status %q", protocols, got[3])
		}
	}
	// Before v4 there is no status, but a text.
	ws := wsDial(t, d.execURL(t, id, &criv1.ExecRequest{Stdout: true}, "exit", "42"), "channel.k8s.io")
	if got := wsRead(ws); !strings.Contains(got[3], "exit code 42") || strings.Contains(got[3], "{") {
		t.Errorf("status %q", got[3])
	}
}

// In v5 a client ends its stdin and goes on listening.
func TestExecWebSocketEndOfInput(t *testing.T) {
	d := newDaemon(t)
	id := d.start(t, d.run(t, "web"), simple("main"))
	ws := wsDial(t, d.execURL(t, id, &criv1.ExecRequest{Stdin: true, Stdout: true}, "cat"), v5)
	wsSend(t, ws, "\x00through and through")
	wsSend(t, ws, "\xff\x00")
	if got := wsRead(ws); got[1] != "through and through" || !strings.Contains(got[3], `"Success"`) {
		t.Errorf("have %q", got)
	}
	ws = wsDial(t, d.execURL(t, id, &criv1.ExecRequest{Stdin: true, Stdout: true, Tty: true}, "size"), v5)
	wsSend(t, ws, "\x04"+`{"Width":80,"Height":24}`)
	wsSend(t, ws, "\x04"+`{"Width":100,"Height":30}`)
	wsSend(t, ws, "\xff\x04")
	if got := wsRead(ws); got[1] != "80x24 tty=true\n100x30 tty=true\n" {
		t.Errorf("have %q", got)
	}
}

// Who does not ask for stdin must not end the container's.
func TestAttachWebSocketWithoutInput(t *testing.T) {
	d := newDaemon(t)
	id := d.start(t, d.run(t, "web"), simple("main"))
	for _, protocol := range []string{v4, v5} {
		r, err := d.rt.Attach(t.Context(), &criv1.AttachRequest{ContainerId: id, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := wsRead(wsDial(t, r.Url, protocol)); got[1] != "no stdin\n" {
			t.Errorf("%s: have %q", protocol, got)
		}
	}
}

// An address works once, whatever is spoken there, and not for ever.
func TestTickets(t *testing.T) {
	d := newDaemon(t)
	id := d.start(t, d.run(t, "web"), simple("main"))
	address := d.execURL(t, id, &criv1.ExecRequest{Stdout: true}, "echo")
	wsRead(wsDial(t, address, v5))
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		req, err := http.NewRequestWithContext(t.Context(), method, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "SPDY/3.1")
		req.Header.Set("X-Stream-Protocol-Version", v4)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("a used address answers %s to %s", resp.Status, method)
		}
	}
	var all tickets
	all.add("http://127.0.0.1/old", 1)
	all.all["/old"] = ticket{1, time.Now().Add(-time.Second)}
	if _, ok := all.take("/old"); ok {
		t.Error("an address of long ago still works")
	}
	all.all["/old"] = ticket{1, time.Now().Add(-time.Second)}
	all.add("http://127.0.0.1/new", 2)
	if _, ok := all.all["/old"]; ok || len(all.all) != 1 {
		t.Errorf("kept: %v", all.all)
	}
}

func TestAttachStreams(t *testing.T) {
	d := newDaemon(t)
	id := d.start(t, d.run(t, "web"), simple("main"))
	r, err := d.rt.Attach(t.Context(), &criv1.AttachRequest{ContainerId: id[:4], Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	conn := spdyDial(t, r.Url, v4)
	openStream(t, conn, "error")
	in, out := openStream(t, conn, "stdin"), openStream(t, conn, "stdout")
	_, _ = in.Write([]byte("x"))
	_ = in.Close()
	if got := readAll(t, out); got != "x" {
		t.Errorf("have %q", got)
	}
}

func TestStreamAddressesAreSecret(t *testing.T) {
	d := newDaemon(t)
	id := d.start(t, d.run(t, "web"), simple("main"))
	address := d.execURL(t, id, &criv1.ExecRequest{Stdout: true}, "echo", "x")
	u, err := url.Parse(address)
	if err != nil || u.Hostname() != "127.0.0.1" {
		t.Fatalf("address %s: %v", address, err)
	}
	parts := strings.Split(u.Path, "/")
	if len(parts) != 4 || len(parts[1]) < 26 { // 26 letters of base32 are 128 bits
		t.Errorf("path %s has no secret", u.Path)
	}
	status := func(address string) int {
		resp, err := http.Get(address) //nolint:noctx // a test's
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	without := "http://" + u.Host + "/" + strings.Join(parts[2:], "/")
	if got := status(without); got != http.StatusNotFound {
		t.Errorf("without the secret: %d", got)
	}
	conn := spdyDial(t, address, v4)
	openStream(t, conn, "error")
	openStream(t, conn, "stdout")
	if got := status(address); got != http.StatusNotFound {
		t.Errorf("a second use: %d", got)
	}
}

// duplex opens one connection of a forward.
func duplex(t *testing.T, conn httpstream.Connection, request string) (data, errs httpstream.Stream) {
	t.Helper()
	errs = openStream(t, conn, "error", "port", "80", "requestID", request)
	data = openStream(t, conn, "data", "port", "80", "requestID", request)
	return data, errs
}

func TestPortForward(t *testing.T) {
	d := newDaemon(t)
	podID := d.run(t, "web")
	fail := make(chan bool, 1)
	d.pods.forward = func(_ context.Context, s io.ReadWriteCloser) error {
		select {
		case <-fail:
			return errors.New("connection reset by peer")
		default:
		}
		_, err := io.Copy(s, s)
		return err
	}
	r, err := d.rt.PortForward(t.Context(), &criv1.PortForwardRequest{PodSandboxId: podID})
	if err != nil {
		t.Fatal(err)
	}
	conn := spdyDial(t, r.Url, "portforward.k8s.io")
	fail <- true
	_, errs := duplex(t, conn, "1")
	if got := readAll(t, errs); !strings.Contains(got, "reset by peer") {
		t.Errorf("error stream: %q", got)
	}
	// one connection's reset does not end the forward
	data, _ := duplex(t, conn, "2")
	_, _ = data.Write([]byte("ping"))
	_ = data.Close()
	if got := readAll(t, data); got != "ping" {
		t.Errorf("have %q", got)
	}
}

// A client that resets one connection of a forward ends that one in the pod, and no other.
func TestPortForwardReset(t *testing.T) {
	d := newDaemon(t)
	podID := d.run(t, "web")
	ended := make(chan error, 1)
	d.pods.forward = func(_ context.Context, s io.ReadWriteCloser) error {
		first := make([]byte, 4)
		if _, err := io.ReadFull(s, first); err != nil || string(first) == "echo" {
			_, err = io.Copy(s, s)
			return err
		}
		for { // a server that talks for ever
			if _, err := s.Write([]byte("more\n")); err != nil {
				ended <- err
				return err
			}
		}
	}
	r, err := d.rt.PortForward(t.Context(), &criv1.PortForwardRequest{PodSandboxId: podID})
	if err != nil {
		t.Fatal(err)
	}
	conn := spdyDial(t, r.Url, "portforward.k8s.io")
	other, _ := duplex(t, conn, "1")
	_, _ = other.Write([]byte("echo"))
	data, _ := duplex(t, conn, "2")
	_, _ = data.Write([]byte("talk"))
	if _, err := io.ReadFull(data, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	_ = data.Reset()
	if err := <-ended; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the pod's side ended with %v", err)
	}
	_, _ = other.Write([]byte("ping"))
	_ = other.Close()
	if got := readAll(t, other); got != "ping" {
		t.Errorf("the other connection: %q", got)
	}
}

func TestPodRemovalEndsForwards(t *testing.T) {
	d := newDaemon(t)
	podID := d.run(t, "web")
	began, ended := make(chan bool), make(chan error, 1)
	d.pods.forward = func(ctx context.Context, _ io.ReadWriteCloser) error {
		began <- true
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	r, err := d.rt.PortForward(t.Context(), &criv1.PortForwardRequest{PodSandboxId: podID})
	if err != nil {
		t.Fatal(err)
	}
	conn := spdyDial(t, r.Url, "portforward.k8s.io")
	_, errs := duplex(t, conn, "1")
	<-began
	if _, err := d.rt.RemovePodSandbox(t.Context(), &criv1.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Fatal(err)
	}
	<-ended
	if got := readAll(t, errs); !strings.Contains(got, "has stopped") {
		t.Errorf("error stream: %q", got)
	}
	_, err = d.rt.PortForward(t.Context(), &criv1.PortForwardRequest{PodSandboxId: podID})
	wantCode(t, err, codes.NotFound, podID)
}
