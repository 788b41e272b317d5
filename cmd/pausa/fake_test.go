package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/pod/event"
	"github.com/pausa-run/pausa/pod/manifest"
)

// now is the time of all tests.
func now() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

// fakeDaemon behaves as the daemon: objects that are applied are kept and get a
// status at once, containers run a handful of commands.
type fakeDaemon struct {
	pausav1.UnimplementedPausaServer
	criv1.UnimplementedImageServiceServer
	socket string

	mu       sync.Mutex
	objects  map[manifest.Ref]manifest.Object
	images   []*criv1.Image
	logs     map[string]string // by pod/container
	deletes  []*pausav1.DeleteRequest
	logCalls []*pausav1.LogsRequest
	imported []byte
	slow     bool // pods become Running only at the third look
	looks    int

	events []event.Event
	later  chan event.Event // for a watch; closed, it ends

	goOn chan struct{} // lets a slow pull go on
	gone chan struct{} // closed when the client of a slow pull went
}

// startFake serves a fake on a socket of its own until the test ends.
func startFake(t *testing.T) *fakeDaemon {
	t.Helper()
	f := &fakeDaemon{
		socket:  filepath.Join(t.TempDir(), "pausa.sock"),
		objects: map[manifest.Ref]manifest.Object{}, logs: map[string]string{},
		goOn: make(chan struct{}), gone: make(chan struct{}),
		images: []*criv1.Image{{
			Id: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", Size: 1_234_567,
			RepoTags:    []string{"localhost/busybox:latest"},
			RepoDigests: []string{"localhost/busybox@sha256:fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"},
		}},
	}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pausav1.RegisterPausaServer(s, fakePausa{f})
	criv1.RegisterImageServiceServer(s, f)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return f
}

// result is how one command line ended.
type result struct {
	code     int
	out, err string
}

// run executes a command line against the fake.
func (f *fakeDaemon) run(t *testing.T, args ...string) result {
	t.Helper()
	return f.runWith(t, "", args...)
}

func (f *fakeDaemon) runWith(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return runLine(t, stdin, append([]string{"--socket", f.socket}, args...)...)
}

// runLine executes a command line as it is, in an empty environment.
func runLine(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	p := &program{
		in: strings.NewReader(stdin), out: &out, err: &errOut, now: now,
		env:     func(string) (string, bool) { return "", false },
		environ: func() []string { return nil },
	}
	code := p.run(ctx, append([]string{"pausa"}, args...))
	return result{code, out.String(), errOut.String()}
}

// want checks the exit status and that the outputs hold the given texts.
func (r result) want(t *testing.T, code int, out, errOut string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.out, out) || !strings.Contains(r.err, errOut) {
		t.Fatalf("exit %d, want %d\nstdout, want %q in it:\n%s\nstderr, want %q in it:\n%s", r.code, code, out, r.out, errOut, r.err)
	}
	if code == 0 && errOut == "" && r.err != "" {
		t.Fatalf("unexpected stderr: %s", r.err)
	}
}

func (f *fakeDaemon) Info(context.Context, *pausav1.InfoRequest) (*pausav1.InfoResponse, error) {
	return &pausav1.InfoResponse{
		Version: "9.8.7", StateDir: "/s", RunDir: "/r", DaemonPid: 11, KeeperPid: 12, KeeperVersion: "9.8.6",
		Pods: 2, Containers: 3, Cgroup: "hybrid", StartedAt: "2026-11-22T11:00:00Z", Warnings: []string{"no CAP_SYS_RESOURCE"},
	}, nil
}

func (f *fakeDaemon) Apply(_ context.Context, req *pausav1.ApplyRequest) (*pausav1.ApplyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &pausav1.ApplyResponse{}
	for _, o := range req.GetObjects() {
		objects, err := manifest.Decode(bytes.NewReader(o.GetJson()), o.GetSource())
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		ref := objects[0].Ref()
		r := &pausav1.ApplyResult{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, Outcome: "created"}
		if old, ok := f.objects[ref]; ok {
			r.Outcome = "configured"
			if a, b := string(mustJSON(old)), string(mustJSON(objects[0])); a == b {
				r.Outcome = "unchanged"
			}
		}
		if objects[0].Meta().Labels["fake"] == "refuse" {
			r.Outcome, r.Error = "", "refused by the fake"
		} else if !req.GetDryRun() {
			f.objects[ref] = objects[0]
		}
		out.Results = append(out.Results, r)
	}
	return out, nil
}

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// withStatus is an object as the daemon shows it.
func (f *fakeDaemon) withStatus(o manifest.Object) manifest.Object {
	o = o.DeepCopy()
	o.Meta().CreationTimestamp = metav1.NewTime(now().Add(-90 * time.Second))
	p, ok := o.Value().(*corev1.Pod)
	if !ok {
		return o
	}
	f.looks++
	p.Spec.NodeName = "node1"
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: c.Name, State: f.stateOf(p, c)})
	}
	fillStatus(p)
	return o
}

