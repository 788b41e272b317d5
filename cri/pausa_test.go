package cri

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pausa-run/pausa/cri/pausav1"
)

func TestObjects(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	obj := &pausav1.Object{Json: []byte(`{"kind":"Pod"}`), Source: "a.yaml:1"}
	r, err := d.own.Apply(ctx, &pausav1.ApplyRequest{Objects: []*pausav1.Object{obj}, DryRun: true})
	if err != nil || len(d.objects.applied) != 0 || r.Results[0].Kind != "Pod" || r.Results[0].Name != "a" || r.Results[0].Outcome != "created" {
		t.Errorf("dry run: %v %v", r, err)
	}
	if _, err := d.own.Apply(ctx, &pausav1.ApplyRequest{Objects: []*pausav1.Object{obj}}); err != nil || len(d.objects.applied) != 1 {
		t.Errorf("apply: %v %v", d.objects.applied, err)
	}
	_, err = d.own.Apply(ctx, &pausav1.ApplyRequest{Objects: []*pausav1.Object{{Json: []byte("bad"), Source: "b.yaml:7"}}})
	wantCode(t, err, codes.InvalidArgument, "b.yaml:7")
	_, err = d.own.Apply(ctx, &pausav1.ApplyRequest{Objects: []*pausav1.Object{{}}})
	wantCode(t, err, codes.InvalidArgument, "objects[0].json")
	got, err := d.own.Get(ctx, &pausav1.GetRequest{Kind: "Pod"})
	if err != nil || len(got.Objects) != 1 || string(got.Objects[0]) != `{"kind":"Pod"}` {
		t.Errorf("get: %v %v", got, err)
	}
	_, err = d.own.Get(ctx, &pausav1.GetRequest{Kind: "Pod", Name: "missing"})
	wantCode(t, err, codes.NotFound, "missing")
	_, err = d.own.Delete(ctx, &pausav1.DeleteRequest{Kind: "Pod"})
	wantCode(t, err, codes.InvalidArgument, "all")
	grace := int64(3)
	gone, err := d.own.Delete(ctx, &pausav1.DeleteRequest{Kind: "Pod", Namespace: "n", Name: "a", Wait: true, GraceSeconds: &grace})
	if err != nil || gone.Deleted[0].Name != "a" || gone.Deleted[0].Namespace != "n" {
		t.Errorf("delete: %v %v", gone, err)
	}
}

func TestWithoutObjects(t *testing.T) {
	d := newDaemon(t, func(o *Options) { o.Objects = nil })
	_, err := d.own.Get(t.Context(), &pausav1.GetRequest{})
	wantCode(t, err, codes.Unavailable, "declared objects")
}

