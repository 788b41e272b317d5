//go:build cgo

package keeper

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/pausa-run/pausa/runtime"
)

var errUnrestored = errors.New("it was ended before it was restored")

// checkRestore refuses at once what could not be started.
func checkRestore(spec runtime.ContainerSpec) error {
	switch {
	case spec.Program != nil:
		return fmt.Errorf("it runs under a runtime handler, only the built-in runtime restores: %w", runtime.ErrState)
	case spec.Spec.Process.Terminal:
		return fmt.Errorf("it has a terminal, which no checkpoint holds: %w", runtime.ErrState)
	case !filepath.IsAbs(spec.Restore.Dir):
		return fmt.Errorf("folder %q: an absolute path is needed", spec.Restore.Dir)
	}
	return needCRIU()
}

func needCRIU() error {
	if _, err := exec.LookPath("criu"); err != nil {
		return fmt.Errorf("criu is not in the keeper's PATH: install the package criu, and see what 'criu check' says: %w", runtime.ErrNoCRIU)
	}
	return nil
}

// startRestored has CRIU bring the container's processes back; the caller has claimed the start.
func (k *Keeper) startRestored(c *container) (runtime.ContainerState, error) {
	err := k.restore(c)
	if err != nil {
		c.io.abandon()
		k.failStart(c, err)
		return c.snapshot(), fmt.Errorf("start container %q: %w", c.id, err)
	}
	k.enterPodMemory(c)
	c.mu.Lock()
	c.state.Status, c.state.StartedAt = runtime.Running, time.Now()
	err = c.save()
	c.mu.Unlock()
	go k.watch(c)
	k.holdChanged(c)
	if err != nil {
		_ = c.proc.signal(unix.SIGKILL)
		<-c.done
		return c.snapshot(), fmt.Errorf("start container %q: %w", c.id, err)
	}
	return c.snapshot(), nil
}

// endUnrestored ends a container that waits for its start, and whose processes are nowhere yet.
func (k *Keeper) endUnrestored(c *container, sig unix.Signal) error {
	if c.request.Restore == nil || sig != unix.SIGKILL || c.claimRelease() != nil {
		return nil
	}
	c.io.abandon()
	k.finish(c, runtime.Exit{ID: c.id, Code: 128 + int(sig), Signal: int(sig)})
	close(c.cleaned)
	return nil
}

// unstarted is why a container that is removed has never run.
func (c *container) unstarted() error {
	if c.parkError == nil {
		return errUnrestored
	}
	return c.parkError
}

// restore is startLibrary with the processes of images instead of an init.
func (k *Keeper) restore(c *container) (err error) {
	if err := needCRIU(); err != nil {
		return err
	}
	spec := c.request.Spec
	k.adapt(spec)
	c.systemd = systemdPath(spec.Linux.CgroupsPath)
	lc, err := k.createLibrary(c)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = lc.Signal(unix.SIGKILL)
			err = errors.Join(err, lc.Destroy())
		}
	}()
	state, err := lc.State()
	if err != nil {
		return err
	}
	if err := c.writeRestoreFiles(state.CgroupPaths[""]); err != nil {
		return err
	}
	if err := k.writeFilter(c, lc.Config().Seccomp); err != nil {
		return err
	}
	process := ociProcess(spec.Process)
	process.Init = true
	if err := k.withStreams(c, func(s streams) (*os.File, error) { return nil, c.runCRIU(lc, process, s) }); err != nil {
		return err
	}
	pid, err := process.Pid()
	if err != nil {
		return err
	}
	if err = k.checkRestored(c, pid); err == nil {
		state, err = lc.State()
	}
	if err == nil {
		err = k.parkedInit(c, library{lc}, state.CgroupPaths, pid)
	}
	if err != nil {
		killAndReap(pid)
	}
	return err
}