// stateOf runs a container: the image "missing" has none, "false" fails, the rest runs.
func (f *fakeDaemon) stateOf(p *corev1.Pod, c corev1.Container) corev1.ContainerState {
	command := slices.Concat(c.Command, c.Args)
	switch {
	case f.slow && f.looks < 3:
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}
	case strings.Contains(c.Image, "missing"):
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImageNeverPull", Message: "image is not on this host"}}
	case len(command) > 1 && command[0] == "exit":
		code, _ := strconv.Atoi(command[1])
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(code), Reason: "Error", FinishedAt: p.CreationTimestamp}}
	case len(command) > 0 && (command[0] == "echo" || command[0] == "cat" && f.logs[p.Name+"/"+c.Name] != ""):
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed", FinishedAt: p.CreationTimestamp}}
	default:
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	}
}

func fillStatus(p *corev1.Pod) {
	p.Status.Phase, p.Status.PodIP = corev1.PodRunning, "10.88.0.2"
	p.Status.PodIPs = []corev1.PodIP{{IP: "10.88.0.2"}, {IP: "fd88::2"}}
	ready := corev1.ConditionTrue
	for i := range p.Status.ContainerStatuses {
		s := &p.Status.ContainerStatuses[i]
		if s.Ready = s.State.Running != nil; !s.Ready {
			ready = corev1.ConditionFalse
		}
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
}

func (f *fakeDaemon) Get(_ context.Context, req *pausav1.GetRequest) (*pausav1.GetResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &pausav1.GetResponse{}
	for _, ref := range f.match(req.GetKind(), req.GetNamespace(), req.GetName(), req.GetLabelSelector()) {
		out.Objects = append(out.Objects, mustJSON(f.withStatus(f.objects[ref])))
	}
	if req.GetName() != "" && len(out.Objects) == 0 {
		return nil, status.Error(codes.NotFound, "fake: not found")
	}
	return out, nil
}

func (f *fakeDaemon) match(kind, namespace, name, selector string) []manifest.Ref {
	sel, err := labels.Parse(selector)
	if err != nil {
		panic(err)
	}
	var out []manifest.Ref
	for ref, o := range f.objects {
		if (kind == "" || kind == ref.Kind) && (namespace == "" || namespace == ref.Namespace) &&
			(name == "" || name == ref.Name) && sel.Matches(labels.Set(o.Meta().Labels)) {
			out = append(out, ref)
		}
	}
	slices.SortFunc(out, func(a, b manifest.Ref) int { return strings.Compare(a.String(), b.String()) })
	return out
}

func (f *fakeDaemon) Delete(_ context.Context, req *pausav1.DeleteRequest) (*pausav1.DeleteResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deletes = append(f.deletes, req)
	if req.GetName() == "" && !req.GetAll() && req.GetLabelSelector() == "" {
		return nil, status.Error(codes.InvalidArgument, "fake: nothing named")
	}
	out := &pausav1.DeleteResponse{}
	for _, ref := range f.match(req.GetKind(), req.GetNamespace(), req.GetName(), req.GetLabelSelector()) {
		delete(f.objects, ref)
		out.Deleted = append(out.Deleted, &pausav1.ObjectRef{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name})
	}
	if req.GetName() != "" && len(out.Deleted) == 0 {
		return nil, status.Errorf(codes.NotFound, "fake: %s not found", req.GetName())
	}
	return out, nil
}

func (f *fakeDaemon) container(namespace, pod, container string) (corev1.Container, error) {
	o, ok := f.objects[manifest.Ref{Kind: "Pod", Namespace: namespace, Name: pod}]
	if !ok {
		return corev1.Container{}, status.Errorf(codes.NotFound, "fake: Pod %s/%s not found", namespace, pod)
	}
	for _, c := range o.Value().(*corev1.Pod).Spec.Containers {
		if container == "" || c.Name == container {
			return c, nil
		}
	}
	return corev1.Container{}, status.Errorf(codes.NotFound, "container %q of pod %q not found", container, pod)
}

func (f *fakeDaemon) Logs(req *pausav1.LogsRequest, stream pausav1.Pausa_LogsServer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logCalls = append(f.logCalls, req)
	c, err := f.container(req.GetNamespace(), req.GetPod(), req.GetContainer())
	if err != nil {
		return err
	}
	text := f.logs[req.GetPod()+"/"+c.Name]
	if command := slices.Concat(c.Command, c.Args); text == "" && len(command) > 0 && command[0] == "echo" {
		text = strings.Join(command[1:], " ") + "\n"
	}
	for line := range strings.Lines(text) {
		if err := stream.Send(&pausav1.LogsResponse{Data: []byte(line), Stderr: strings.HasPrefix(line, "!")}); err != nil {
			return err
		}
	}
	if req.GetContainer() == "" {
		stream.SetTrailer(metadata.Pairs("warning", "showing container "+c.Name))
	}
	return nil
}

func (f *fakeDaemon) Exec(stream pausav1.Pausa_ExecServer) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	start := req.GetStart()
	f.mu.Lock()
	_, err = f.container(start.GetNamespace(), start.GetPod(), start.GetContainer())
	f.mu.Unlock()
	if err != nil {
		return err
	}
	return runFake(stream, start, start.GetCommand())
}

