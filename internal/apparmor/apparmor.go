// Package apparmor loads the default profile of containers into the kernel,
// and turns what a container asks for into the name of a loaded profile.
package apparmor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// What can be asked for, besides "" and Localhost with a name behind it.
const (
	RuntimeDefault = "runtime/default"
	Unconfined     = "unconfined"
	Localhost      = "localhost/"
)

// Errors that Resolve wraps.
var (
	// ErrOff: the kernel has no AppArmor, or it is not on.
	ErrOff = errors.New("AppArmor is not enabled on this host")
	// ErrNotLoaded: the kernel has no profile of that name.
	ErrNotLoaded = errors.New("not loaded")
)

// Host is what this host's kernel knows of AppArmor.
type Host struct {
	enabled  string // file that says Y
	profiles string // file that lists what is loaded
	parsers  []string
	// failed is why the default profile could not be loaded; nil when it was, or AppArmor is off.
	failed error
}

// Open loads the default profile if AppArmor is on. That it cannot is no error
// of Open: Problem tells it, and containers that ask for the profile hear it.
func Open(ctx context.Context) *Host {
	h := &Host{
		enabled: "/sys/module/apparmor/parameters/enabled", profiles: "/sys/kernel/security/apparmor/profiles",
		parsers: []string{"/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"},
	}
	h.load(ctx)
	return h
}

// Enabled says whether the kernel confines by AppArmor.
func (h *Host) Enabled() bool {
	said, err := os.ReadFile(h.enabled)
	if err != nil || !bytes.HasPrefix(said, []byte("Y")) {
		return false
	}
	_, err = os.Stat(filepath.Dir(h.profiles)) // securityfs may not be mounted: nothing can be applied then
	return err == nil
}

// Problem is why containers do not get the default profile on a host that has
// AppArmor; nil where they do, and where there is no AppArmor.
func (h *Host) Problem() error { return h.failed }

// State tells in a few words whether profiles work here.
func (h *Host) State() string {
	switch {
	case !h.Enabled():
		return "off"
	case h.failed != nil:
		return "on, without default profile: " + h.failed.Error()
	default:
		return "on"
	}
}

func (h *Host) load(ctx context.Context) {
	if !h.Enabled() {
		return
	}
	if h.failed = h.parse(ctx); h.failed != nil {
		if loaded, err := h.loaded(Profile); err == nil && loaded {
			h.failed = nil // somebody has brought it, as by a package
		}
	}
}

// parse has the host's parser compile and load the default profile; one of an
// earlier version is replaced, and containers under it go on with the new one.
func (h *Host) parse(ctx context.Context) error {
	at := slices.IndexFunc(h.parsers, func(p string) bool {
		_, err := os.Stat(p)
		return err == nil
	})
	if at < 0 {
		return fmt.Errorf("apparmor_parser is missing: install the package apparmor")
	}
	cmd := exec.CommandContext(ctx, h.parsers[at], "--replace", "--skip-cache", "--quiet")
	cmd.Stdin = strings.NewReader(profile)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %w: %.1000s", Profile, err, bytes.TrimSpace(out))
	}
	return nil
}

// Resolve turns what a container asks for ("" is the default where there is
// one) into the name of a loaded profile, or "" for none.
func (h *Host) Resolve(want string) (string, error) {
	enabled := h.Enabled()
	switch {
	case want == Unconfined && enabled:
		return Unconfined, nil
	case want == Unconfined, !enabled && (want == "" || want == RuntimeDefault):
		return "", nil // the default of a host without AppArmor is none
	case !enabled:
		return "", fmt.Errorf("AppArmor profile %s: %w", want, ErrOff)
	case want == "" && h.failed != nil:
		return "", nil // nobody asked for it
	case want == RuntimeDefault && h.failed != nil:
		return "", fmt.Errorf("AppArmor profile %s: %w: %w", want, ErrNotLoaded, h.failed)
	}
	name := Profile
	if want != "" && want != RuntimeDefault {
		name = strings.TrimPrefix(want, Localhost)
	}
	loaded, err := h.loaded(name)
	if err != nil {
		return "", fmt.Errorf("list AppArmor profiles: %w", err)
	}
	if !loaded {
		return "", fmt.Errorf("AppArmor profile %s: %w: load it with apparmor_parser", name, ErrNotLoaded)
	}
	return name, nil
}

// loaded looks for a name in lines as "pausa-default (enforce)".
func (h *Host) loaded(name string) (bool, error) {
	f, err := os.Open(h.profiles)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if i := strings.LastIndex(lines.Text(), " ("); i >= 0 && lines.Text()[:i] == name {
			return true, nil
		}
	}
	return false, nil
}
