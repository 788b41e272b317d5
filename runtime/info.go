package runtime

import "time"

// KeeperInfo says which keeper answers.
type KeeperInfo struct {
	Version   string    `json:"version"`
	BuildID   string    `json:"buildID"`
	Pid       int       `json:"pid"`
	StartedAt time.Time `json:"startedAt"`
}

// Size is a terminal's size in characters.
type Size struct {
	Width, Height uint16
}

// SocketPath is where the keeper of runDir listens.
func SocketPath(runDir string) string { return runDir + "/keeper/keeper.sock" }
