package bridge

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pausa-run/pausa/internal/atomicfile"
)

// Known is what the records of all networks name.
type Known struct {
	Owners map[string]bool // "ID:INTERFACE", attached or being detached
	Veths  map[string]bool
}

// Records reads the records below a data folder, without a Plugin and without a
// change: what is attached, and who has which address.
func Records(dataDir string) (known Known, addrs map[string]string, err error) {
	known, addrs = Known{map[string]bool{}, map[string]bool{}}, map[string]string{}
	for _, sub := range []string{"attached", "detached"} {
		files, err := filepath.Glob(filepath.Join(dataDir, "*", sub, "*"))
		if err != nil {
			return known, addrs, err
		}
		for _, f := range files {
			var a attachment
			if atomicfile.IsTemp(filepath.Base(f)) {
				continue
			}
			if err := atomicfile.ReadJSON(f, &a); err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				return known, addrs, err
			}
			known.Owners[a.Owner], known.Veths[a.Veth] = true, true
		}
	}
	links, err := filepath.Glob(filepath.Join(dataDir, "*", "addresses", "*"))
	if err != nil {
		return known, addrs, err
	}
	for _, l := range links {
		if owner, err := os.Readlink(l); err == nil {
			addrs[filepath.Base(l)] = owner
		}
	}
	return known, addrs, nil
}
