package xds

import (
	"slices"
	"sync"
	"time"
)

// What became of a resource.
const (
	added   = "added"
	changed = "changed"
	removed = "removed"
)

// Change is what the upstream said of one resource that was not so before.
type Change struct {
	Time   time.Time `json:"time"`
	Change string    `json:"change"` // added, changed or removed
	Type   string    `json:"type"`   // its URL
	Name   string    `json:"name"`
}

const (
	// maxHistory bounds the changes that are kept, in bytes. It has room for some ten thousand: about as many as the first
	// configuration of a mesh with 3,000 hosts has, and much more than a usual day.
	maxHistory = 1 << 20
	// changeBytes is what a change takes besides its name.
	changeBytes = 72
)

// history holds the last changes. It is safe for concurrent use.
type history struct {
	mu      sync.Mutex
	changes []Change
	bytes   int
}

// add adds changes, which happened after all before, and drops the oldest ones beyond maxHistory.
func (h *history) add(changes []Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range changes {
		h.bytes += changeBytes + len(c.Name)
	}
	h.changes = append(h.changes, changes...)
	dropped := 0
	for ; h.bytes > maxHistory; dropped++ {
		h.bytes -= changeBytes + len(h.changes[dropped].Name)
	}
	h.changes = slices.Delete(h.changes, 0, dropped)
}

// Changes returns what the upstream has changed of what Envoy asks for, oldest first: of the last changes as many as fit in
// 1 MiB.
func (r *Relay) Changes() []Change {
	r.history.mu.Lock()
	defer r.history.mu.Unlock()
	return slices.Clone(r.history.changes)
}

// Inherit puts changes that the generation before has seen before those of this one.
func (r *Relay) Inherit(before []Change) {
	own := r.Changes()
	r.history.mu.Lock()
	r.history.changes, r.history.bytes = nil, 0
	r.history.mu.Unlock()
	r.history.add(slices.Concat(before, own))
}

// changes are those that a response makes of what the ledger has.
func (l *ledger) changes(url string, resources []Resource, gone []string, now time.Time) []Change {
	var all []Change
	for _, r := range resources {
		switch e, held := l.held[r.Name]; {
		case !l.wants(r.Name):
		case !held:
			all = append(all, Change{now, added, url, r.Name})
		case e.newest.version != r.version:
			all = append(all, Change{now, changed, url, r.Name})
		}
	}
	for _, name := range gone {
		if _, held := l.held[name]; held {
			all = append(all, Change{now, removed, url, name})
		}
	}
	return all
}
