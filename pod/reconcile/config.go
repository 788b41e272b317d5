package reconcile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// logDir is STATE/logs/NAMESPACE_NAME_UID.
func (e *Engine) logDir(p *corev1.Pod) string {
	return filepath.Join(e.opts.StateDir, "logs", p.Namespace+"_"+p.Name+"_"+string(p.UID))
}

func logName(container string, attempt uint32) string {
	return filepath.Join(container, strconv.FormatUint(uint64(attempt), 10)+".log")
}

// sandboxConfig turns a Pod into what the pod manager runs.
func (e *Engine) sandboxConfig(p *corev1.Pod, attempt uint32) (pod.Config, error) {
	s := &p.Spec
	hostname, domain, err := e.fullName(p)
	if err != nil {
		return pod.Config{}, err
	}
	cfg := pod.Config{
		Name: p.Name, Namespace: p.Namespace, UID: string(p.UID), Attempt: attempt, Declared: true,
		Hostname: hostname, Domain: domain, Labels: p.Labels, LogDirectory: e.logDir(p),
		Annotations: map[string]string{graceAnnotation: strconv.FormatInt(int64(graceOf(p).Seconds()), 10)},
		HostNetwork: s.HostNetwork, HostPID: s.HostPID, HostIPC: s.HostIPC,
		SharePID: isTrue(s.ShareProcessNamespace), Privileged: privileged(p),
	}
	for k, v := range p.Annotations {
		cfg.Annotations[k] = v
	}
	if err := e.mapUsers(&cfg, p); err != nil {
		return pod.Config{}, err
	}
	if s.RuntimeClassName != nil {
		cfg.Handler = *s.RuntimeClassName
	}
	if err := noteEnding(cfg.Annotations, p); err != nil {
		return pod.Config{}, err
	}
	if s.Resources != nil {
		cfg.Resources = asCgroup(s.Resources)
	}
	for _, a := range s.HostAliases {
		cfg.HostAliases = append(cfg.HostAliases, pod.HostAlias{IP: a.IP, Hostnames: a.Hostnames})
	}
	if sc := s.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		cfg.Sysctls = map[string]string{}
		for _, y := range sc.Sysctls {
			cfg.Sysctls[strings.ReplaceAll(y.Name, "/", ".")] = y.Value
		}
	}
	for i := range s.Containers {
		for _, port := range s.Containers[i].Ports {
			if port.HostPort != 0 && !s.HostNetwork {
				cfg.Ports = append(cfg.Ports, network.PortMapping{
					HostIP: port.HostIP, HostPort: uint16(port.HostPort),
					ContainerPort: uint16(port.ContainerPort), Protocol: strings.ToLower(string(port.Protocol)),
				})
			}
		}
	}
	cfg.DNS, err = e.dns(p.Namespace, s)
	return cfg, err
}

func privileged(p *corev1.Pod) bool {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if c.SecurityContext != nil && isTrue(c.SecurityContext.Privileged) {
			return true
		}
	}
	return false
}

// dns is nil for the host's resolver as it is. A dnsConfig is added to what the
// policy gives; policy None gives nothing.
func (e *Engine) dns(namespace string, s *corev1.PodSpec) (*pod.DNS, error) {
	cluster := e.usesClusterDNS(s)
	if s.DNSConfig == nil && !cluster {
		return nil, nil
	}
	d := &pod.DNS{}
	if s.DNSPolicy != corev1.DNSNone {
		data, err := os.ReadFile(e.opts.ResolvConf)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("read the host's resolver configuration: %w", err)
		}
		d = parseResolvConf(string(data))
	}
	if cluster {
		d = e.clusterDNS(namespace, d)
	}
	if s.DNSConfig == nil {
		return d, nil
	}
	d.Servers = appendNew(d.Servers, s.DNSConfig.Nameservers...)
	d.Searches = appendNew(d.Searches, s.DNSConfig.Searches...)
	for _, o := range s.DNSConfig.Options {
		d.Options = slices.DeleteFunc(d.Options, func(have string) bool {
			name, _, _ := strings.Cut(have, ":")
			return name == o.Name
		})
		text := o.Name
		if o.Value != nil && *o.Value != "" {
			text += ":" + *o.Value
		}
		d.Options = append(d.Options, text)
	}
	return d, nil
}

