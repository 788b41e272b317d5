package host

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Process is one process of a host.
type Process struct {
	Pid      int // inside the host
	OuterPid int // as the caller sees it
	Comm     string
	Cmdline  string
	State    string // "S", "Z", …
}

// Processes lists the host's processes but for its process 1.
func (h *Host) Processes() ([]Process, error) {
	want, err := os.Readlink("/proc/" + strconv.Itoa(h.Pid()) + "/ns/pid_for_children")
	if err != nil {
		return nil, fmt.Errorf("read the PID namespace of host %s: %w", h.Name, err)
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []Process
	for _, d := range dirs {
		p, ok := readProcess(d, want)
		if ok && p.Pid != 1 {
			out = append(out, p)
		}
	}
	return out, nil
}

// readProcess reads a process that lives in the PID namespace ns or one below it.
func readProcess(dir, ns string) (Process, bool) {
	outer, _ := strconv.Atoi(filepath.Base(dir))
	raw, err := os.ReadFile(dir + "/status")
	if err != nil {
		return Process{}, false
	}
	p := Process{OuterPid: outer}
	var nspids []string
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch f := strings.Fields(value); key {
		case "Name":
			p.Comm = strings.TrimSpace(value)
		case "State":
			p.State = f[0]
		case "NSpid":
			nspids = f
		}
	}
	if len(nspids) < 2 || !inNamespace(outer, ns) {
		return Process{}, false
	}
	// The caller's own level comes first, the host's second, a pod's third.
	p.Pid, _ = strconv.Atoi(nspids[1])
	cmdline, _ := os.ReadFile(dir + "/cmdline")
	p.Cmdline = strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
	return p, true
}

// inNamespace tells if a process is in the PID namespace ns, or has an ancestor that is.
func inNamespace(pid int, ns string) bool {
	for range 64 {
		dir := "/proc/" + strconv.Itoa(pid)
		if l, err := os.Readlink(dir + "/ns/pid"); err == nil && l == ns {
			return true
		}
		st, err := os.ReadFile(dir + "/stat")
		if err != nil {
			return false
		}
		f := strings.Fields(string(st[strings.LastIndexByte(string(st), ')')+1:]))
		if pid, _ = strconv.Atoi(f[1]); pid <= 1 {
			return false
		}
	}
	return false
}

// Snapshot is everything that a pod may leave behind, one line each.
type Snapshot []string

// Snapshot reads what there is now.
func (h *Host) Snapshot() (Snapshot, error) {
	var s Snapshot
	for _, read := range []func() ([]string, error){h.processLines, h.mountLines, h.cgroupLines, h.linkLines, h.nftLines, h.fileLines} {
		lines, err := read()
		if err != nil {
			return nil, err
		}
		s = append(s, lines...)
	}
	slices.Sort(s)
	return s, nil
}

// Minus is what s has and base has not.
func (s Snapshot) Minus(base Snapshot) []string {
	count := map[string]int{}
	for _, l := range base {
		count[l]++
	}
	var more []string
	for _, l := range s {
		if count[l]--; count[l] < 0 {
			more = append(more, l)
		}
	}
	return more
}

// Leaks waits up to limit until the host has nothing more than base had but
// what allowed lets pass, and returns what is left then.
func (h *Host) Leaks(base Snapshot, limit time.Duration, allowed func(line string) bool) ([]string, error) {
	deadline := time.Now().Add(limit)
	for {
		now, err := h.Snapshot()
		if err != nil {
			return nil, err
		}
		left := slices.DeleteFunc(now.Minus(base), allowed)
		if len(left) == 0 || time.Now().After(deadline) {
			return left, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (h *Host) processLines() ([]string, error) {
	procs, err := h.Processes()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range procs {
		out = append(out, strings.TrimSpace("process "+p.Comm+" "+p.State[:1]+" "+p.Cmdline))
		// A sleeping and a running daemon are the same daemon; only zombies matter.
		if p.State != "Z" {
			out[len(out)-1] = strings.TrimSpace("process " + p.Comm + " " + p.Cmdline)
		}
	}
	return out, nil
}

func (h *Host) mountLines() ([]string, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(h.Pid()) + "/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts of host %s: %w", h.Name, err)
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if fields := strings.Fields(sc.Text()); len(fields) > 4 {
			out = append(out, "mount "+fields[4])
		}
	}
	return out, sc.Err()
}

func (h *Host) cgroupLines() ([]string, error) {
	var out []string
	for _, root := range cgroupDirs(h.CgroupParent) {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				out = append(out, "cgroup "+path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list cgroups of host %s: %w", h.Name, err)
		}
	}
	return out, nil
}

func (h *Host) linkLines() ([]string, error) {
	raw, err := h.Output("ip", "-j", "addr")
	if err != nil {
		return nil, err
	}
	var links []struct {
		Name  string `json:"ifname"`
		Addrs []struct {
			Local string `json:"local"`
			Scope string `json:"scope"`
		} `json:"addr_info"`
	}
	if err := json.Unmarshal([]byte(raw), &links); err != nil {
		return nil, fmt.Errorf("read ip addr: %w", err)
	}
	var out []string
	for _, l := range links {
		out = append(out, "link "+l.Name)
		for _, a := range l.Addrs {
			if a.Scope != "link" { // these come by themselves, some time after the link
				out = append(out, "address "+l.Name+" "+a.Local)
			}
		}
	}
	return out, nil
}

// nftLines lists every table and chain, and every element of sets and maps of inet pausa.
func (h *Host) nftLines() ([]string, error) {
	raw, err := h.Output("nft", "-j", "list", "ruleset")
	if err != nil {
		return nil, err
	}
	var doc struct {
		Items []map[string]struct {
			Family string            `json:"family"`
			Table  string            `json:"table"`
			Name   string            `json:"name"`
			Elem   []json.RawMessage `json:"elem"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(raw), &doc); err != nil {
		return nil, fmt.Errorf("read nft list ruleset: %w", err)
	}
	var out []string
	for _, item := range doc.Items {
		for kind, o := range item {
			switch kind {
			case "table", "chain", "set", "map":
				name := strings.TrimSpace(strings.Join([]string{o.Family, o.Table, o.Name}, " "))
				out = append(out, "nft "+kind+" "+name)
				for _, e := range o.Elem {
					out = append(out, "nft element "+name+" "+string(e))
				}
			}
		}
	}
	return out, nil
}

// fileLines lists the files below RUN and STATE but for the images' own storage.
func (h *Host) fileLines() ([]string, error) {
	var out []string
	for _, root := range []string{RunDir, h.StateDir} {
		base := h.Path(root)
		err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			inside := root + strings.TrimPrefix(path, base)
			if d.IsDir() && imageStorage(inside, h.StateDir) {
				return fs.SkipDir
			}
			out = append(out, "file "+inside)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list files of host %s: %w", h.Name, err)
		}
	}
	return out, nil
}

// imageStorage tells folders of STATE/images that hold images, not containers.
func imageStorage(path, state string) bool {
	return filepath.Dir(path) == state+"/images" && filepath.Base(path) != "rw"
}
