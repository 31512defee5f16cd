package sidecar

import (
	"context"
	"sync"
	"sync/atomic"
)

// probation is the time in which a newcomer answers on the agent's ports while the generation before, whose
// Envoy still serves, can take back. What only an Envoy knows is asked of that one where the newcomer's
// own has died. A nil probation, of a cold start, has always been over.
type probation struct {
	begun  atomic.Bool
	over   chan struct{}
	once   sync.Once
	failed bool // valid once over is closed
}

func newProbation() *probation { return &probation{over: make(chan struct{})} }

// begin: from here on this generation answers on the agent's ports.
func (p *probation) begin() {
	if p != nil {
		p.begun.Store(true)
	}
}

// pass ends it: this generation is the one that serves.
func (p *probation) pass() { p.end(false) }

// fail ends it: this generation accepts nothing any more, and the one before serves on.
func (p *probation) fail() { p.end(true) }

func (p *probation) end(failed bool) {
	if p == nil {
		return
	}
	p.once.Do(func() {
		p.failed = failed
		close(p.over)
	})
}

// servedElsewhere waits for its end, which is near where it is asked because an Envoy has died; true when
// it failed. Before it has begun, who asks this generation means this one, and is not kept waiting.
func (p *probation) servedElsewhere(ctx context.Context) bool {
	if p == nil || !p.begun.Load() {
		return false
	}
	select {
	case <-p.over:
		return p.failed
	case <-ctx.Done():
		return false
	}
}
