package dns

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// SetPods lets names such as 10-88-0-5.NAMESPACE.pod be those of other pods too, as
// of a kubelet's: has tells whether a pod of the namespace has the address.
func (s *Server) SetPods(has func(namespace string, a netip.Addr) bool) { s.handler.pods.Store(&has) }

// otherPod is the address that a name of a pod stands for, if SetPods knows the pod.
func (h *handler) otherPod(name string) (netip.Addr, bool) {
	has := h.pods.Load()
	rest, ok := strings.CutSuffix(name, ".pod."+h.domain)
	label, namespace, two := strings.Cut(rest, ".")
	if has == nil || !ok || !two || strings.Contains(namespace, ".") {
		return netip.Addr{}, false
	}
	for _, sep := range []string{".", ":"} {
		a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", sep))
		if err == nil && dashed(a) == label && (*has)(namespace, a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// answerPod replaces an answer that there is no such name by one about that pod.
func (z *zone) answerPod(reply *dns.Msg, q dns.Question, a netip.Addr) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	reply.Rcode, reply.Ns = dns.RcodeSuccess, nil
	if rr := addrRR(q.Name, a); q.Qtype == rr.Header().Rrtype || q.Qtype == dns.TypeANY {
		reply.Answer = []dns.RR{rr}
		return
	}
	reply.Ns = []dns.RR{z.soa(z.domain)}
}
