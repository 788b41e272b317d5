package pod

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/runtime"
)

// execOutputLimit is how much of each of stdout and stderr ExecSync keeps; the rest is read and dropped.
const execOutputLimit = 16 << 20

// running returns a running container's id and the keeper.
func (m *Manager) running(id string) (string, Runtime, error) {
	c, err := m.Container(id)
	if err != nil {
		return "", nil, err
	}
	if c.Status != runtime.Running {
		return "", nil, fmt.Errorf("%w: container %s (%s) %s", ErrState, c.Config.Name, c.ID, stateText(c))
	}
	rt, err := m.runtime()
	return c.ID, rt, err
}

// stateText says why a container that is not running is not.
func stateText(c Container) string {
	switch {
	case c.Exit == nil:
		return "is created but not started"
	case c.Exit.StartError != "":
		return "could not be started: " + c.Exit.StartError
	}
	return fmt.Sprintf("is not running: it ended with exit code %d at %s", c.Exit.Code, c.Exit.FinishedAt.Format(time.RFC3339))
}

// Exec runs one more process in a running container and returns its exit code.
// When ctx ends, the process and its children get SIGHUP, then SIGKILL.
func (m *Manager) Exec(ctx context.Context, id string, spec runtime.ExecSpec, stdio runtime.Stdio) (int, error) {
	id, rt, err := m.running(id)
	if err != nil {
		return 0, err
	}
	spec.ContainerID = id
	if spec.ExecID == "" {
		spec.ExecID = newID()[:16]
	}
	code, err := rt.Exec(ctx, spec, stdio)
	return code, keeperErr(err)
}

// ExecSync runs a command and returns its output, 16 MiB of each stream at most.
// After timeout (0 is none) the process tree is killed and the error wraps
// context.DeadlineExceeded.
func (m *Manager) ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (stdout, stderr []byte, code int, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var out, errOut capped
	code, err = m.Exec(ctx, id, runtime.ExecSpec{Args: args}, runtime.Stdio{Stdout: &out, Stderr: &errOut})
	if ctx.Err() != nil {
		err = fmt.Errorf("command %q did not end within %s: %w", strings.Join(args, " "), timeout, ctx.Err())
	}
	return out.kept.Bytes(), errOut.kept.Bytes(), code, err
}

// capped keeps the first execOutputLimit bytes of what is written to it. The
// buffer is not embedded: io.Copy would go around Write by its ReadFrom.
type capped struct{ kept bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	c.kept.Write(p[:min(len(p), execOutputLimit-c.kept.Len())])
	return len(p), nil
}

// Attach joins a container's own input and output until it ends or ctx does.
func (m *Manager) Attach(ctx context.Context, id string, stdio runtime.Stdio) error {
	id, rt, err := m.running(id)
	if err != nil {
		return err
	}
	return keeperErr(rt.Attach(ctx, id, stdio))
}

// Resize sets the size of a terminal: the container's own (execID "") or an exec's.
func (m *Manager) Resize(ctx context.Context, id, execID string, width, height uint16) error {
	id, rt, err := m.running(id)
	if err != nil {
		return err
	}
	return keeperErr(rt.Resize(ctx, id, execID, width, height))
}

// Wait blocks until the container has exited.
func (m *Manager) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	c, err := m.container(id)
	if err != nil {
		return runtime.Exit{}, err
	}
	if v, err := m.Container(c.rec.ID); err == nil && v.Exit != nil {
		return *v.Exit, nil
	}
	rt, err := m.runtime()
	if err != nil {
		return runtime.Exit{}, err
	}
	exit, err := rt.Wait(ctx, c.rec.ID)
	if err != nil {
		return exit, keeperErr(err)
	}
	c.op.Lock()
	defer c.op.Unlock()
	m.noteExit(c, exit)
	return exit, nil
}

// WritableUsage is what a container wrote above its image.
func (m *Manager) WritableUsage(ctx context.Context, id string) (images.Usage, error) {
	c, err := m.Container(id)
	if err != nil {
		return images.Usage{}, err
	}
	return m.opts.Images.WritableUsage(ctx, c.ID)
}

// ReopenLog makes the keeper write a container's log to a new file of the old name, after a rotation.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	id, rt, err := m.running(id)
	if err != nil {
		return err
	}
	return keeperErr(rt.ReopenLog(ctx, id))
}

// PortForward connects stream to a port of the pod: on 127.0.0.1, else ::1, else
// the pod's own address. It returns when either side is done. Only a connection
// that could not be made is an error: how one ends, be it by a reset, concerns its
// two ends alone, and a kubectl gives up all others of a forward when it is told of one.
func (m *Manager) PortForward(ctx context.Context, podID string, port uint16, stream io.ReadWriteCloser) error {
	p, err := m.Pod(podID)
	if err != nil {
		return err
	}
	if !p.Ready {
		return fmt.Errorf("forward to pod %s: it is not ready: %w", p.ID, ErrState)
	}
	conn, err := dialPod(ctx, p, port)
	if err != nil {
		return fmt.Errorf("forward to port %d of pod %s/%s: %w", port, p.Config.Namespace, p.Config.Name, err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.Copy(conn, stream)
		_ = conn.CloseWrite()
	}()
	_, _ = io.Copy(stream, conn)
	_ = stream.Close()
	select {
	case <-sent:
	case <-time.After(time.Second): // the client's half may stay open for ever
	}
	return nil
}
