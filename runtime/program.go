package runtime

import (
	"fmt"
	"path/filepath"
	"slices"
)

// Program is an OCI runtime's binary, and how it is called. The keeper calls it
// for the containers that ask for it, instead of making them itself.
type Program struct {
	Name string   `json:"name"`           // of its handler: a folder's name
	Path string   `json:"path"`           // absolute
	Args []string `json:"args,omitempty"` // before each command: "--debug", "--network=host"
	Root string   `json:"root,omitempty"` // folder of its state; "" is one of the keeper's
	// ExecGroups: it starts execs in a cgroup below the container's, of cgroup v2 or of one controller.
	ExecGroups ExecGroups `json:"execGroups,omitempty"`
}

// ExecGroups says which cgroups the program's exec takes with --cgroup.
type ExecGroups string

// What programs take: nothing, "GROUP", or "CONTROLLER:GROUP" too.
const (
	NoExecGroups      ExecGroups = ""
	UnifiedExecGroups ExecGroups = "unified"
	AnyExecGroups     ExecGroups = "any"
)

// Check says what is wrong with p.
func (p *Program) Check() error {
	switch {
	case !ValidID(p.Name):
		return fmt.Errorf("runtime handler %q: a name is made of letters, digits, '.', '_' and '-'", p.Name)
	case !filepath.IsAbs(p.Path):
		return fmt.Errorf("runtime handler %s: path %q: an absolute one is needed", p.Name, p.Path)
	case p.Root != "" && !filepath.IsAbs(p.Root):
		return fmt.Errorf("runtime handler %s: root %q: an absolute path is needed", p.Name, p.Root)
	case slices.Contains(p.Args, ""):
		return fmt.Errorf("runtime handler %s: an argument is empty", p.Name)
	}
	return nil
}