// runCRIU calls CRIU from a thread of its own, as some of what a process may never
// get back is inherited from there: CRIU restores no no_new_privs before version 4.
func (c *container) runCRIU(lc *libcontainer.Container, process *libcontainer.Process, s streams) error {
	setStreams(process, s)
	mode := "ignore"
	if _, err := os.Stat(filepath.Join(c.request.Restore.Dir, cgroupImage)); err == nil {
		mode = "soft"
	}
	work := c.file("restore")
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if c.request.Spec.Process.NoNewPrivileges {
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				done <- fmt.Errorf("set no_new_privs: %w", err)
				return
			}
		}
		done <- lc.Restore(process, &libcontainer.CriuOpts{
			ImagesDirectory: c.request.Restore.Dir, WorkDirectory: work, FileLocks: true, ManageCgroupsMode: mode,
		})
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("%w: %s", err, criuComplaint(filepath.Join(work, "restore.log")))
	}
	return nil
}

const (
	cgroupImage       = "cgroup.img"
	seccompImage      = "seccomp.img"
	descriptorsFile   = "descriptors.json"
	imageMagic        = 0x54564319
	cgroupImageMagic  = 0x59383330
	seccompImageMagic = 0x64413049
)

// writeRestoreFiles puts beside the images what is not theirs to say: the streams,
// and with cgroup v2 the group, which becomes the root of a cgroup namespace.
func (c *container) writeRestoreFiles(group string) error {
	dir := c.request.Restore.Dir
	var streams []string
	for _, name := range []string{"stdin", "stdout", "stderr"} {
		streams = append(streams, runtime.RestoredStream(name))
	}
	names, err := json.Marshal(streams)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, descriptorsFile), names, 0o600)
	}
	if err == nil {
		err = os.WriteFile(c.file(criuConfig), nil, 0o600) // nobody else's settings
	}
	if err == nil && group != "" && hasCgroupNamespace(c.request.Spec) {
		err = os.WriteFile(filepath.Join(dir, cgroupImage), cgroupImageOf(strings.TrimPrefix(group, "/sys/fs/cgroup")), 0o600)
	} else if err == nil {
		err = os.RemoveAll(filepath.Join(dir, cgroupImage))
	}
	if err != nil {
		return fmt.Errorf("complete the images: %w", err)
	}
	return nil
}

// writeFilter makes the request's seccomp filter that of the images' processes.
func (k *Keeper) writeFilter(c *container, profile *configs.Seccomp) error {
	if profile == nil {
		return nil
	}
	if profile.ListenerPath != "" {
		return fmt.Errorf("a seccomp profile with a listener cannot be restored: %w", runtime.ErrState)
	}
	data, err := json.Marshal(profile)
	if err != nil {
		return err
	}
	program, err := compiledFilter(context.Background(), data)
	if err != nil {
		return fmt.Errorf("compile the seccomp profile: %w", err)
	}
	filter := appendField(nil, 1, appendField(nil, 1, program)) // seccomp_filters, filter
	if err := os.WriteFile(filepath.Join(c.request.Restore.Dir, seccompImage), image(seccompImageMagic, filter), 0o600); err != nil {
		return fmt.Errorf("complete the images: %w", err)
	}
	return nil
}

// cgroupImageOf is CRIU's image of one set of groups that is all of cgroup v2's path.
func cgroupImageOf(path string) []byte {
	member := appendNumber(appendField(appendField(nil, 1, nil), 2, []byte(path)), 3, len(path)) // name, path, cgns_prefix
	set := appendField(appendNumber(nil, 1, runtime.RestoredGroups), 2, member)                  // id, ctls
	controller := appendField(nil, 1, nil)                                                       // cnames
	return image(cgroupImageMagic, appendField(appendField(nil, 1, set), 2, controller))         // sets, controllers
}

func appendField(to []byte, number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(to, number, protowire.BytesType), value)
}

func appendNumber(to []byte, number protowire.Number, value int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(to, number, protowire.VarintType), uint64(value))
}

// image is one of CRIU's with one entry.
func image(magic uint32, entry []byte) []byte {
	var out []byte
	for _, word := range []uint32{imageMagic, magic, uint32(len(entry))} {
		out = binary.LittleEndian.AppendUint32(out, word)
	}
	return append(out, entry...)
}