func TestImportImage(t *testing.T) {
	d := newDaemon(t)
	s, err := d.own.ImportImage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*pausav1.ImportImageRequest{{Name: "n:1", Data: []byte("ab")}, {}, {Data: []byte("cde")}} {
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := s.CloseAndRecv(); err != nil || r.Names[0] != "n:1" || r.Ids[0] != "sha256:5" {
		t.Errorf("import: %v %v", r, err)
	}
	// a file is read by the daemon, if it is the one that the client means
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, []byte("abcdefg"), 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	for inode, want := range map[uint64]codes.Code{st.Ino: codes.OK, st.Ino + 1: codes.FailedPrecondition} {
		if s, err = d.own.ImportImage(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&pausav1.ImportImageRequest{Name: "f:1", File: &pausav1.LocalFile{Path: path, Device: st.Dev, Inode: inode}}); err != nil {
			t.Fatal(err)
		}
		if r, err := s.CloseAndRecv(); status.Code(err) != want || err == nil && r.Ids[0] != "sha256:7" {
			t.Errorf("import of a file: %v, %v; want %s", r, err, want)
		}
	}
	// a client that gives up in the middle leaves no image
	ctx, cancel := context.WithCancel(t.Context())
	s, err = d.own.ImportImage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&pausav1.ImportImageRequest{Name: "half", Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	cancel()
	// Not CloseAndRecv: its end of the stream may be quicker than the cancellation.
	if err := s.RecvMsg(&pausav1.ImportImageResponse{}); err == nil {
		t.Error("half an archive is no error")
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if len(d.images.all) != 2 {
		t.Errorf("images: %v", d.images.all)
	}
}

// declared makes the container that the objects know.
func (d *daemon) declared(t *testing.T) string {
	t.Helper()
	d.objects.container = d.start(t, d.run(t, "web"), simple("main"))
	return d.objects.container
}

func (d *daemon) exec(t *testing.T, start *pausav1.ExecRequest_Start, more ...*pausav1.ExecRequest) pausav1.Pausa_ExecClient {
	t.Helper()
	s, err := d.own.Exec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range append([]*pausav1.ExecRequest{{Start: start}}, more...) {
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// collect reads to the end.
func collect(s pausav1.Pausa_ExecClient) (out, errOut string, code int, err error) {
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out, errOut, code, nil
		}
		if err != nil {
			return out, errOut, code, err
		}
		out, errOut = out+string(r.Stdout), errOut+string(r.Stderr)
		if r.Exited {
			code = int(r.ExitCode)
		}
	}
}

func TestPausaExec(t *testing.T) {
	d := newDaemon(t)
	d.declared(t)
	long := strings.Repeat("x", 3*chunk+1)
	out, _, code, err := collect(d.exec(t, &pausav1.ExecRequest_Start{Pod: "web", Command: []string{"cat"}, Stdin: true}, &pausav1.ExecRequest{Stdin: []byte(long)}, &pausav1.ExecRequest{StdinClosed: true}))
	if out != long || code != 0 || err != nil {
		t.Errorf("cat: %d bytes, %d, %v", len(out), code, err)
	}
	out, errOut, _, err := collect(d.exec(t, &pausav1.ExecRequest_Start{Pod: "web", Command: []string{"echo", "a"}}))
	if out != "a\n" || errOut != "and stderr\n" || err != nil {
		t.Errorf("echo: %q %q %v", out, errOut, err)
	}
	_, _, code, err = collect(d.exec(t, &pausav1.ExecRequest_Start{Pod: "web", Command: []string{"exit", "9"}}))
	if code != 9 || err != nil {
		t.Errorf("exit: %d %v", code, err)
	}
	s := d.exec(t, &pausav1.ExecRequest_Start{Pod: "web", Command: []string{"size"}, Tty: true, Width: 80, Height: 24}, &pausav1.ExecRequest{Width: 100, Height: 30})
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if out, errOut, _, err := collect(s); out != "80x24 tty=true\n100x30 tty=true\n" || errOut != "" || err != nil {
		t.Errorf("sizes: %q %v", out, err)
	}
}

func TestPausaExecRefusals(t *testing.T) {
	d := newDaemon(t)
	d.declared(t)
	_, _, _, err := collect(d.exec(t, nil))
	wantCode(t, err, codes.InvalidArgument, "start")
	_, _, _, err = collect(d.exec(t, &pausav1.ExecRequest_Start{Pod: "web"}))
	wantCode(t, err, codes.InvalidArgument, "start.command")
	_, _, _, err = collect(d.exec(t, &pausav1.ExecRequest_Start{Pod: "web", Command: []string{"a"}, Width: 1 << 16}))
	wantCode(t, err, codes.InvalidArgument, "65535")
	_, _, _, err = collect(d.exec(t, &pausav1.ExecRequest_Start{Pod: "other", Command: []string{"a"}}))
	wantCode(t, err, codes.NotFound, "other")
	d.objects.container = ""
	_, _, _, err = collect(d.exec(t, &pausav1.ExecRequest_Start{Pod: "web", Command: []string{"a"}}))
	wantCode(t, err, codes.FailedPrecondition, "does not run")
}

func TestPausaExecClientGone(t *testing.T) {
	d := newDaemon(t)
	id := d.declared(t)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := d.own.Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&pausav1.ExecRequest{Start: &pausav1.ExecRequest_Start{Pod: "web", Command: []string{"block"}}}); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Recv(); err != nil || string(r.Stdout) != "blocking\n" {
		t.Fatalf("have %v %v", r, err)
	}
	cancel()
	if got := <-d.pods.gone; got != id {
		t.Errorf("ended %s", got)
	}
}

func TestPausaAttach(t *testing.T) {
	d := newDaemon(t)
	id := d.declared(t)
	s, err := d.own.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*pausav1.ExecRequest{{Start: &pausav1.ExecRequest_Start{Pod: "web", Stdin: true}}, {Stdin: []byte("in")}} {
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := s.Recv(); err != nil || string(r.Stdout) != "in" {
		t.Fatalf("have %v %v", r, err)
	}
	d.pods.exit(id, 4)
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, _, code, err := collect(s); code != 4 || err != nil {
		t.Errorf("end: %d %v", code, err)
	}
}

func TestLogs(t *testing.T) {
	d := newDaemon(t)
	id := d.declared(t)
	d.objects.log = filepath.Join(t.TempDir(), "0.log")
	line := func(n, text string) string { return "2026-11-22T20:00:0" + n + "Z " + text + "\n" }
	if err := os.WriteFile(d.objects.log, []byte(line("1", "stdout F one")+line("2", "stderr F two")), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(r *pausav1.LogsRequest) (out, errOut string, err error) {
		s, err := d.own.Logs(t.Context(), r)
		if err != nil {
			return "", "", err
		}
		for {
			l, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return out, errOut, nil
			}
			if err != nil {
				return out, errOut, err
			}
			if l.Stderr {
				errOut += string(l.Data)
			} else {
				out += string(l.Data)
			}
		}
	}
	one := int64(1)
	if out, errOut, err := read(&pausav1.LogsRequest{Pod: "web", Timestamps: true}); out != "2026-11-22T20:00:01Z one\n" || errOut != "2026-11-22T20:00:02Z two\n" || err != nil {
		t.Errorf("logs: %q %q %v", out, errOut, err)
	}
	if out, errOut, err := read(&pausav1.LogsRequest{Pod: "web", Tail: &one}); out != "" || errOut != "two\n" || err != nil {
		t.Errorf("tail: %q %q %v", out, errOut, err)
	}
	d.pods.exit(id, 0)
	if out, errOut, err := read(&pausav1.LogsRequest{Pod: "web", Follow: true}); out != "one\n" || errOut != "two\n" || err != nil {
		t.Errorf("followed to the end: %q %q %v", out, errOut, err)
	}
	less := int64(-1)
	_, _, err := read(&pausav1.LogsRequest{Pod: "web", Tail: &less})
	wantCode(t, err, codes.InvalidArgument, "tail")
	_, _, err = read(&pausav1.LogsRequest{Pod: "web", Previous: true})
	wantCode(t, err, codes.NotFound, "web")
	d.objects.log += ".none"
	_, _, err = read(&pausav1.LogsRequest{Pod: "web"})
	wantCode(t, err, codes.NotFound, "no log")
	d.objects.log = ""
	_, _, err = read(&pausav1.LogsRequest{Pod: "web"})
	wantCode(t, err, codes.FailedPrecondition, "keeps no log")
}