func appendNew(list []string, more ...string) []string {
	for _, m := range more {
		if !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

func parseResolvConf(text string) *pod.DNS {
	d := &pod.DNS{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			d.Servers = append(d.Servers, f[1])
		case "search":
			d.Searches = f[1:]
		case "options":
			d.Options = append(d.Options, f[1:]...)
		}
	}
	return d
}

// create makes the next attempt of a container: image, environment, mounts, record.
func (s *podSync) create(ctx context.Context, c *corev1.Container) (string, error) {
	if err := s.images(ctx, c); err != nil {
		return "", err
	}
	cfg, err := s.containerConfig(c)
	if err != nil {
		return "", &waiting{reasonCreateConfig, err}
	}
	if err := os.MkdirAll(filepath.Join(s.e.logDir(s.pod), c.Name), 0o700); err != nil {
		return "", err
	}
	id, err := s.e.pods.CreateContainer(ctx, s.box.ID, cfg)
	if errors.Is(err, pod.ErrInvalid) {
		err = &waiting{reasonCreateConfig, err}
	}
	if err != nil {
		return "", err
	}
	s.dropOld(ctx, c.Name, cfg.Attempt)
	return id, nil
}

// dropOld removes all attempts before the last but one, whose log is for --previous.
func (s *podSync) dropOld(ctx context.Context, name string, attempt uint32) {
	var errs []error
	for _, old := range s.box.containers[name] {
		if old.Config.Attempt+1 < attempt && old.Status != runtime.Running {
			s.e.probes.Forget(old.ID)
			errs = append(errs, s.e.pods.RemoveContainer(ctx, old.ID))
		}
	}
	for _, n := range s.e.logAttempts(s.pod, name) {
		if n+1 < attempt {
			files, err := filepath.Glob(filepath.Join(s.e.logDir(s.pod), logName(name, n)) + "*")
			errs = append(errs, err)
			for _, f := range files {
				errs = append(errs, os.Remove(f))
			}
			if err := os.Remove(s.e.volumes.messageFile(s.pod.UID, name, n)); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		s.e.log.Warn("remove former attempts", "pod", s.object.Ref().String(), "container", name, "error", err)
	}
}

// logAttempts are the attempts that have a log file, in order. They outlive the
// records, so that restarts are counted on after a reboot.
func (e *Engine) logAttempts(p *corev1.Pod, name string) []uint32 {
	entries, err := os.ReadDir(filepath.Join(e.logDir(p), name))
	if err != nil {
		return nil
	}
	var out []uint32
	for _, d := range entries {
		if base, ok := strings.CutSuffix(d.Name(), ".log"); ok {
			if n, err := strconv.ParseUint(base, 10, 32); err == nil {
				out = append(out, uint32(n))
			}
		}
	}
	slices.Sort(out)
	return out
}

func (s *podSync) nextAttempt(name string) uint32 {
	var next uint32
	if n := s.e.logAttempts(s.pod, name); len(n) > 0 {
		next = n[len(n)-1] + 1
	}
	for _, b := range s.e.pods.of(s.object.Ref()) {
		if last, ok := b.last(name); ok && b.Config.UID == string(s.pod.UID) {
			next = max(next, last.Config.Attempt+1)
		}
	}
	return next
}

func (s *podSync) containerConfig(c *corev1.Container) (pod.ContainerConfig, error) {
	none := pod.ContainerConfig{}
	env, err := environment(s.pod, c, s.e.serviceLinks(s.pod), s.e.podFacts(s.pod, s.box), s.e.lookup)
	if err != nil {
		return none, err
	}
	if err := s.e.volumes.prepare(s.pod, s.e.lookup); err != nil {
		return none, err
	}
	vars := map[string]string{}
	for _, v := range env {
		vars[v.Name] = v.Value
	}
	mounts, err := s.e.volumes.mounts(s.pod, c, vars)
	if err != nil {
		return none, err
	}
	attempt := s.nextAttempt(c.Name)
	message, err := s.e.volumes.messageMount(s.pod.UID, c, attempt)
	if err != nil {
		return none, err
	}
	cfg := pod.ContainerConfig{
		Name: c.Name, Attempt: attempt, Image: c.Image, ImageName: c.Image,
		Command: expandAll(c.Command, vars), Args: expandAll(c.Args, vars), WorkingDir: c.WorkingDir, Env: env,
		LogPath: logName(c.Name, attempt), Stdin: c.Stdin, StdinOnce: c.StdinOnce, Terminal: c.TTY,
		Mounts: shifted(append(mounts, message...), &s.box.Config), Resources: s.e.resources(s.pod, c), HostPID: s.pod.Spec.HostPID,
	}
	if cfg.CDIDevices, err = pod.CDIDevices(nil, s.pod.Annotations); err != nil {
		return none, err
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		cfg.StopSignal = string(*c.Lifecycle.StopSignal)
	}
	return cfg, security(&cfg, s.pod, c, s.e.opts.SeccompProfiles)
}

func expandAll(list []string, vars map[string]string) []string {
	var out []string
	for _, s := range list {
		out = append(out, expand(s, vars))
	}
	return out
}

func (e *Engine) podFacts(p *corev1.Pod, b *box) podFacts {
	f := podFacts{nodeName: e.opts.NodeName}
	for _, ip := range e.opts.NodeIPs() {
		f.hostIPs = append(f.hostIPs, ip.String())
	}
	f.podIPs = e.podIPs(p, b)
	return f
}

// podIPs are the sandbox's addresses; on the host's network, the host's.
func (e *Engine) podIPs(p *corev1.Pod, b *box) []string {
	if b == nil {
		return nil
	}
	ips := b.IPs
	if p.Spec.HostNetwork {
		ips = e.opts.NodeIPs()
	}
	var out []string
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return out
}
