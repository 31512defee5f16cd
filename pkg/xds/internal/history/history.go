// Package history owns the last changes of resources, in few bytes: there are ten thousand of them in each pod.
package history

import (
	"slices"
	"sync"
	"time"
)

// What became of a resource.
const (
	Added   = "added"
	Changed = "changed"
	Removed = "removed"
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

// past is a change.
type past struct {
	at   int64 // since 1970, in nanoseconds
	kind *kind
	name string
}

// kind is what changes have in common.
type kind struct{ change, url string }

func (p past) bytes() int { return changeBytes + len(p.name) }

// History holds the last changes. It is safe for concurrent use; its zero value is ready to use.
type History struct {
	mu      sync.Mutex
	changes []past // those before first are dropped
	first   int
	bytes   int
	kinds   map[kind]*kind
	last    *kind // that was asked for
}

// of is what changes of a kind refer to.
func (h *History) of(change, url string) *kind {
	if h.last != nil && *h.last == (kind{change, url}) { // mostly
		return h.last
	}
	known := h.kinds[kind{change, url}]
	if known == nil {
		if h.kinds == nil {
			h.kinds = make(map[kind]*kind)
		}
		known = &kind{change, url}
		h.kinds[*known] = known
	}
	h.last = known
	return known
}

// Add adds a change of each of some names, which happened after all before, and drops the oldest ones beyond maxHistory.
func (h *History) Add(at time.Time, change, url string, names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	of := h.of(change, url)
	for _, name := range names {
		h.add(past{at.UnixNano(), of, name})
	}
}

// Precede puts changes before those that there are.
func (h *History) Precede(before []Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	own := h.changes[h.first:]
	h.changes, h.first, h.bytes = nil, 0, 0
	for _, c := range before {
		h.add(past{c.Time.UnixNano(), h.of(c.Change, c.Type), c.Name})
	}
	for _, p := range own {
		h.add(p)
	}
}

// Changes returns them, oldest first: of the last changes as many as fit in 1 MiB.
func (h *History) Changes() []Change {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]Change, 0, len(h.changes)-h.first)
	for _, p := range h.changes[h.first:] {
		all = append(all, Change{time.Unix(0, p.at), p.kind.change, p.kind.url, p.name})
	}
	return all
}

func (h *History) add(p past) {
	h.changes = append(h.changes, p)
	for h.bytes += p.bytes(); h.bytes > maxHistory; h.first++ {
		h.bytes -= h.changes[h.first].bytes()
	}
	if h.first > 64 && h.first > len(h.changes)/4 { // they need not keep memory, and there is room again
		h.changes, h.first = slices.Delete(h.changes, 0, h.first), 0
	}
}
