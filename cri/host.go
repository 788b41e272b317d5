package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pausa-run/pausa/pod"
)

// hostFacts is what a container's request is checked against on this host.
type hostFacts struct {
	selinux bool
}

func readHostFacts() hostFacts {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return hostFacts{selinux: err == nil}
}

// settle does what needs the host: it follows the symlinks of mount sources and
// reads profiles. A path on a dead network mount may hang for ever, so it gives
// up with ctx and names what it waited for.
func (h hostFacts) settle(ctx context.Context, cfg *pod.ContainerConfig, logDir string, relabel int) error {
	type answer struct {
		cfg pod.ContainerConfig
		err error
	}
	done := make(chan answer, 1)
	own := *cfg
	own.Mounts = append(own.Mounts[:0:0], cfg.Mounts...)
	go func() {
		err := h.settleNow(&own, logDir, relabel)
		done <- answer{own, err}
	}()
	select {
	case a := <-done:
		*cfg = a.cfg
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("look at the mounts and profiles of container %s on the host: %w", cfg.Name, ctx.Err())
	}
}

func (h hostFacts) settleNow(cfg *pod.ContainerConfig, logDir string, relabel int) error {
	for i := range cfg.Mounts {
		m := &cfg.Mounts[i]
		if m.Image != "" {
			continue // its source is a path in the image
		}
		source, err := filepath.EvalSymlinks(m.Source)
		if err != nil {
			return invalid(fmt.Sprintf("config.mounts[%d].host_path", i), "%v: create it first", err)
		}
		m.Source = source
	}
	for i, d := range cfg.Devices {
		st, err := os.Stat(d.HostPath)
		if err != nil {
			return invalid(fmt.Sprintf("config.devices[%d].host_path", i), "%v", err)
		}
		if st.Mode()&os.ModeDevice == 0 {
			return invalid(fmt.Sprintf("config.devices[%d].host_path", i), "%s is not a device", d.HostPath)
		}
	}
	if relabel >= 0 && h.selinux {
		return invalid(fmt.Sprintf("config.mounts[%d].selinux_relabel", relabel), "relabelling is not supported: label the path on the host")
	}
	if !h.selinux {
		cfg.Security.SELinuxLabel = "" // nothing enforces it here, and the kernel would refuse it
	}
	if err := settleSeccomp(cfg); err != nil {
		return err
	}
	return checkLogPath(logDir, cfg.LogPath)
}

// settleSeccomp reads a profile of the host's into the request.
func settleSeccomp(cfg *pod.ContainerConfig) error {
	const field = "config.linux.security_context.seccomp.localhost_ref"
	name, ok := strings.CutPrefix(cfg.Security.Seccomp, localhost)
	if !ok {
		return nil
	}
	raw, err := pod.ReadSeccompProfile(name)
	if errors.Is(err, pod.ErrInvalid) {
		return invalid(field, "%s", strings.TrimPrefix(err.Error(), pod.ErrInvalid.Error()+": "))
	}
	if err != nil {
		return err
	}
	cfg.Security.SeccompProfile = raw
	return nil
}

// checkLogPath refuses a log that would be written through a symlink below the
// pod's log directory; the keeper's own open refuses it again.
func checkLogPath(dir, rel string) error {
	if dir == "" || rel == "" {
		return nil
	}
	p := dir
	for part := range strings.SplitSeq(filepath.Clean(rel), "/") {
		p = filepath.Join(p, part)
		st, err := os.Lstat(p)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return invalid("config.log_path", "%v", err)
		}
		if st.Mode()&os.ModeSymlink != 0 {
			return invalid("config.log_path", "%s is a symlink", p)
		}
	}
	return nil
}
