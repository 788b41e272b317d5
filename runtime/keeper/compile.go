package keeper

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
)

// CompileCommand is the argument with which the keeper runs itself to compile a profile.
const CompileCommand = "compile-seccomp"

// CompileFilter reads a profile as JSON and loads it into this process, which
// must do nothing more afterwards.
func CompileFilter(from io.Reader) error {
	var profile configs.Seccomp
	if err := json.NewDecoder(from).Decode(&profile); err != nil {
		return fmt.Errorf("decode seccomp profile: %w", err)
	}
	_, err := seccomp.InitSeccomp(&profile)
	return err
}
