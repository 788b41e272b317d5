// Package host makes Linux hosts to test in: network, mount, PID, UTS and
// IPC namespaces of their own, with a /run of their own, a temporary state folder
// and an own parent cgroup. Everything in a host ends with it; nothing in it
// reaches the machine's own network.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Paths inside a host.
const (
	RunDir = "/run/pausa"
	Socket = RunDir + "/pausa.sock"
)

// Host is one host. Its methods are not safe for concurrent use, but Command's results are.
type Host struct {
	Name         string
	Dir          string // temporary folder of the host, seen inside and outside by the same path
	StateDir     string
	CgroupParent string
	Bin          string   // folder of the built binaries
	Env          []string // added to the environment of the daemon
	Starter      []string // a command that starts the daemon, whose command line comes after it

	init   *exec.Cmd
	alive  io.Closer // init ends when this is closed
	daemon *exec.Cmd
	log    *os.File
}

// Start makes a host. The caller's program must call Main first. Bin is the
// absolute folder that holds pausa and pausa-keeper.
func Start(name, bin string) (_ *Host, err error) {
	dir, err := os.MkdirTemp("", "pausa-"+name+"-")
	if err != nil {
		return nil, fmt.Errorf("make the folder of host %s: %w", name, err)
	}
	h := &Host{
		Name: name, Dir: dir, StateDir: filepath.Join(dir, "state"), Bin: bin,
		CgroupParent: "/" + filepath.Base(dir),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	// Pods look through these folders as other users do.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open the folder of host %s: %w", name, err)
	}
	if h.log, err = os.OpenFile(filepath.Join(dir, "daemon.log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		return nil, fmt.Errorf("open the log of host %s: %w", name, err)
	}
	return h, h.startInit()
}

// Here is this machine itself, for tests that have a VM to themselves. The
// caller starts the daemon, with the socket at Socket; Close ends nothing.
func Here(name, bin string) (*Host, error) {
	dir, err := os.MkdirTemp("", "pausa-"+name+"-")
	if err != nil {
		return nil, fmt.Errorf("make the folder of host %s: %w", name, err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "daemon.log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of host %s: %w", name, err)
	}
	return &Host{Name: name, Dir: dir, Bin: bin, log: log}, nil
}

// startInit starts the process 1 of the host and waits until it has set everything up.
func (h *Host) startInit() error {
	stdin, alive, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer stdin.Close()
	h.alive = alive
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{initName}
	cmd.Env = append(os.Environ(), "PAUSA_HOST_NAME="+h.Name)
	cmd.Stdin, cmd.Stderr = stdin, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Setsid:     true,
	}
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start init of host %s: %w", h.Name, err)
	}
	h.init = cmd
	if said, err := io.ReadAll(ready); err != nil || string(said) != "ready" {
		return fmt.Errorf("init of host %s said %q: %w", h.Name, said, errors.Join(err, errors.New("not ready")))
	}
	return nil
}

// Pid is the host's process 1 as the caller sees it.
func (h *Host) Pid() int {
	if h.init == nil {
		return 1
	}
	return h.init.Process.Pid
}

// Path turns an absolute path inside the host into one for the caller.
func (h *Host) Path(inside string) string {
	return "/proc/" + strconv.Itoa(h.Pid()) + "/root" + inside
}

// Command is a command inside the host; paths among its arguments must be absolute.
// A cancelled ctx ends only the helper that waits for it; the host's end ends the command.
func (h *Host) Command(ctx context.Context, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(h.Pid()), "--net", "--mount", "--pid", "--uts", "--ipc", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Output runs a command inside the host and returns what it wrote to its standard output.
func (h *Host) Output(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := h.Command(ctx, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s on host %s: %w: %s", strings.Join(args, " "), h.Name, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// Close ends every process of the host and removes its folders and cgroups.
func (h *Host) Close() error {
	var errs []error
	if h.alive != nil {
		errs = append(errs, h.alive.Close())
	}
	if h.init != nil && h.init.Process != nil {
		if err := h.init.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("end host %s: %w", h.Name, err))
		}
		_ = h.init.Wait() // it was killed: that is no error
	}
	if h.daemon != nil {
		_ = h.daemon.Wait()
	}
	if h.log != nil {
		errs = append(errs, h.log.Close())
	}
	if h.CgroupParent != "" {
		errs = append(errs, removeCgroups(h.CgroupParent))
	}
	errs = append(errs, os.RemoveAll(h.Dir))
	return errors.Join(errs...)
}

// Join lays a cable between two hosts: a link with addresses 10.253.N.1 on a and
// 10.253.N.2 on b (prefix 24), and the same in fd53:N::/64.
func Join(a, b *Host, n int) error {
	link := fmt.Sprintf("cable%d", n)
	if err := a.link("add", link, "type", "veth", "peer", "name", link, "netns", strconv.Itoa(b.Pid())); err != nil {
		return err
	}
	for i, h := range []*Host{a, b} {
		if err := h.connect(link, n, i+1); err != nil {
			return err
		}
	}
	return nil
}

// Segment puts hosts on one network: each has a link segmentN with the addresses
// 10.253.N.I (prefix 24) and fd53:N::I/64, I from 1 in their order.
func Segment(n int, hosts ...*Host) error {
	name, hub := fmt.Sprintf("segment%d", n), hosts[0]
	if err := hub.link("add", name, "type", "bridge"); err != nil {
		return err
	}
	for i, h := range hosts {
		if h != hub {
			port := fmt.Sprintf("port%d", i+1)
			err := hub.link("add", port, "type", "veth", "peer", "name", name, "netns", strconv.Itoa(h.Pid()))
			if err == nil {
				err = hub.link("set", port, "master", name, "up")
			}
			if err != nil {
				return err
			}
		}
		if err := h.connect(name, n, i+1); err != nil {
			return err
		}
	}
	return nil
}

// connect gives a link its addresses and brings it up.
func (h *Host) connect(link string, n, i int) error {
	for _, addr := range []string{fmt.Sprintf("10.253.%d.%d/24", n, i), fmt.Sprintf("fd53:%d::%d/64", n, i)} {
		if err := h.ip("addr", "add", addr, "dev", link, "nodad"); err != nil {
			return err
		}
	}
	return h.link("set", link, "up")
}

func (h *Host) link(args ...string) error { return h.ip(append([]string{"link"}, args...)...) }

// ip runs the program of that name in the host's network alone: pids in the arguments are the caller's.
func (h *Host) ip(args ...string) error {
	cmd := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(h.Pid()), "--net", "--", "ip"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s on host %s: %w: %s", strings.Join(args, " "), h.Name, err, out)
	}
	return nil
}
