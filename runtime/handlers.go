package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
)

// BuiltIn is the name of the handler whose containers the keeper makes itself.
const BuiltIn = "pausa"

// Features are what was seen of a runtime handler: of a program what its command
// "features" says. What it does not say it cannot do.
type Features struct {
	RecursiveReadOnly bool // read-only mounts with all that is mounted below
	UserNamespaces    bool
	IDMap             bool // mounts with ids of their own
	NoSeccomp         bool // it says that it has no filters
}

// Handler is a runtime handler: what makes the containers of the pods that ask for it by name.
type Handler struct {
	Name     string
	Aliases  []string
	Program  *Program // nil: the keeper makes them itself
	Features Features
	Problem  error // why it can make none now
}

// Handlers are all runtime handlers of this host. Its methods are safe for concurrent use.
type Handlers struct {
	standard string

	mu   sync.Mutex // guards what follows; held while a program is asked for its features
	list []Handler
	seen map[string]stamp // by name: the file whose features are in list
}

// stamp tells a file from its successor.
type stamp struct {
	inode, size uint64
	changed     syscall.Timespec
}

// NewHandlers takes the built-in handler's aliases, the programs with theirs, and
// the name of the one for pods that name none; "" is the built-in. No two may
// have a name in common.
func NewHandlers(standard string, builtIn []string, programs ...Handler) (*Handlers, error) {
	h := &Handlers{standard: standard, seen: map[string]stamp{}}
	h.list = append([]Handler{{Name: BuiltIn, Aliases: builtIn, Features: ownFeatures()}}, programs...)
	taken := map[string]string{}
	for _, one := range h.list {
		for _, name := range append([]string{one.Name}, one.Aliases...) {
			if other, twice := taken[name]; twice {
				return nil, fmt.Errorf("runtime handlers %s and %s are both called %s: rename one", other, one.Name, name)
			}
			taken[name] = one.Name
		}
		if one.Program == nil {
			continue
		}
		if err := one.Program.Check(); err != nil {
			return nil, err
		}
	}
	if h.standard == "" {
		h.standard = BuiltIn
	}
	if _, ok := taken[h.standard]; !ok {
		return nil, fmt.Errorf("the default runtime handler %s %w: %s", h.standard, ErrNotFound, h.known())
	}
	return h, nil
}

// Find finds a handler by name or alias; "" is the default one. An error that
// wraps ErrNotFound names those that there are, any other says why this one can
// make no containers now.
func (h *Handlers) Find(name string) (Handler, error) {
	if name == "" {
		name = h.standard
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.list {
		one := &h.list[i]
		if one.Name != name && !slices.Contains(one.Aliases, name) {
			continue
		}
		h.look(one)
		if one.Problem != nil {
			return *one, fmt.Errorf("runtime handler %s: %w", one.Name, one.Problem)
		}
		return *one, nil
	}
	return Handler{}, fmt.Errorf("runtime handler %q %w: %s", name, ErrNotFound, h.known())
}

// List are all handlers, the built-in one first, and the name of the default one.
func (h *Handlers) List() (all []Handler, standard string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.list {
		h.look(&h.list[i])
	}
	return slices.Clone(h.list), h.standard
}

func (h *Handlers) known() string {
	var names []string
	for _, one := range h.list {
		names = append(names, one.Name)
		names = append(names, one.Aliases...)
	}
	return "this host has " + strings.Join(names, ", ")
}

// look asks a program for its features, when it was not asked before or is
// another file now.
func (h *Handlers) look(one *Handler) {
	if one.Program == nil {
		return
	}
	path := one.Program.Path
	st, err := os.Stat(path)
	switch {
	case err != nil:
		one.Problem = fmt.Errorf("its program is not there: %w", err)
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		one.Problem = fmt.Errorf("%s is not a program", path)
	default:
		one.Problem = nil
	}
	if one.Problem != nil {
		delete(h.seen, one.Name)
		return
	}
	now := stamp{size: uint64(st.Size())}
	if raw, ok := st.Sys().(*syscall.Stat_t); ok {
		now.inode, now.changed = raw.Ino, raw.Ctim
	}
	if h.seen[one.Name] == now {
		return
	}
	h.seen[one.Name] = now
	one.Features = parseFeatures(ask(path, "features"))
	called := *one.Program // the old one is somebody's
	called.ExecGroups = readExecGroups(path)
	one.Program = &called
}

// featuresPatience bounds the asking of a program.
const featuresPatience = 10 * time.Second

// ask runs a program that is to tell of itself; nothing when it cannot.
func ask(path string, args ...string) []byte {
	ctx, cancel := context.WithTimeout(context.Background(), featuresPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil
	}
	return out
}

// readExecGroups finds in the help of "exec" what no feature tells.
func readExecGroups(path string) ExecGroups {
	help := string(ask(path, "exec", "--help"))
	switch {
	case strings.Contains(help, "[<controller>:]<cgroup>"):
		return AnyExecGroups
	case strings.Contains(help, "--cgroup"):
		return UnifiedExecGroups
	}
	return NoExecGroups
}

func parseFeatures(out []byte) Features {
	var said features.Features
	if json.NewDecoder(bytes.NewReader(out)).Decode(&said) != nil {
		return Features{}
	}
	f := Features{RecursiveReadOnly: hasMountSetattr() && slices.Contains(said.MountOptions, "rro")}
	if l := said.Linux; l != nil {
		f.UserNamespaces = slices.Contains(l.Namespaces, "user")
		f.IDMap = l.MountExtensions != nil && l.MountExtensions.IDMap != nil && isTrue(l.MountExtensions.IDMap.Enabled)
		f.NoSeccomp = l.Seccomp != nil && l.Seccomp.Enabled != nil && !*l.Seccomp.Enabled
	}
	return f
}

func isTrue(b *bool) bool { return b != nil && *b }

// ownFeatures are those of libcontainer, as far as the kernel has them.
func ownFeatures() Features {
	kernel := hasMountSetattr()
	return Features{RecursiveReadOnly: kernel, UserNamespaces: true, IDMap: kernel}
}

func hasMountSetattr() bool {
	return !errors.Is(unix.MountSetattr(-1, "", 0, &unix.MountAttr{}), unix.ENOSYS)
}
