package runtime

import (
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pausa-run/pausa/runtime/wire"
)

// UpdateRequest is what Client.Update sends.
type UpdateRequest struct {
	ID        string                `json:"id"`
	Resources *specs.LinuxResources `json:"resources"`
	// OOMScoreAdj, if set, is for all processes of the container; later ones inherit it.
	OOMScoreAdj *int `json:"oomScoreAdj,omitempty"`
}

// GroupRequest is what Client.LimitGroup sends.
type GroupRequest struct {
	Group     string                `json:"group"`
	Resources *specs.LinuxResources `json:"resources"`
}

// CheckpointRequest is what Client.Checkpoint sends.
type CheckpointRequest struct {
	Targets []CheckpointTarget `json:"targets"`
}

// CheckpointTarget is a container, and the folder that gets what CRIU writes of it.
type CheckpointTarget struct {
	ID  string `json:"id"`
	Dir string `json:"dir"`
}

// ExecRequest is what Client.Exec sends; the files of Streams come beside it.
type ExecRequest struct {
	ExecSpec
	Streams wire.Streams `json:"streams"`
}

// AttachRequest is what Client.Attach sends; the writing ends of pipes for
// stdout and stderr come beside it, the input comes back.
type AttachRequest struct {
	ID      string       `json:"id"`
	Streams wire.Streams `json:"streams"`
}

func kinds() map[string]error {
	return map[string]error{"not found": ErrNotFound, "exists": ErrExists, "state": ErrState, "criu": ErrNoCRIU}
}

// ErrorKind names the sentinel that err wraps, for the wire; "" when it is none.
func ErrorKind(err error) string {
	for kind, sentinel := range kinds() {
		if errors.Is(err, sentinel) {
			return kind
		}
	}
	return ""
}

// remoteError is an error as the keeper said it.
type remoteError struct {
	text     string
	sentinel error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.sentinel }