func (f *fakeDaemon) Attach(stream pausav1.Pausa_AttachServer) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	start := req.GetStart()
	f.mu.Lock()
	c, err := f.container(start.GetNamespace(), start.GetPod(), start.GetContainer())
	f.mu.Unlock()
	if err != nil {
		return err
	}
	err = runFake(stream, start, slices.Concat(c.Command, c.Args))
	f.mu.Lock()
	f.logs[start.GetPod()+"/"+c.Name] = "(ended)\n"
	f.mu.Unlock()
	return err
}

// runFake is the container's command: echo, cat, exit, size or drop.
func runFake(stream grpc.BidiStreamingServer[pausav1.ExecRequest, pausav1.ExecResponse], start *pausav1.ExecRequest_Start, command []string) error {
	code := int32(0)
	switch command[0] {
	case "echo":
		_ = stream.Send(&pausav1.ExecResponse{Stdout: []byte(strings.Join(command[1:], " ") + "\n")})
	case "warn":
		_ = stream.Send(&pausav1.ExecResponse{Stderr: []byte("careful\n")})
	case "cat":
		for start.GetStdin() {
			req, err := stream.Recv()
			if err != nil || req.GetStdinClosed() {
				break
			}
			_ = stream.Send(&pausav1.ExecResponse{Stdout: req.GetStdin()})
		}
	case "exit":
		n, _ := strconv.Atoi(command[1])
		code = int32(n)
	case "size":
		req := &pausav1.ExecRequest{Width: start.GetWidth(), Height: start.GetHeight()}
		_ = stream.Send(&pausav1.ExecResponse{Stdout: fmt.Appendf(nil, "%dx%d tty %v\r\n", req.GetWidth(), req.GetHeight(), start.GetTty())})
		for req.GetWidth() != 100 { // until the test resizes
			var err error
			if req, err = stream.Recv(); err != nil {
				return err
			}
		}
		_ = stream.Send(&pausav1.ExecResponse{Stdout: []byte("resized\r\n")})
	case "drop":
		return nil
	default:
		return status.Errorf(codes.FailedPrecondition, "start %s: no such file or directory in the container", command[0])
	}
	return stream.Send(&pausav1.ExecResponse{Exited: true, ExitCode: code})
}

func (f *fakeDaemon) ImportImage(stream pausav1.Pausa_ImportImageServer) error {
	name := ""
	var data []byte
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if name == "" {
			name = req.GetName()
		}
		if file := req.GetFile(); file != nil {
			if filepath.Base(file.GetPath()) != "seen.tar" {
				return status.Error(codes.FailedPrecondition, "read the archive: no such file")
			}
			data = append(data, "file "...)
		}
		data = append(data, req.GetData()...)
		if bytes.HasPrefix(data, []byte("bad")) {
			return status.Error(codes.InvalidArgument, "archive is no OCI or docker archive")
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.imported = data
	if name == "" {
		name = "localhost/imported:latest"
	}
	return stream.SendAndClose(&pausav1.ImportImageResponse{Names: []string{name}, Ids: []string{"sha256:1"}})
}

func (f *fakeDaemon) find(ref string) *criv1.Image {
	for _, i := range f.images {
		if slices.Contains(i.GetRepoTags(), ref) || strings.HasPrefix(strings.TrimPrefix(i.GetId(), "sha256:"), ref) {
			return i
		}
	}
	return nil
}

func (f *fakeDaemon) ListImages(context.Context, *criv1.ListImagesRequest) (*criv1.ListImagesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &criv1.ListImagesResponse{Images: f.images}, nil
}

func (f *fakeDaemon) ImageStatus(_ context.Context, req *criv1.ImageStatusRequest) (*criv1.ImageStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &criv1.ImageStatusResponse{Image: f.find(req.GetImage().GetImage())}, nil
}

func (f *fakeDaemon) RemoveImage(_ context.Context, req *criv1.RemoveImageRequest) (*criv1.RemoveImageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := f.find(req.GetImage().GetImage())
	f.images = slices.DeleteFunc(f.images, func(i *criv1.Image) bool { return i == found })
	return &criv1.RemoveImageResponse{}, nil
}

func (f *fakeDaemon) PullImage(_ context.Context, req *criv1.PullImageRequest) (*criv1.PullImageResponse, error) {
	if strings.Contains(req.GetImage().GetImage(), "nowhere") {
		return nil, status.Error(codes.NotFound, "image is not in the registry")
	}
	return &criv1.PullImageResponse{ImageRef: "sha256:2"}, nil
}

// write puts a file into a temporary folder and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const helloManifest = `apiVersion: v1
kind: Pod
metadata: {name: hello, labels: {app: hello}}
spec:
  containers:
  - {name: web, image: localhost/busybox}
  - {name: side, image: localhost/busybox, args: [echo, hi]}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{port: 80, nodePort: 30080}]
  type: NodePort
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: front}
spec:
  replicas: 2
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec: {containers: [{name: web, image: localhost/busybox}]}
`
