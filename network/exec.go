package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/thread"
	"github.com/pausa-run/pausa/network/bridge"
)

const (
	// inProcess stands for the path of the built-in plugin.
	inProcess = "pausa (in process)"
	// maxStderr is how much of what a plugin says goes into an error.
	maxStderr = 2048
)

// executor is libcni's way to run plugins: "pausa" by a call, the others as
// processes in the host's network namespace.
type executor struct {
	version.PluginDecoder
	plugin *bridge.Plugin
	hostNS *os.File
}

func newExecutor(p *bridge.Plugin) (*executor, error) {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &executor{plugin: p, hostNS: ns}, nil
}

func (e *executor) close() error { return e.hostNS.Close() }

// FindInPath implements invoke.Exec.
func (e *executor) FindInPath(plugin string, paths []string) (string, error) {
	if plugin == bridge.Type {
		return inProcess, nil
	}
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin implements invoke.Exec.
func (e *executor) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	env := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v // as for a process, the last one counts
	}
	if path != inProcess {
		return e.run(ctx, path, stdin, environ, env["CNI_COMMAND"])
	}
	if env["CNI_COMMAND"] == "VERSION" {
		return nil, errors.New("version of the built-in plugin: not asked for by libcni")
	}
	return e.plugin.Run(ctx, bridge.Request{
		Command: env["CNI_COMMAND"], ContainerID: env["CNI_CONTAINERID"], NetNS: env["CNI_NETNS"],
		IfName: env["CNI_IFNAME"], Args: env["CNI_ARGS"], Stdin: stdin,
	})
}

// run executes a plugin. When ctx ends, the plugin is killed with all that it
// has started.
func (e *executor) run(ctx context.Context, path string, stdin []byte, environ []string, command string) ([]byte, error) {
	var out, errOut bytes.Buffer
	var err error
	for try := range 5 {
		cmd := exec.CommandContext(ctx, path)
		out.Reset()
		errOut.Reset()
		cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &out, &errOut
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
		cmd.WaitDelay = time.Second // a child of the plugin that left the group may hold its output
		err = e.start(cmd)
		if err == nil {
			err = cmd.Wait()
		}
		if !errors.Is(err, unix.ETXTBSY) {
			break
		}
		time.Sleep(time.Duration(try+1) * 50 * time.Millisecond) // it is being written
	}
	if err == nil {
		return out.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("run %s %s: %w%s", path, command, ctx.Err(), tail(errOut.Bytes()))
	}
	return nil, pluginError(path, command, err, out.Bytes(), errOut.Bytes())
}

// start forks in the host's network namespace, whatever thread it is called on.
func (e *executor) start(cmd *exec.Cmd) error {
	return thread.InNetNS(int(e.hostNS.Fd()), cmd.Start)
}

// pluginError reads CNI's error object from standard output; what a plugin
// wrote to standard error is only added for people.
func pluginError(path, command string, err error, stdout, stderr []byte) error {
	var e types.Error
	if json.Unmarshal(stdout, &e) == nil && (e.Msg != "" || e.Code != 0) {
		if t := tail(stderr); t != "" && e.Details == "" {
			e.Details = strings.TrimPrefix(t, "; ")
		}
		return &e
	}
	return fmt.Errorf("run %s %s: %w%s%s", path, command, err, tail(stdout), tail(stderr))
}

// tail is the end of a plugin's output as the end of an error.
func tail(b []byte) string {
	b = bytes.TrimSpace(b)
	if len(b) > maxStderr {
		b = b[len(b)-maxStderr:]
	}
	if len(b) == 0 {
		return ""
	}
	return "; it said: " + strings.ToValidUTF8(string(b), "?")
}
