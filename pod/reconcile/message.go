package reconcile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// What is kept of a container's last words, as Kubernetes does.
const (
	messageBytes  = 4096
	logTailBytes  = 2048
	logTailLines  = 80
	logReadBytes  = 16 << 10
	messageMode   = 0o666 // whoever the container runs as writes it
	messageInside = corev1.TerminationMessagePathDefault
)

// messageFile is STATE/pods/UID/messages/CONTAINER/ATTEMPT on the host.
func (v *volumes) messageFile(uid types.UID, container string, attempt uint32) string {
	return filepath.Join(v.state, string(uid), "messages", container, strconv.FormatUint(uint64(attempt), 10))
}

// messageMount makes the file for a container's termination message and mounts it,
// unless the container has a volume at that place.
func (v *volumes) messageMount(uid types.UID, c *corev1.Container, attempt uint32) ([]runtime.Mount, error) {
	inside := c.TerminationMessagePath
	if inside == "" {
		inside = messageInside
	}
	inside = filepath.Clean(inside)
	if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return filepath.Clean(m.MountPath) == inside }) {
		return nil, nil
	}
	path := v.messageFile(uid, c.Name, attempt)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make termination message: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make termination message: %w", err)
	}
	if err := errors.Join(f.Chmod(messageMode), f.Close()); err != nil {
		return nil, fmt.Errorf("make termination message: %w", err)
	}
	return []runtime.Mount{{Source: path, Destination: inside, Type: "bind", Propagation: "rprivate"}}, nil
}

// lastWords of a container that has exited: its message file, else the tail of its
// log if that is asked for and it failed.
func (e *Engine) lastWords(p *corev1.Pod, c *corev1.Container, a pod.Container) string {
	if f, err := os.Open(e.volumes.messageFile(p.UID, c.Name, a.Config.Attempt)); err == nil {
		data, err := io.ReadAll(io.LimitReader(f, messageBytes))
		f.Close()
		if err == nil && len(data) > 0 {
			return strings.ToValidUTF8(string(data), "\uFFFD")
		}
	}
	if c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError && a.Exit.Code != 0 {
		return logTail(filepath.Join(e.logDir(p), logName(c.Name, a.Config.Attempt)))
	}
	return ""
}

// logTail is the end of a log without its times and streams.
func logTail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	from := max(info.Size()-logReadBytes, 0)
	data, err := io.ReadAll(io.NewSectionReader(f, from, logReadBytes))
	if err != nil {
		return ""
	}
	lines := strings.SplitAfter(string(data), "\n")
	if from > 0 {
		lines = lines[1:] // the first is cut
	}
	var b strings.Builder
	for _, line := range lines[max(len(lines)-logTailLines-1, 0):] {
		f := strings.SplitN(line, " ", 4) // time, stream, tag, text
		if len(f) < 4 {
			continue
		}
		if f[2] == "P" {
			f[3] = strings.TrimSuffix(f[3], "\n")
		}
		b.WriteString(f[3])
	}
	text := b.String()
	return strings.ToValidUTF8(text[max(len(text)-logTailBytes, 0):], "")
}

// terminated is how an attempt ended.
func (e *Engine) terminated(p *corev1.Pod, c *corev1.Container, a pod.Container) *corev1.ContainerStateTerminated {
	x := a.Exit
	t := &corev1.ContainerStateTerminated{
		ExitCode: int32(x.Code), Signal: int32(x.Signal), Reason: "Error", Message: e.lastWords(p, c, a),
		StartedAt: metav1.NewTime(a.StartedAt), FinishedAt: metav1.NewTime(x.FinishedAt), ContainerID: "pausa://" + a.ID,
	}
	switch {
	case x.StartError != "":
		t.Reason, t.Message = "StartError", x.StartError
	case x.Unknown:
		t.Reason, t.Message = "ContainerStatusUnknown", "the exit code could not be collected"
	case x.OOMKilled:
		t.Reason = "OOMKilled"
		if t.Message == "" {
			t.Message = x.OOMMessage()
		}
	case x.Code == 0:
		t.Reason = "Completed"
	}
	if t.Message == "" {
		t.Message = e.killedBy(a.ID)
	}
	return t
}
