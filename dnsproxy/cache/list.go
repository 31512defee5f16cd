package cache

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
)

// Entry is one answer in the cache, or one failure kept for a short time.
type Entry struct {
	Name   string   `json:"name"` // in lower case, with a final dot
	Type   string   `json:"type"`
	Flags  []string `json:"flags,omitempty"` // of the queries it is for, where they are unusual: do, cd, no-rd
	Rcode  string   `json:"rcode"`
	Server string   `json:"server,omitempty"` // that said so

	// RemainingSeconds is how long it will be given; for a stale one, how
	// long it may yet be given while no server answers.
	RemainingSeconds float64 `json:"remainingSeconds"`

	Stale   bool   `json:"stale,omitempty"`   // its TTL has ended
	Failure bool   `json:"failure,omitempty"` // nobody could answer
	Hits    uint32 `json:"hits"`              // within its TTL; not counted for failures
	Bytes   int    `json:"bytes"`             // of the message
}

// List returns what may be given, the entry used last first, and then the failures. It
// changes nothing.
func (h *Cache) List() []Entry {
	h.mu.Lock()
	kept, failures := h.lru.Values(), h.failures.lru.Values()
	h.mu.Unlock()
	now := h.now()
	list := make([]Entry, 0, len(kept)+len(failures))
	for _, e := range slices.Backward(kept) {
		left := e.ttl - e.age(now)
		stale := left <= 0
		if stale {
			left += h.beyond(e)
		}
		if left <= 0 {
			continue
		}
		c := describeKey(e.key)
		c.Rcode, c.Server = dns.RcodeToString[wire.RcodeOf(e.msg)], e.server.String()
		c.RemainingSeconds, c.Stale, c.Hits, c.Bytes = left.Seconds(), stale, e.hits.Load(), len(e.msg)
		list = append(list, c)
	}
	for _, f := range slices.Backward(failures) {
		if !h.health.Holds(f.at, f.keep) {
			continue
		}
		c := describeKey(f.key)
		c.Rcode, c.Failure = dns.RcodeToString[f.rcode], true
		if f.server.IsValid() {
			c.Server = f.server.String()
		}
		c.RemainingSeconds = (f.keep - time.Duration(h.health.Clock()-f.at)).Seconds()
		list = append(list, c)
	}
	return list
}

// describeKey says what appendKey has written.
func describeKey(key string) Entry {
	name, _, err := dns.UnpackDomainName([]byte(key), keyFixed)
	if err != nil { // a key is made of a name that was read
		name = "?"
	}
	c := Entry{Name: name, Type: dns.Type(binary.BigEndian.Uint16([]byte(key))).String()}
	flags := key[4]
	if flags&keyDO != 0 {
		c.Flags = append(c.Flags, "do")
	}
	if flags&keyCD != 0 {
		c.Flags = append(c.Flags, "cd")
	}
	if flags&keyRD == 0 {
		c.Flags = append(c.Flags, "no-rd")
	}
	return c
}

// Flush takes the answers and failures out whose names, written as Entry's, are wanted, nil
// for all, and returns how many that were. A question that is on its way is kept when it is
// answered.
func (h *Cache) Flush(wanted func(name string) bool) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	gone := func(key string) bool { return wanted == nil || wanted(describeKey(key).Name) }
	for _, hash := range h.lru.Keys() {
		if e, ok := h.lru.Peek(hash); ok && gone(e.key) {
			h.lru.Remove(hash)
			n++
		}
	}
	for _, hash := range h.failures.lru.Keys() {
		if f, ok := h.failures.lru.Peek(hash); ok && gone(f.key) {
			h.failures.remove(hash)
			n++
		}
	}
	return n
}
