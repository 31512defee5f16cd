package agent

import (
	"sync"

	"understudy.mesh/pkg/mesh"
)

// mailbox holds the newest registry; what was not taken yet is replaced.
type mailbox struct {
	ch   chan *mesh.Registry
	mu   sync.Mutex
	last *mesh.Registry
}

func newMailbox() *mailbox { return &mailbox{ch: make(chan *mesh.Registry, 1)} }

func (m *mailbox) put(r *mesh.Registry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = r
	m.deliver()
}

// again puts the last one in once more, if there was one.
func (m *mailbox) again() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last != nil {
		m.deliver()
	}
}

// deliver replaces what was not taken yet by the last one. m.mu is held.
func (m *mailbox) deliver() {
	select {
	case <-m.ch:
	default:
	}
	m.ch <- m.last
}
