package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/cri"
	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/internal/apparmor"
	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/event"
	"github.com/pausa-run/pausa/pod/reconcile"
	"github.com/pausa-run/pausa/runtime"
)

// daemon runs until ctx ends. Pods, containers and the keeper go on after it.
func (p *program) daemon(ctx context.Context, c *config.Config) (err error) {
	started := time.Now()
	log := p.logger(c)
	var down closers // what was opened, closed in reverse
	defer func() { err = errors.Join(err, down.close()) }()

	for _, dir := range []string{c.State, c.Run} {
		lock, err := lockFolder(dir)
		if err != nil {
			return err
		}
		down.add(lock.Close)
	}
	// The root of a pod's user namespace is nobody here, and must get through to
	// its containers' root folders. What is not for others is closed below.
	if err := os.Chmod(c.Run, 0o711); err != nil { //nolint:gosec // see above
		return fmt.Errorf("let user namespaces through %s: %w", c.Run, err)
	}
	groups, err := openCgroup(c.CgroupParent, c.CgroupDriver)
	if err != nil {
		return err
	}
	down.add(groups.close)

	node, err := nodeName(c)
	if err != nil {
		return err
	}
	events := event.Open(event.Options{Path: filepath.Join(c.Run, "events.json"), Node: node, Log: log})
	down.add(events.Close)
	launch, err := p.launchOptions(c, log)
	if err != nil {
		return err
	}
	launch.Hold = runtime.NewHolder() // what containers need outlives each keeper
	down.add(func() error { launch.Hold.Close(); return nil })
	keeper, err := runtime.Launch(ctx, launch)
	if err != nil {
		return err
	}
	down.add(keeper.Close)
	store, err := images.Open(ctx, imageOptions(c, log))
	if err != nil {
		return err
	}
	down.add(store.Close)
	rulesNS, err := rulesNamespace(c, log)
	if err != nil {
		return err
	}
	netOptions := networkOptions(c, log)
	netOptions.RulesNS = rulesNS
	net, err := network.New(netOptions)
	if err != nil {
		return err
	}
	down.add(net.Close)
	if err := net.Sync(ctx); err != nil { // no reason to end: Status says NetworkReady=false, and it is tried again
		log.Error("network is not ready", "error", err)
	}
	services, err := service.Open(ctx, service.Options{
		RulesNS:      rulesNS,
		ServiceCIDRs: c.ServiceCIDRs, PodCIDRs: c.PodCIDRs, NodePortMin: c.NodePortMin, NodePortMax: c.NodePortMax, RouteDev: c.Bridge, Log: log,
	})
	if err != nil {
		return err
	}
	down.add(services.Close)
	meters := newMeters()
	inherited := inheritedDNS(ctx, keeper, log)
	names, clusterDNS, dnsWarnings := openDNS(c, inherited, net.Routed, meters.answered, log)
	closeAll(inherited) // those in use were duplicated
	if names != nil {
		down.add(names.Close)
	}
	depositDNS(ctx, keeper, names, log)
	followRanges(net, services, names, c.ServiceCIDRs, log)
	handlers, err := runtimeHandlers(c)
	if err != nil {
		return err
	}
	confinement := apparmor.Open(ctx)
	pods, err := pod.New(pod.Options{
		RunDir: c.Run, CgroupParent: c.CgroupParent, CgroupDriver: groups.driver, Runtime: keeper, Network: meteredNetwork{net, meters}, Images: store, AppArmor: confinement.Resolve, Log: log,
		Handlers: handlers, CDIDirs: c.CDIDirs,
		Relaunch: meters.relaunch(func(ctx context.Context) (pod.Runtime, error) {
			keeper, err := runtime.Launch(ctx, launch)
			if err != nil {
				return nil, err
			}
			depositDNS(ctx, keeper, names, log)
			events.Warning(events.Node(), eventKeeper, "The keeper had ended; another one runs, version %s", version)
			return keeper, nil
		}),
	})
	if err != nil {
		return err
	}
	down.add(func() error { pods.Close(); return nil })
	if names != nil && c.DNSAllPods {
		namePods(names, pods)
	}
	if err := pods.Recover(ctx); err != nil {
		return err
	}
	var balancers reconcile.Allocator
	if len(c.BalancerCIDRs) > 0 {
		balancers = service.NewAllocator(c.BalancerCIDRs, 0, 0)
	}
	engine, err := reconcile.New(reconcile.Options{
		StateDir: c.State, RunDir: c.Run, Pods: pods, Images: store, Services: meteredServices{services, meters},
		Pull: func(ctx context.Context, ref string, auth images.Auth) error {
			_, err := meters.pull(func() (images.Image, error) { return store.Pull(ctx, ref, images.PullOptions{Auth: auth}) })
			return err
		},
		Alloc:           service.NewAllocator(c.ServiceCIDRs, c.NodePortMin, c.NodePortMax),
		Balancers:       balancers,
		Handlers:        handlers,
		SeccompProfiles: c.SeccompProfiles,
		CgroupV2:        groups.mode == "v2",
		NodeName:        node, NodeIPs: nodeIPs(c.Bridge), DNS: clusterDNS, Events: events, Log: log,
	})
	if err != nil {
		return err
	}
	host := hostFacts{config: c, cgroup: groups.String(), appArmor: confinement.State(), started: started, keeper: keeper, warnings: append(hostWarnings(), dnsWarnings...), blockers: net.Blockers, problems: net.Problems, handlers: handlers}
	if err := confinement.Problem(); err != nil {
		host.warnings = append(host.warnings, fmt.Sprintf("containers run without the default AppArmor profile: %v", err))
	}
	blockers, err := net.Blockers()
	if err != nil {
		log.Error("look at the rules of others", "error", err)
	}
	for _, w := range slices.Concat(blockers, host.warnings, missingPrograms(handlers)) {
		log.Warn("limit of this host", "warning", w)
	}
	noUserNamespaces := store.CanShift()
	if noUserNamespaces != nil {
		log.Warn("pods with a user namespace cannot run here", "error", noUserNamespaces)
	}
	server, err := cri.New(cri.Options{
		Pods: pods, Images: store, Pull: pullFor(store, meters), ImageTools: store, Objects: declaredBy(engine),
		Handlers: handlers, UserNamespaces: noUserNamespaces == nil,
		Version: version, Info: host.info, CgroupDriver: groups.driver, Observe: meters.call, Events: events, Log: log,
	})
	if err != nil {
		return err
	}
	meters.count(pods, services.Counts)
	events.Normal(events.Node(), eventStarting, "Starting pausa %s", version)
	work, ctx := errgroup.WithContext(ctx)
	if c.MetricsAddress != "" {
		work.Go(func() error { return meters.serve(ctx, c.MetricsAddress, log) })
	}
	work.Go(func() error { return engine.Run(ctx) })
	work.Go(func() error { return server.Serve(ctx, c.Socket) })
	work.Go(func() error { return p.announce(ctx, c.Socket) })
	work.Go(func() error {
		(&healer{net: net, services: services, healed: meters.healed, events: events, log: log}).run(ctx)
		return nil
	})
	if names != nil {
		work.Go(func() error { serveDNS(ctx, names, events, log); return nil })
		work.Go(func() error { keepDNSAddrs(ctx, clusterDNS.Addrs, events, log); return nil })
	}
	err = work.Wait()
	log.Info("stopped; containers go on", "error", err)
	return err
}

// closers are called in reverse order; all of them, whatever fails.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c *closers) close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i]())
	}
	return errors.Join(errs...)
}

func (p *program) logger(c *config.Config) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // config allows the four names alone
	opts := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(p.err, opts))
	}
	return slog.New(slog.NewTextHandler(p.err, opts))
}

func (p *program) launchOptions(c *config.Config, log *slog.Logger) (runtime.LaunchOptions, error) {
	logs := filepath.Join(c.State, "logs")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return runtime.LaunchOptions{}, fmt.Errorf("make folder for logs: %w", err)
	}
	binary := c.KeeperBinary
	if binary == "" {
		self, err := os.Executable()
		if err != nil {
			return runtime.LaunchOptions{}, fmt.Errorf("find pausa-keeper beside pausa: %w", err)
		}
		binary = filepath.Join(filepath.Dir(self), "pausa-keeper")
	}
	return runtime.LaunchOptions{Binary: binary, RunDir: c.Run, LogFile: filepath.Join(logs, "keeper.log"), Log: log}, nil
}

func nodeName(c *config.Config) (string, error) {
	if c.NodeName != "" {
		return c.NodeName, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find this host's name: %w: set node.name", err)
	}
	return strings.ToLower(name), nil
}
