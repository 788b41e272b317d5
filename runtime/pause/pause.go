// Package pause carries the built pause program (src/pause.c). The program is made
// by build.sh before the binary that embeds it; without it the package still
// compiles, and Program says what is missing.
package pause

import (
	"embed"
	"fmt"
	"io/fs"
	goruntime "runtime"
)

//go:generate ./build.sh

// The pattern always matches this file, so that a clean checkout compiles.
//
//go:embed pause*
var files embed.FS

// Program is the static ELF program for this architecture.
func Program() ([]byte, error) {
	return program(files, goruntime.GOARCH)
}

func program(files fs.FS, arch string) ([]byte, error) {
	data, err := fs.ReadFile(files, "pause-"+arch)
	if err != nil {
		return nil, fmt.Errorf("pause for %s is not part of this binary: build it again with `make build`: %w", arch, err)
	}
	return data, nil
}
