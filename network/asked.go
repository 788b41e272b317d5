package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// asked are the capabilities that a pod asks for by annotations of ours.
func (p Pod) asked() (map[string]any, error) {
	caps := map[string]any{}
	var errs []error
	for key, read := range map[string]struct {
		capability string
		parse      func(string) (any, error)
	}{
		AnnotationIPs:     {"ips", parseIPs},
		AnnotationMAC:     {"mac", parseMAC},
		AnnotationAliases: {"aliases", parseAliases},
		AnnotationGUID:    {"infinibandGUID", parseGUID},
	} {
		text, ok := p.Annotations[key]
		if !ok {
			continue
		}
		v, err := read.parse(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("annotation %s %q: %w", key, text, err))
			continue
		}
		caps[read.capability] = v
	}
	return caps, errors.Join(errs...)
}

// able refuses what no plugin of the network does: libcni would leave it out without a word. What a
// kubelet asks for also on networks that cannot do it is only told.
func (m *Manager) able(list *libcni.NetworkConfigList, p Pod) error {
	caps, err := capabilities(p)
	if err != nil {
		return err
	}
	can := func(capability string) bool {
		return slices.ContainsFunc(list.Plugins, func(c *libcni.PluginConfig) bool { return c.Network.Capabilities[capability] })
	}
	for _, c := range []string{"ips", "mac", "aliases", "infinibandGUID"} {
		if caps[c] != nil && !can(c) {
			return fmt.Errorf("pod asks for %s, but no plugin of network %s has that capability; add it to the network's configuration or take the annotation away", c, list.Name)
		}
	}
	for _, c := range []string{"bandwidth", "portMappings"} {
		if caps[c] != nil && !can(c) {
			m.log.Warn("pod asks for what no plugin of its network does", "pod", p.Namespace+"/"+p.Name, "network", list.Name, "capability", c)
		}
	}
	return nil
}

func items(text string) []string {
	all := strings.Split(text, ",")
	for i := range all {
		all[i] = strings.TrimSpace(all[i])
	}
	return all
}

func parseIPs(text string) (any, error) {
	all := items(text)
	for _, s := range all {
		if _, err := netip.ParseAddr(s); err == nil && !strings.Contains(s, "%") {
			continue
		}
		if _, err := netip.ParsePrefix(s); err != nil {
			return nil, fmt.Errorf("%q is not an address, such as 10.88.0.20 or 10.88.0.20/24", s)
		}
	}
	return all, nil
}

func parseMAC(text string) (any, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, errors.New("want six bytes of a unicast address, such as 02:00:00:00:00:01")
	}
	return mac.String(), nil
}

func parseGUID(text string) (any, error) {
	if guid, err := net.ParseMAC(text); err != nil || len(guid) != 8 {
		return nil, errors.New("want eight bytes, such as 02:00:00:00:00:00:00:01")
	}
	return text, nil
}

func parseAliases(text string) (any, error) {
	name := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	all := items(text)
	for _, s := range all {
		if !name.MatchString(s) {
			return nil, fmt.Errorf("%q is not a name: want at most 63 lower-case letters, digits and dashes", s)
		}
	}
	return all, nil
}

// check refuses what could not stand in a resolv.conf: a plugin's answer is a stranger's text.
func (d DNS) check() error {
	for _, s := range d.Servers {
		if _, err := netip.ParseAddr(s); err != nil {
			return fmt.Errorf("dns: %q is not an address", s)
		}
	}
	for _, w := range slices.Concat(d.Searches, d.Options) {
		if w == "" || len(w) > 255 || strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("dns: %q is not a word", w)
		}
	}
	return nil
}
