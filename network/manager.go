package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/pausa-run/pausa/internal/atomicfile"
	"github.com/pausa-run/pausa/internal/boot"
	"github.com/pausa-run/pausa/network/bridge"
)

// Options are what a Manager is made of.
type Options struct {
	RunDir   string   // namespaces, attempts, addresses; on tmpfs, gone at reboot
	ConfDir  string   // CNI directory; without a *.conf, *.conflist or *.json in it the built-in network is used
	BinDirs  []string // where plugins other than "pausa" are
	PodCIDRs []netip.Prefix
	// NonMasqueradeCIDRs are reached by pods of the built-in network with their own address, besides PodCIDRs.
	NonMasqueradeCIDRs []netip.Prefix
	Bridge             string // of the built-in network, default pausa0
	MTU                int    // of the built-in network; 0: from the route to the outside
	Log                *slog.Logger
}

// Manager attaches pods to the network. It may be used by several goroutines.
type Manager struct {
	opts    Options
	log     *slog.Logger
	plugin  *bridge.Plugin
	cni     *libcni.CNIConfig
	exec    *executor
	boot    string
	started time.Time // attempts from before are of another process

	mu     sync.Mutex // guards cidrs, locks and pinned
	cidrs  []netip.Prefix
	locks  map[string]*idLock
	pinned map[string]time.Time // by this process

	mountMu   sync.Mutex   // held while RunDir/netns is mounted
	attaching sync.RWMutex // read-held by Attach: a plugin's GC must know every attachment
}

// New opens the folders and connects to the network namespace of the calling
// thread, which is the host for all that follows. It changes nothing in it.
func New(opts Options) (*Manager, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(opts.RunDir) {
		return nil, fmt.Errorf("open network: run folder %q is not an absolute path", opts.RunDir)
	}
	if opts.Bridge == "" {
		opts.Bridge = bridge.DefaultBridge
	}
	if len(opts.PodCIDRs) == 0 {
		opts.PodCIDRs = defaultCIDRs()
	}
	m := &Manager{opts: opts, log: opts.Log, cidrs: opts.PodCIDRs, locks: map[string]*idLock{}, pinned: map[string]time.Time{}, started: time.Now()}
	if err := m.open(); err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	return m, nil
}

func defaultCIDRs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.87.0.0/16"), netip.MustParsePrefix("fd70:6175:7361::/64")}
}

func (m *Manager) open() error {
	for _, sub := range []string{"netns", "attempts", "ipam", "cni"} {
		if err := os.MkdirAll(m.path(sub), 0o700); err != nil {
			return err
		}
	}
	id, err := boot.ID()
	if err != nil {
		return err
	}
	m.boot = id
	if err := m.loadCIDRs(); err != nil {
		return err
	}
	if err := bridge.CheckRanges(m.cidrs); err != nil {
		return fmt.Errorf("check pod ranges: %w", err)
	}
	if m.plugin, err = bridge.New(m.log); err != nil {
		return err
	}
	m.plugin.ServeLoopback()
	if m.exec, err = newExecutor(m.plugin); err != nil {
		return errors.Join(err, m.plugin.Close())
	}
	m.cni = libcni.NewCNIConfigWithCacheDir(m.opts.BinDirs, m.path("cni"), m.exec)
	return nil
}

func (m *Manager) path(elem ...string) string {
	return filepath.Join(append([]string{m.opts.RunDir}, elem...)...)
}

// Drain waits until the links of detached pods are deleted and their addresses free.
func (m *Manager) Drain() { m.plugin.Drain() }

// Close waits for deletions in the background. Pods stay attached.
func (m *Manager) Close() error {
	return errors.Join(m.plugin.Close(), m.exec.close(), m.unmountNetNSDir())
}

// cidrRecord is RunDir/podcidrs.json: SetPodCIDRs is called once per start of a
// kubelet, so a restart of ours must remember it.
type cidrRecord struct {
	Boot  string         `json:"boot"`
	CIDRs []netip.Prefix `json:"cidrs"`
}

func (m *Manager) loadCIDRs() error {
	var rec cidrRecord
	err := atomicfile.ReadJSON(m.path("podcidrs.json"), &rec)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		m.log.Error("read pod ranges; the configured ones are used", "error", err)
		return nil
	}
	if rec.Boot == m.boot && bridge.CheckRanges(rec.CIDRs) == nil {
		m.cidrs = rec.CIDRs
	}
	return nil
}

// SetPodCIDRs gives the built-in network new ranges, at most one per family. Pods that are
// attached keep their addresses.
func (m *Manager) SetPodCIDRs(cidrs []netip.Prefix) error {
	if err := bridge.CheckRanges(cidrs); err != nil {
		return fmt.Errorf("set pod ranges: %w", err)
	}
	if err := atomicfile.WriteJSON(m.path("podcidrs.json"), cidrRecord{m.boot, cidrs}); err != nil {
		return fmt.Errorf("set pod ranges: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cidrs = cidrs
	return nil
}

// Sync writes the built-in network's bridge, addresses, kernel settings and rules
// again: what somebody flushed is back when it returns. A network of other
// plugins is theirs to heal.
func (m *Manager) Sync(context.Context) error {
	list, err := m.confList()
	if err != nil {
		return err
	}
	lists := map[string]*libcni.NetworkConfigList{list.Name: list}
	attempts, err := m.attempts()
	if err != nil {
		m.log.Error("read attempts", "error", err)
	}
	for _, a := range attempts {
		if _, ok := lists[a.Network]; !ok {
			if l, err := libcni.NetworkConfFromBytes(a.Conf); err == nil {
				lists[a.Network] = l
			}
		}
	}
	var errs []error
	for _, l := range lists {
		if err := eachBuiltIn(l, m.plugin.Sync); err != nil {
			errs = append(errs, fmt.Errorf("sync network %s: %w", l.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Damage says what somebody has changed on the built-in network's bridge, its
// addresses or the kernel settings, "" if nothing; Sync cures it. It costs less
// than a millisecond.
func (m *Manager) Damage(context.Context) (string, error) {
	list, err := m.confList()
	if err != nil {
		return "", err
	}
	var found []string
	err = eachBuiltIn(list, func(conf []byte) error {
		what, err := m.plugin.Damage(conf)
		if what != "" {
			found = append(found, what)
		}
		return err
	})
	return strings.Join(found, "; "), err
}

// eachBuiltIn calls do with the configuration of each built-in plugin of a network.
func eachBuiltIn(l *libcni.NetworkConfigList, do func(conf []byte) error) error {
	for _, p := range l.Plugins {
		if p.Network.Type != bridge.Type {
			continue
		}
		conf, err := libcni.InjectConf(p, map[string]any{"name": l.Name, "cniVersion": l.CNIVersion})
		if err == nil {
			err = do(conf.Bytes)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// idLock serializes what happens to one pod.
type idLock struct {
	sync.Mutex
	users int
}

func (m *Manager) lock(id string) (unlock func()) {
	m.mu.Lock()
	l := m.locks[id]
	if l == nil {
		l = &idLock{}
		m.locks[id] = l
	}
	l.users++
	m.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(m.locks, id)
		}
	}
}

// Blockers names chains of others that drop the pods' packets, each with the
// command that cures it.
func (m *Manager) Blockers() ([]string, error) { return m.plugin.Blockers(m.opts.Bridge) }

// Spoofed counts the packets of pods that came from an address that is not theirs, and were
// dropped: of the built-in network, since its rules were written last.
func (m *Manager) Spoofed() (packets uint64, err error) {
	return m.plugin.Spoofed(m.opts.Bridge)
}
