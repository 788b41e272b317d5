package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// errStopped: the daemon ended before it answered.
var errStopped = errors.New("the daemon stopped")

// Serve starts the daemon with further arguments and waits until it answers.
func (h *Host) Serve(args ...string) error {
	if err := h.Launch(args...); err != nil {
		return err
	}
	return h.WaitReady(2 * time.Minute) // an emulated machine may need half of it
}

// Launch starts the daemon and does not wait.
func (h *Host) Launch(args ...string) error {
	cmd := h.Command(context.Background(), slices.Concat(h.Starter, h.ServeArgs(), args)...)
	cmd.Env = append(append(os.Environ(), "PAUSA_CGROUP_PARENT="+h.CgroupParent), h.Env...)
	cmd.Stdout, cmd.Stderr = h.log, h.log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon of host %s: %w", h.Name, err)
	}
	h.daemon = cmd
	return nil
}

// ServeArgs is the command line of the daemon.
func (h *Host) ServeArgs() []string {
	return []string{filepath.Join(h.Bin, "pausa"), "serve", "--state", h.StateDir, "--run", RunDir, "--socket", Socket}
}

// WaitReady returns when the daemon answers.
func (h *Host) WaitReady(limit time.Duration) error {
	gone := make(chan struct{})
	daemon := h.daemon
	go func() {
		_ = daemon.Wait()
		close(gone)
	}()
	conn, err := h.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		_, err = pausav1.NewPausaClient(conn).Info(ctx, &pausav1.InfoRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-gone:
			h.daemon = nil
			return fmt.Errorf("%w: %s", errStopped, h.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer: %w: %s", err, h.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Dial connects to the daemon's socket.
func (h *Host) Dial() (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+h.Path(Socket), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		return nil, fmt.Errorf("dial host %s: %w", h.Name, err)
	}
	return conn, nil
}

// LogTail is the end of the daemon's log.
func (h *Host) LogTail() string {
	raw, _ := os.ReadFile(h.log.Name())
	return string(raw[max(0, len(raw)-3000):])
}

// KillDaemon sends a signal to the daemon and waits until it is gone.
func (h *Host) KillDaemon(sig syscall.Signal) error { return h.Kill("pausa", "serve", sig) }

// KillKeeper sends a signal to the keeper and waits until it is gone.
func (h *Host) KillKeeper(sig syscall.Signal) error { return h.Kill("pausa-keeper", "", sig) }

// Kill sends a signal to the processes of a name whose command line holds arg, and waits until they are gone.
func (h *Host) Kill(comm, arg string, sig syscall.Signal) error {
	procs, err := h.Processes()
	if err != nil {
		return err
	}
	for _, p := range procs {
		if p.Comm != comm || !strings.Contains(p.Cmdline, arg) {
			continue
		}
		if err := syscall.Kill(p.OuterPid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill %s of host %s: %w", comm, h.Name, err)
		}
		if err := h.waitGone(p); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) waitGone(p Process) error {
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		st, err := os.ReadFile(h.Path("/proc/" + strconv.Itoa(p.Pid) + "/stat"))
		if err != nil || bytes.Contains(st, []byte(") Z ")) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("%s (pid %d) of host %s is still there", p.Comm, p.Pid, h.Name)
}

// CLI runs bin/pausa with the host's socket; stdin may be "".
func (h *Host) CLI(stdin string, args ...string) (stdout, stderr string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := h.CLICommand(ctx, args...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		return out.String(), errOut.String() + err.Error(), -1
	}
	return out.String(), errOut.String(), code
}

// CLICommand is bin/pausa with the host's socket, not yet started.
func (h *Host) CLICommand(ctx context.Context, args ...string) *exec.Cmd {
	return h.Command(ctx, append([]string{filepath.Join(h.Bin, "pausa"), "--socket", Socket}, args...)...)
}
