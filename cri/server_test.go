package cri

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/internal/unixsocket"
)

// daemon is a whole server on a socket of its own, with clients.
type daemon struct {
	conn    *grpc.ClientConn
	pods    *fakePods
	images  *fakeImages
	objects *fakeObjects
	socket  string
	rt      criv1.RuntimeServiceClient
	img     criv1.ImageServiceClient
	own     pausav1.PausaClient
	logged  *strings.Builder
	stop    func() error
}

func newDaemon(t testing.TB, change ...func(*Options)) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &daemon{pods: newFakePods(), images: &fakeImages{}, objects: &fakeObjects{}, socket: filepath.Join(dir, "sub", "s.sock"), logged: &strings.Builder{}}
	o := Options{
		Pods: d.pods, Images: d.images, Objects: d.objects, Version: "1.2.3",
		Log: slog.New(slog.NewTextHandler(d.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, d.socket) }()
	ended := false
	d.stop = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		return <-served
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(d.socket); err == nil {
			break // else the client would wait a second before its next try
		}
	}
	conn, err := grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	d.conn = conn
	d.rt, d.img, d.own = criv1.NewRuntimeServiceClient(conn), criv1.NewImageServiceClient(conn), pausav1.NewPausaClient(conn)
	if _, err := d.rt.Version(t.Context(), &criv1.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	return d
}

// wantCode fails unless err has the code and says part.
func wantCode(t *testing.T, err error, code codes.Code, part string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), part) {
		t.Errorf("have %v, want %s with %q", err, code, part)
	}
}

func TestSocketIsRootOnly(t *testing.T) {
	d := newDaemon(t)
	st, err := os.Stat(d.socket)
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("socket: %v %v", st, err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(d.socket)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSocketTaken(t *testing.T) {
	d := newDaemon(t)
	if _, err := unixsocket.Listen(d.socket); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("second daemon: %v", err)
	}
	if _, err := d.rt.Version(t.Context(), &criv1.VersionRequest{}); err != nil {
		t.Errorf("the first one after the second's try: %v", err)
	}
}

func TestStopEndsLongCalls(t *testing.T) {
	d := newDaemon(t)
	events, err := d.rt.GetContainerEvents(t.Context(), &criv1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.rt.RunPodSandbox(t.Context(), &criv1.RunPodSandboxRequest{Config: podRequest("a")}); err != nil {
		t.Fatal(err)
	}
	if _, err := events.Recv(); err != nil { // it has begun
		t.Fatal(err)
	}
	began := time.Now()
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if time.Since(began) >= stopTime {
		t.Error("the stream held up the stop")
	}
	_, err = events.Recv()
	wantCode(t, err, codes.Unavailable, "")
}

func TestPanicIsOneCallsError(t *testing.T) {
	d := newDaemon(t)
	_, err := d.rt.RunPodSandbox(t.Context(), &criv1.RunPodSandboxRequest{Config: podRequest("panic")})
	wantCode(t, err, codes.Internal, "as asked")
	if _, err := d.rt.Version(t.Context(), &criv1.VersionRequest{}); err != nil {
		t.Errorf("the daemon after a panic: %v", err)
	}
	if err := d.stop(); err != nil { // all logging is over
		t.Fatal(err)
	}
	if !strings.Contains(d.logged.String(), "fake_test.go") {
		t.Errorf("no stack in the log: %s", d.logged)
	}
}

func TestMutationsAreLogged(t *testing.T) {
	d := newDaemon(t)
	if _, err := d.rt.StopPodSandbox(t.Context(), &criv1.StopPodSandboxRequest{PodSandboxId: "abc"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.rt.ListContainers(t.Context(), &criv1.ListContainersRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if log := d.logged.String(); !strings.Contains(log, "pod=abc method=StopPodSandbox ms=") || strings.Contains(log, "ListContainers") {
		t.Errorf("log: %s", log)
	}
}

func TestMutates(t *testing.T) {
	for method, want := range map[string]bool{
		"RunPodSandbox": true, "UpdateRuntimeConfig": true, "Exec": true, "ExecSync": true, "PullImage": true, "Apply": true, "ImportImage": true, "ReopenContainerLog": true,
		"Version": false, "Status": false, "RuntimeConfig": false, "PodSandboxStats": false, "ContainerStatus": false, "ImageFsInfo": false, "GetContainerEvents": false, "Logs": false, "Info": false,
	} {
		if mutates(method) != want {
			t.Errorf("mutates(%s) = %t", method, !want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("no pods: no error")
	}
	if _, err := New(Options{Pods: newFakePods(), Images: &fakeImages{}, CgroupDriver: "magic"}); err == nil || !strings.Contains(err.Error(), "magic") {
		t.Errorf("driver: %v", err)
	}
}
