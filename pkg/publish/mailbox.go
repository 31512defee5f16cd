package publish

import (
	"sync"

	"understudy.mesh/pkg/mesh"
)

// Mailbox holds the newest registry; what was not taken yet is replaced.
type Mailbox struct {
	C    chan *mesh.Registry // holds it until it is taken
	mu   sync.Mutex
	last *mesh.Registry
}

// NewMailbox returns an empty one.
func NewMailbox() *Mailbox { return &Mailbox{C: make(chan *mesh.Registry, 1)} }

// Put puts r in.
func (m *Mailbox) Put(r *mesh.Registry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = r
	m.deliver()
}

// Again puts the last one in once more, if there was one.
func (m *Mailbox) Again() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last != nil {
		m.deliver()
	}
}

// deliver replaces what was not taken yet by the last one. m.mu is held.
func (m *Mailbox) deliver() {
	select {
	case <-m.C:
	default:
	}
	m.C <- m.last
}
