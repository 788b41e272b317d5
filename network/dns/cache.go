package dns

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds of the cache: how many answers, and for how long at most, in seconds.
// It spares the upstream a burst of the same question; it does not replace the
// cache of a resolver.
const (
	cacheSize = 2048
	cacheTTL  = 30
)

// cacheKey is what makes two questions the same.
type cacheKey struct {
	name   string
	qtype  uint16
	do, cd bool
}

func keyOf(req *dns.Msg) cacheKey {
	q := req.Question[0]
	opt := req.IsEdns0()
	return cacheKey{strings.ToLower(q.Name), q.Qtype, opt != nil && opt.Do(), req.CheckingDisabled}
}

type cached struct {
	msg         *dns.Msg
	at, expires time.Time
}

type cache struct {
	clock func() time.Time

	mu      sync.Mutex // guards what follows
	answers map[cacheKey]cached
	epoch   int // how often it was emptied
}

func newCache(clock func() time.Time) *cache {
	return &cache{clock: clock, answers: map[cacheKey]cached{}}
}

// get is a copy for the caller, with the time that is left, or nil. epoch goes to put.
func (c *cache) get(key cacheKey, name string) (answer *dns.Msg, epoch int) {
	now := c.clock()
	c.mu.Lock()
	found, ok := c.answers[key]
	epoch = c.epoch
	c.mu.Unlock()
	if !ok || !now.Before(found.expires) {
		return nil, epoch
	}
	age := uint32(now.Sub(found.at) / time.Second)
	answer = found.msg.Copy()
	for _, rr := range records(answer) {
		h := rr.Header()
		h.Ttl -= min(age, h.Ttl)
		if strings.EqualFold(h.Name, name) { // in the letters of who asks
			h.Name = name
		}
	}
	return answer, epoch
}

// put keeps an answer for as long as it says, unless the servers have changed
// since it was asked for.
func (c *cache) put(key cacheKey, answer *dns.Msg, epoch int) {
	seconds := lifetime(answer)
	if seconds == 0 {
		return
	}
	now := c.clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch != c.epoch {
		return
	}
	if len(c.answers) >= cacheSize {
		c.evict(now)
	}
	c.answers[key] = cached{answer.Copy(), now, now.Add(time.Duration(seconds) * time.Second)}
}

// evict makes room: what has expired goes, and some others if that is not enough.
func (c *cache) evict(now time.Time) {
	for k, a := range c.answers {
		if !now.Before(a.expires) {
			delete(c.answers, k)
		}
	}
	for k := range c.answers {
		if len(c.answers) <= cacheSize*7/8 {
			return
		}
		delete(c.answers, k)
	}
}

// clear forgets everything: other servers may say otherwise.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.answers)
	c.epoch++
}

// lifetime is for how many seconds an answer may be kept, 0 for not at all.
func lifetime(m *dns.Msg) uint32 {
	if m.Truncated || (m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError) {
		return 0
	}
	life := uint32(cacheTTL)
	for _, rr := range records(m) {
		life = min(life, rr.Header().Ttl)
	}
	if len(m.Answer) > 0 {
		return life
	}
	for _, rr := range m.Ns { // an answer that there is none: the SOA says for how long
		if soa, ok := rr.(*dns.SOA); ok {
			return min(life, soa.Minttl)
		}
	}
	return 0
}

func records(m *dns.Msg) []dns.RR {
	var out []dns.RR
	for _, list := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range list {
			if rr.Header().Rrtype != dns.TypeOPT {
				out = append(out, rr)
			}
		}
	}
	return out
}
