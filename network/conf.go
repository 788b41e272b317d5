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

	"github.com/pausa-run/pausa/network/bridge"
)

// builtinName is the name of the network that is used without a configuration.
const builtinName = "pausa"

// confList is the network for new pods: the first valid file of ConfDir by name, or the built-in
// network if there is no file. Files that are not valid are named in the log; if none is, that is
// the error.
func (m *Manager) confList() (*libcni.NetworkConfigList, error) {
	files, err := confFiles(m.opts.ConfDir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	if len(files) == 0 {
		return m.builtinList()
	}
	var errs []error
	for _, f := range files {
		list, err := readConf(f)
		if err == nil {
			return list, nil
		}
		m.log.Error("pass over network configuration", "file", f, "error", err)
		errs = append(errs, fmt.Errorf("%s: %w", f, err))
	}
	return nil, fmt.Errorf("%w: no valid configuration in %s: %w", ErrNotReady, m.opts.ConfDir, errors.Join(errs...))
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

// builtinList is the configuration of the built-in network.
func (m *Manager) builtinList() (*libcni.NetworkConfigList, error) {
	m.mu.Lock()
	cidrs := slices.Clone(m.cidrs)
	m.mu.Unlock()
	conf := struct {
		CNIVersion string        `json:"cniVersion"`
		Name       string        `json:"name"`
		Plugins    []bridge.Conf `json:"plugins"`
	}{"1.1.0", builtinName, []bridge.Conf{{
		Type: bridge.Type, Capabilities: map[string]bool{"portMappings": true},
		Bridge: m.opts.Bridge, MTU: m.opts.MTU, Ranges: cidrs,
		NonMasqueradeCIDRs: m.opts.NonMasqueradeCIDRs, DataDir: m.path("ipam"),
	}}}
	data, err := json.Marshal(conf)
	if err != nil {
		return nil, fmt.Errorf("encode built-in network: %w", err)
	}
	return libcni.NetworkConfFromBytes(data)
}

// ipRanges is the runtimeConfig of that name: one set with one range per family.
func ipRanges(cidrs []netip.Prefix) [][]map[string]string {
	var sets [][]map[string]string
	for _, c := range cidrs {
		sets = append(sets, []map[string]string{{"subnet": c.Masked().String()}})
	}
	return sets
}
