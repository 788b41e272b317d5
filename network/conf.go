package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
)

// confList is the network for pods that choose none: the first valid file of ConfDir by name, or
// the built-in network if there is no file. If no file is valid, that is the error. Files that are
// not valid are named in the log.
//
// The folder is read anew each time: that follows links, files put in place of others and mounts,
// which no watch sees all of, and costs some microseconds.
func (m *Manager) confList() (*libcni.NetworkConfigList, error) {
	lists, errs := m.confLists()
	switch {
	case len(lists) > 0:
		m.logConf(lists[0].Name, errs)
		return lists[0], nil
	case len(errs) > 0:
		m.logConf("", errs)
		return nil, fmt.Errorf("%w: no valid configuration in %s: %w", ErrNotReady, m.opts.ConfDir, errors.Join(errs...))
	}
	m.logConf(builtinName, nil)
	return m.builtinList(builtinName)
}

// logConf tells of a change of the network for new pods, and of files that are passed over.
func (m *Manager) logConf(name string, errs []error) {
	now := fmt.Sprint(name, errs)
	m.mu.Lock()
	before := m.lastConf
	m.lastConf = now
	m.mu.Unlock()
	if now == before {
		return
	}
	for _, err := range errs {
		m.log.Error("pass over network configuration", "error", err)
	}
	if before != "" || name != builtinName {
		m.log.Info("network of new pods", "name", name, "folder", m.opts.ConfDir)
	}
}

// confLists are the valid files of ConfDir by name; errs tell of the others.
func (m *Manager) confLists() (lists []*libcni.NetworkConfigList, errs []error) {
	files, err := confFiles(m.opts.ConfDir)
	if err != nil {
		return nil, []error{err}
	}
	for _, f := range files {
		list, err := readConf(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
			continue
		}
		lists = append(lists, list)
	}
	return lists, errs
}

func confFiles(dir string) ([]string, error) {
	if dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network configurations: %w", err)
	}
	var files []string
	for _, e := range entries { // sorted by name; a symbolic link (as of a config map) counts, a folder does not
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) && !e.IsDir() {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

func readConf(file string) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	list, err := parseConf(data)
	if err != nil {
		return nil, err
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("it names no plugin")
	}
	return list, nil
}

// parseConf understands a list and a single plugin's configuration, by content and not by file name.
func parseConf(data []byte) (*libcni.NetworkConfigList, error) {
	var kind struct {
		Plugins json.RawMessage `json:"plugins"`
		Inline  json.RawMessage `json:"loadOnlyInlinedPlugins"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if kind.Plugins != nil || kind.Inline != nil {
		return libcni.NetworkConfFromBytes(data)
	}
	return listOf(data)
}

// listOf makes a list of a single plugin's configuration.
func listOf(data []byte) (*libcni.NetworkConfigList, error) {
	single, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	list, err := json.Marshal(map[string]any{
		"name": single.Network.Name, "cniVersion": single.Network.CNIVersion, "plugins": []json.RawMessage{data},
	})
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return libcni.NetworkConfFromBytes(list)
}

// ipRanges is the runtimeConfig of that name: a set per family, as a pod gets an address of each set.
func ipRanges(cidrs []netip.Prefix) [][]map[string]string {
	var sets [][]map[string]string
	for _, is4 := range []bool{true, false} {
		var set []map[string]string
		for _, c := range cidrs {
			if c.Addr().Is4() == is4 {
				set = append(set, map[string]string{"subnet": c.Masked().String()})
			}
		}
		if len(set) > 0 {
			sets = append(sets, set)
		}
	}
	return sets
}
