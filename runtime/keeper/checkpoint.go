//go:build cgo

package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

const (
	// criuConfig, in a container's folder, adds to what libcontainer tells CRIU.
	criuConfig = "criu.conf"
	// criuLabel is the annotation by which libcontainer finds that file. A pod's author must not name another.
	criuLabel = "org.criu.config"
	// criuErrors bounds what is quoted of CRIU's log.
	criuErrors = 5
)

// serveCheckpoint freezes containers, has CRIU write their processes to folders,
// answers, and lets them run again when the client closes its end: until then their
// files stay as their memory knows them. They go on whatever fails, and no answer
// that is the last leaves before that.
func (k *Keeper) serveCheckpoint(c *call) error {
	var r runtime.CheckpointRequest
	err := c.decode(&r)
	if err != nil {
		return c.reply(nil, err)
	}
	gone := c.hungUp()
	resume, err := k.freezeAll(r.Targets)
	if err == nil {
		err = k.dumpAll(r.Targets, gone)
	}
	if err == nil {
		if err = c.reply(nil, nil); err == nil {
			<-gone
		}
	}
	if resumeErr := resume(); resumeErr != nil {
		k.log.Error("let containers run again after their checkpoint", "err", resumeErr)
		err = errors.Join(err, resumeErr)
	}
	if err := c.reply(nil, err); err != nil {
		return err
	}
	return errDone
}

// freezeAll freezes every container, or none; resume, never nil, ends that.
func (k *Keeper) freezeAll(targets []runtime.CheckpointTarget) (resume func() error, err error) {
	var frozen []*libcontainer.Container
	resume = func() error {
		var errs []error
		for _, lc := range frozen {
			errs = append(errs, lc.Resume())
		}
		return errors.Join(errs...)
	}
	for _, t := range targets {
		c, err := k.container(t.ID)
		if err != nil {
			return resume, err
		}
		lc, pid, err := c.dumpable()
		if err == nil {
			waitForProgram(pid)
			if err = lc.Pause(); err != nil {
				_ = lc.Resume() // it may be frozen in part
			}
		}
		if err != nil {
			return resume, fmt.Errorf("checkpoint container %q: freeze: %w", t.ID, err)
		}
		frozen = append(frozen, lc)
	}
	return resume, nil
}

// dumpAll ends early when the client is gone.
func (k *Keeper) dumpAll(targets []runtime.CheckpointTarget, gone <-chan struct{}) error {
	for _, t := range targets {
		select {
		case <-gone:
			return errors.New("the client has given up")
		default:
		}
		c, err := k.container(t.ID)
		if err == nil {
			err = c.dump(t.Dir)
		}
		if err != nil {
			return fmt.Errorf("checkpoint container %q: %w", t.ID, err)
		}
	}
	return nil
}

// dumpable refuses what CRIU cannot be asked for.
func (c *container) dumpable() (lc *libcontainer.Container, pid int, err error) {
	if err := needCRIU(); err != nil {
		return nil, 0, err
	}
	<-c.parked
	c.mu.Lock()
	engine, status, pid := c.engine, c.state.Status, c.state.Pid
	c.mu.Unlock()
	if engine == nil || status != runtime.Running {
		return nil, 0, fmt.Errorf("it is %s: %w", status, runtime.ErrState)
	}
	made, ok := engine.(library)
	if !ok {
		return nil, 0, fmt.Errorf("it runs under a runtime handler, only the built-in runtime makes checkpoints: %w", runtime.ErrState)
	}
	return made.lc, pid, nil
}

// dump writes the frozen container's processes and memory below dir.
func (c *container) dump(dir string) error {
	lc, pid, err := c.dumpable()
	if err == nil {
		err = c.writeCriuConfig(pid)
	}
	if err != nil {
		return err
	}
	err = lc.Checkpoint(&libcontainer.CriuOpts{
		ImagesDirectory: filepath.Join(dir, "checkpoint"), WorkDirectory: dir, LeaveRunning: true,
		TcpEstablished: true, FileLocks: true, ManageCgroupsMode: "ignore",
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, criuComplaint(filepath.Join(dir, "dump.log")))
	}
	return nil
}

// waitForProgram returns when the process of a container that was just started has
// become its program: until then it is libcontainer's, a file that CRIU cannot
// find. One that has such a name of its own costs the whole time.
func waitForProgram(pid int) {
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil || !bytes.HasPrefix(name, []byte("runc:[")) {
			return
		}
	}
}

// writeCriuConfig tells CRIU of the container's streams: they are FIFOs outside of
// its root, so CRIU must leave them to whoever restores it.
func (c *container) writeCriuConfig(pid int) error {
	var text strings.Builder
	said := map[string]bool{}
	for fd := range 3 {
		link := fmt.Sprintf("/proc/%d/fd/%d", pid, fd)
		target, err := os.Readlink(link)
		if err != nil || filepath.Dir(target) != c.dir {
			continue // closed, or something in the container
		}
		var st unix.Stat_t
		if err := unix.Stat(link, &st); err != nil {
			return fmt.Errorf("look at stream %d: %w", fd, err)
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
		if err != nil {
			return fmt.Errorf("look at stream %d: %w", fd, err)
		}
		line := fmt.Sprintf("external file[%x:%x]\n", statusNumber(info, "mnt_id:"), st.Ino)
		if !said[line] {
			text.WriteString(line)
		}
		said[line] = true
	}
	if err := os.WriteFile(c.file(criuConfig), []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("write CRIU's settings: %w", err)
	}
	return nil
}

// statusNumber is the number behind a field of a file as /proc/PID/fdinfo/N; 0 without it.
func statusNumber(data []byte, field string) (n int) {
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte(field)); ok {
			_, _ = fmt.Sscan(string(rest), &n)
		}
	}
	return n
}

// criuComplaint is the end of what CRIU calls errors in its log.
func criuComplaint(log string) string {
	data, err := os.ReadFile(log)
	if errors.Is(err, os.ErrNotExist) {
		return "it has written no log"
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, "Error") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines[max(0, len(lines)-criuErrors):], "; ")
}
