package dns

import (
	"context"
	"crypto/rand"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// checkLoops asks each upstream for a name that nobody else asks for. If the
// question comes back to us, the upstream forwards to this server: what we asked it
// would go round until all give up.
func (f *forwarder) checkLoops(ctx context.Context) {
	f.mu.Lock()
	names := map[string]netip.AddrPort{}
	for _, s := range f.servers {
		names[strings.ToLower(rand.Text())+".pausa-loop-check."] = s
	}
	f.probes = names
	f.mu.Unlock()
	for name, s := range names {
		go func() {
			// The answer does not matter, and HINFO is what nobody keeps.
			_, _ = f.ask(ctx, new(dns.Msg).SetQuestion(name, dns.TypeHINFO), s)
		}()
	}
}

// cameBack tells whether a question is one of checkLoops, and no more asks the
// upstream that sent it round.
func (f *forwarder) cameBack(q dns.Question) bool {
	if q.Qtype != dns.TypeHINFO {
		return false
	}
	f.mu.Lock()
	server, ours := f.probes[strings.ToLower(q.Name)]
	fresh := ours && !f.looped[server]
	if ours {
		f.looped[server] = true
	}
	f.mu.Unlock()
	if fresh {
		f.log.Warn("a name server of the host's resolver configuration asks this one: it is not asked any more, until the configuration changes; name another server there", "server", server)
	}
	return ours
}
