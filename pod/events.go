package pod

import (
	"sync"
	"time"
)

// eventBuffer is how many events a subscriber may lag behind before it is cut off.
const eventBuffer = 4096

// broadcaster hands events to subscribers and never waits for one.
type broadcaster struct {
	mu     sync.Mutex
	subs   map[chan Event]struct{}
	closed bool
}

// Subscribe returns every event from now on. A subscriber that lags more than
// 4,096 events behind finds its channel closed and must list anew. cancel ends it.
func (m *Manager) Subscribe() (events <-chan Event, cancel func()) {
	return m.events.subscribe()
}

// tell sends an event of a pod, or of one of its containers.
func (m *Manager) tell(t EventType, p *sandbox, containerID string) {
	m.mu.RLock()
	now := p.shown
	m.mu.RUnlock()
	m.events.send(Event{Type: t, PodID: now.ID, ContainerID: containerID, Pod: now})
}

func (b *broadcaster) subscribe() (<-chan Event, func()) {
	ch := make(chan Event, eventBuffer)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(ch)
		return ch, func() {}
	}
	if b.subs == nil {
		b.subs = map[chan Event]struct{}{}
	}
	b.subs[ch] = struct{}{}
	return ch, func() { b.drop(ch) }
}

func (b *broadcaster) drop(ch chan Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.subs[ch]; ok {
		delete(b.subs, ch)
		close(ch)
	}
}

func (b *broadcaster) send(e Event) {
	e.Time = time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.subs {
		select {
		case ch <- e:
		default:
			delete(b.subs, ch)
			close(ch)
		}
	}
}

func (b *broadcaster) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for ch := range b.subs {
		close(ch)
	}
	b.subs = nil
}
