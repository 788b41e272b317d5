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
	"slices"
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
	MTU                int    // of the built-in networks; 0: from the route to the outside
	Networks           []Named
	Connected          [][2]string // pairs of built-in networks whose pods reach each other
	Routes             []Route     // ways to the pods of other hosts
	// RulesNS is the file of the network namespace that gets the built-in network's rules; "": the host's.
	RulesNS string
	Log     *slog.Logger
}

// Manager attaches pods to the network. It may be used by several goroutines.
type Manager struct {
	opts    Options
	log     *slog.Logger
	plugin  *bridge.Plugin
	cni     *libcni.CNIConfig
	exec    *executor
	router  *router
	boot    string
	started time.Time // attempts from before are of another process

	mu       sync.Mutex // guards what follows, up to pinned
	cidrs    []netip.Prefix
	lastConf string // what logConf told last
	failing  []error
	locks    map[string]*idLock
	pinned   map[string]time.Time // by this process

	rangesMu sync.Mutex // guards ranges; held while its follower is told
	ranges   ranges

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
	if err := CheckNamed(m.opts.Bridge, m.cidrs, m.opts.Networks, m.opts.Connected); err != nil {
		return err
	}
	if m.plugin, err = bridge.NewWithRules(m.log, m.opts.RulesNS); err != nil {
		return err
	}
	m.plugin.ServeLoopback()
	if err := m.plugin.WatchLinks(); err != nil {
		return errors.Join(err, m.plugin.Close())
	}
	if m.exec, err = newExecutor(m.plugin); err != nil {
		return errors.Join(err, m.plugin.Close())
	}
	if m.router, err = newRouter(m.opts.Routes, m.path("routes.json")); err != nil {
		return errors.Join(err, m.plugin.Close(), m.exec.close())
	}
	m.cni = libcni.NewCNIConfigWithCacheDir(m.opts.BinDirs, m.path("cni"), m.exec)
	m.openRanges()
	return nil
}

func (m *Manager) path(elem ...string) string {
	return filepath.Join(append([]string{m.opts.RunDir}, elem...)...)
}

// Drain waits until the links of detached pods are deleted and their addresses free.
func (m *Manager) Drain() { m.plugin.Drain() }

// Close waits for deletions in the background. Pods stay attached.
func (m *Manager) Close() error {
	m.router.close()
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

// SetPodCIDRs gives the built-in network new ranges. Pods that are attached keep their addresses.
func (m *Manager) SetPodCIDRs(cidrs []netip.Prefix) error {
	if err := errors.Join(bridge.CheckRanges(cidrs), CheckNamed(m.opts.Bridge, cidrs, m.opts.Networks, nil)); err != nil {
		return fmt.Errorf("set pod ranges: %w", err)
	}
	if err := atomicfile.WriteJSON(m.path("podcidrs.json"), cidrRecord{m.boot, cidrs}); err != nil {
		return fmt.Errorf("set pod ranges: %w", err)
	}
	m.mu.Lock()
	m.cidrs = cidrs
	m.mu.Unlock()
	m.addRanges(cidrs)
	return nil
}

// Sync writes the built-in networks' bridges, addresses, kernel settings, links and
// rules, and the routes to other hosts' pods again: what somebody changed is back
// when it returns. A network of other plugins is theirs to heal. What cannot be
// healed is told by Problems too, and tried again by the next Sync.
func (m *Manager) Sync(context.Context) error {
	lists, err := m.inUse()
	errs := []error{err}
	attempts, err := m.attempts()
	if err != nil {
		m.log.Error("read attempts", "error", err)
	}
	for _, a := range attempts {
		if !slices.ContainsFunc(lists, func(l *libcni.NetworkConfigList) bool { return l.Name == a.Network }) {
			if l, err := libcni.NetworkConfFromBytes(a.Conf); err == nil {
				lists = append(lists, l)
			}
		}
	}
	for _, l := range lists {
		if err := eachBuiltIn(l, m.plugin.Sync); err != nil {
			errs = append(errs, fmt.Errorf("sync network %s: %w", l.Name, err))
		}
	}
	errs = slices.DeleteFunc(append(errs, m.router.ensure()...), func(err error) bool { return err == nil })
	m.mu.Lock()
	m.failing = errs
	m.mu.Unlock()
	return errors.Join(errs...)
}

// Problems says what the last Sync could not heal, nil if nothing.
func (m *Manager) Problems() []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.failing)
}

// Damage says what somebody has changed on the built-in networks' bridges, their
// addresses, links or kernel settings or on the routes, nil if nothing; Sync cures
// it. It costs less than a millisecond.
func (m *Manager) Damage(context.Context) ([]bridge.Damage, error) {
	lists, err := m.inUse()
	errs := []error{err}
	var found []bridge.Damage
	note := func(d bridge.Damage, err error) error {
		if d.What != "" {
			found = append(found, d)
		}
		return err
	}
	for _, list := range lists {
		errs = append(errs, eachBuiltIn(list, func(conf []byte) error { return note(m.plugin.Damage(conf)) }))
	}
	errs = append(errs, note(m.router.damage()))
	return found, errors.Join(errs...)
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
func (m *Manager) Blockers() ([]string, error) {
	var all []string
	var errs []error
	for _, name := range m.builtIn() {
		found, err := m.plugin.Blockers(bridgeOf(m.opts.Bridge, name))
		all, errs = append(all, found...), append(errs, err)
	}
	return all, errors.Join(errs...)
}

// Spoofed counts the packets of pods that came from an address that is not theirs, and were
// dropped: of the built-in networks, since their rules were written last.
func (m *Manager) Spoofed() (packets uint64, err error) {
	for _, name := range m.builtIn() {
		n, err := m.plugin.Spoofed(bridgeOf(m.opts.Bridge, name))
		if err != nil {
			return packets, err
		}
		packets += n
	}
	return packets, nil
}
