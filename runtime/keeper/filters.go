//go:build cgo

package keeper

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"

	"github.com/pausa-run/pausa/runtime/keeper/seccache"
)

const (
	// CompileCommand is the argument with which the keeper runs itself to compile a profile.
	CompileCommand = "compile-seccomp"

	compilePatience = 10 * time.Second
	maxProfiles     = 128
	maxFilterFile   = 16 << 20 // bytes
)

// filterCache holds one copy of each seccomp profile for all containers that
// use it, and has each profile compiled once. Inits find the compiled ones in a
// file whose path is their argv[0]. Without the file they compile for
// themselves: it saves time, and nothing depends on it.
type filterCache struct {
	path string // "" when this program was linked without the cache
	log  *slog.Logger

	mu       sync.Mutex // guards profiles
	profiles map[[sha256.Size]byte]*configs.Seccomp
	writing  sync.Mutex // held while the file is renewed
}

func openFilterCache(dir, buildID string, log *slog.Logger) (*filterCache, error) {
	f := &filterCache{log: log, profiles: map[[sha256.Size]byte]*configs.Seccomp{}}
	if !seccache.Linked() {
		log.Warn("this program has no seccomp cache: build it with `make build`, or each start takes 15 ms more")
		return f, nil
	}
	f.path = filepath.Join(dir, "filters-"+buildID)
	// What another build has compiled is never used.
	others, _ := filepath.Glob(filepath.Join(dir, "filters-*"))
	for _, path := range others {
		if path != f.path {
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("remove seccomp cache of another build: %w", err)
			}
		}
	}
	// libcontainer starts inits under our own name, and nothing else can be
	// told to an init before it enters a container.
	path, err := filepath.Abs(f.path)
	os.Args[0] = path
	return f, err
}

// intern gives the one copy of a profile, and has a new one compiled.
func (f *filterCache) intern(profile *configs.Seccomp) *configs.Seccomp {
	if profile == nil {
		return nil
	}
	data, err := json.Marshal(profile)
	if err != nil {
		return profile
	}
	key := sha256.Sum256(data)
	f.mu.Lock()
	defer f.mu.Unlock()
	if known, ok := f.profiles[key]; ok {
		return known
	}
	if len(f.profiles) >= maxProfiles {
		return profile
	}
	f.profiles[key] = profile
	if f.path != "" && profile.ListenerPath == "" {
		go func() {
			if err := f.compile(data); err != nil {
				f.log.Warn("compile seccomp profile; its containers start more slowly", "err", err)
			}
		}()
	}
	return profile
}

// compile runs this program once more: loading a filter cannot be undone.
func (f *filterCache) compile(profile []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), compilePatience)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", CompileCommand)
	cmd.Stdin = bytes.NewReader(profile)
	cmd.ExtraFiles = []*os.File{w}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("run compiler: %w", err)
	}
	entry, err := io.ReadAll(io.LimitReader(r, maxFilterFile))
	// It sits behind the new filter, which may not even let it exit.
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		return fmt.Errorf("read compiled filter: %w", err)
	}
	return f.add(entry)
}

// add renews the file. Inits that have the old one mapped keep it.
func (f *filterCache) add(entry []byte) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	old, err := os.ReadFile(f.path)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("read seccomp cache: %w", err)
	}
	content, err := seccache.Add(old, entry)
	if err != nil {
		return err
	}
	if len(content) > maxFilterFile {
		return nil // such a file would cost more to search than it saves
	}
	temporary := f.path + ".tmp"
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return fmt.Errorf("write seccomp cache: %w", err)
	}
	if err := os.Rename(temporary, f.path); err != nil {
		return fmt.Errorf("write seccomp cache: %w", err)
	}
	return nil
}

// compiledFD is where the compiler writes the entry.
const compiledFD = 3

// CompileFilter reads a profile as JSON, loads it into this process, which must
// do nothing more afterwards, and writes the compiled filter to descriptor 3.
func CompileFilter(from io.Reader) error {
	var profile configs.Seccomp
	if err := json.NewDecoder(from).Decode(&profile); err != nil {
		return fmt.Errorf("decode seccomp profile: %w", err)
	}
	seccache.Record(compiledFD)
	if _, err := seccomp.InitSeccomp(&profile); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, from) // until whoever looks at the filter has seen it
	return err
}
