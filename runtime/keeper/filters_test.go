//go:build cgo

package keeper_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
	"github.com/pausa-run/pausa/runtime/keeper/seccache"
)

// cacheFile waits until the keeper has compiled the profile of a first container.
func (h *host) cacheFile(pod runtime.PodState) string {
	h.t.Helper()
	h.runOnce(pod, []string{"true"})
	var files []string
	h.eventually("profile is compiled", func() bool {
		files, _ = filepath.Glob(h.run + "/keeper/filters-????????????????????????")
		return len(files) == 1
	})
	return files[0]
}

// mayUnshare says whether a container is allowed a call that the default profile refuses.
func (h *host) mayUnshare(pod runtime.PodState) bool {
	h.t.Helper()
	_, exit := h.runOnce(pod, []string{"unshare", "-U", "true"})
	return exit.Code == 0
}

// forge puts a filter that allows everything in the place of the compiled one.
func forge(t *testing.T, path string) []byte {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	key, _, _, err := seccache.Split(bytes.TrimPrefix(file, []byte(seccache.Magic)))
	if err != nil {
		t.Fatal(err)
	}
	allow := binary.NativeEndian.AppendUint16(nil, unix.BPF_RET|unix.BPF_K)
	allow = append(allow, 0, 0)
	allow = binary.NativeEndian.AppendUint32(allow, unix.SECCOMP_RET_ALLOW)
	entry := binary.NativeEndian.AppendUint32([]byte(seccache.Magic), uint32(len(key)))
	entry = binary.NativeEndian.AppendUint32(entry, uint32(len(allow)))
	return append(append(entry, key...), allow...)
}

// The forged filter shows that inits take theirs from the file, which proves
// the linker's flags; and that they do not from a file that others can write.
func TestFiltersComeFromTheCache(t *testing.T) {
	if *programFlag != "" {
		t.Skip("OCI runtimes make filters themselves")
	}
	h := newHost(t)
	pod := h.pod()
	path := h.cacheFile(pod)
	if h.mayUnshare(pod) {
		t.Fatal("the default profile allows unshare")
	}
	forged := forge(t, path)
	if err := os.WriteFile(path, forged, 0o600); err != nil {
		t.Fatal(err)
	}
	if !h.mayUnshare(pod) {
		t.Error("the cache is not used")
	}
	id := h.container(pod, []string{"sleep", "1000"})
	h.start(id)
	if _, _, code := h.exec(id, "", "unshare", "-U", "true"); code != 0 {
		t.Error("the cache is not used by exec")
	}
	for name, spoil := range map[string]func() error{
		"writable by others": func() error { return os.Chmod(path, 0o622) },
		"owned by another":   func() error { return os.Chown(path, 65534, 0) },
		"damaged":            func() error { return os.WriteFile(path, forged[:len(forged)-4], 0o600) },
		"gone":               func() error { return os.Remove(path) },
	} {
		if err := os.WriteFile(path, forged, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = os.Chown(path, 0, 0)
		_ = os.Chmod(path, 0o600)
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if h.mayUnshare(pod) {
			t.Errorf("a file that is %s was used", name)
		}
	}
}
