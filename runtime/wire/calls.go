package wire

// The methods that the keeper answers. The body of each request and reply is
// named behind it; an ID is the bare id of a pod or container.
const (
	Hello           = "hello"            // none → runtime.KeeperInfo
	PodStart        = "pod.start"        // runtime.PodSpec → runtime.PodState
	PodRemove       = "pod.remove"       // ID → none
	SliceRemove     = "slice.remove"     // ID → none
	PodList         = "pod.list"         // none → []runtime.PodState
	GroupLimit      = "group.limit"      // runtime.GroupRequest → none
	ContainerCreate = "container.create" // runtime.ContainerSpec → none
	ContainerStart  = "container.start"  // ID → runtime.ContainerState
	ContainerSignal = "container.signal" // Signal → none
	// ContainerCheckpoint: runtime.CheckpointRequest → none, and none again when the
	// containers run on, which they do when the client has closed its end.
	ContainerCheckpoint = "container.checkpoint"
	ContainerWait       = "container.wait"   // ID → runtime.Exit
	ContainerRemove     = "container.remove" // ID → none
	ContainerList       = "container.list"   // none → []runtime.ContainerState
	ContainerGet        = "container.get"    // ID → runtime.ContainerState
	ContainerStats      = "container.stats"  // IDs → []runtime.Stats
	ContainerUpdate     = "container.update" // runtime.UpdateRequest → none
	ContainerExec       = "container.exec"   // Exec with files → Started with a terminal's master, then ExecExit
	ContainerAttach     = "container.attach" // Attach with files → none with the input's file, then none at the end
	ContainerResize     = "container.resize" // Resize → none
	LogReopen           = "log.reopen"       // ID → none
	Exits               = "exits"            // none → none, then a runtime.Exit for each exit
	Hold                = "hold"             // none → a Held with files for each container, one without an id, and one for each change
	FilesPut            = "files.put"        // Files with files → none; in place of those before
	FilesGet            = "files.get"        // none → Files with files
	// CloseInput is said on the connection of an attach: the input has ended.
	CloseInput = "close-input"
	// EndExec and KillExec are said on the connection of an exec whose client
	// waits no more; the answer comes when none of its processes is left.
	EndExec  = "end-exec"  // SIGHUP, later SIGKILL
	KillExec = "kill-exec" // SIGKILL
)

// ID names one pod or container.
type ID struct {
	ID string `json:"id"`
}

// IDs names several containers, and says whether their stats shall have Details.
// Groups are cgroups to read besides, as paths from the root. Neither means all containers.
type IDs struct {
	IDs     []string `json:"ids,omitempty"`
	Groups  []string `json:"groups,omitempty"`
	Details bool     `json:"details,omitempty"`
}

// Signal asks for a signal to a container.
type Signal struct {
	ID     string `json:"id"`
	Signal int    `json:"signal"`
	All    bool   `json:"all,omitempty"`
}

// Resize asks for a new size of a terminal, in characters.
type Resize struct {
	ID     string `json:"id"`
	ExecID string `json:"execID,omitempty"`
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// Streams says which standard streams the files beside the message are, in this order.
type Streams struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// Started is the first reply to an exec.
type Started struct {
	Pid int `json:"pid"`
}

// ExecExit is the last reply to an exec.
type ExecExit struct {
	Code int `json:"code"`
}

// Attached is the first reply to an attach; a file beside it is the container's input.
type Attached struct {
	Terminal  bool `json:"terminal,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
}

// Files names the files beside the message, which are the daemon's own: the
// keeper holds them for the next daemon, and does nothing with them.
type Files struct {
	Names []string `json:"names,omitempty"`
}

// The names of the files that a Held is about.
const (
	HeldStdin    = "stdin"
	HeldStdout   = "stdout"
	HeldStderr   = "stderr"
	HeldTerminal = "terminal" // the master
	HeldProcess  = "process"  // a pidfd of the container's init
)

// Held names the files beside the message: all that somebody should hold for a
// container, so that they outlive the keeper. None: the container has ended. An
// empty ID says that all containers have been told.
type Held struct {
	ID    string   `json:"id,omitempty"`
	Names []string `json:"names,omitempty"`
}
