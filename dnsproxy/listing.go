package dnsproxy

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// CacheEntry is one answer in the cache, or one failure kept for a short time.
type CacheEntry struct {
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

func (h *cache) list() []CacheEntry {
	h.mu.Lock()
	kept, failures := h.lru.Values(), h.failures.lru.Values()
	h.mu.Unlock()
	now := h.now()
	list := make([]CacheEntry, 0, len(kept)+len(failures))
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
		c.Rcode, c.Server = dns.RcodeToString[rcodeOf(e.msg)], e.server.String()
		c.RemainingSeconds, c.Stale, c.Hits, c.Bytes = left.Seconds(), stale, e.hits.Load(), len(e.msg)
		list = append(list, c)
	}
	for _, f := range slices.Backward(failures) {
		if !h.outage.holds(f.at, f.keep) {
			continue
		}
		c := describeKey(f.key)
		c.Rcode, c.Failure = dns.RcodeToString[f.rcode], true
		if f.server.IsValid() {
			c.Server = f.server.String()
		}
		c.RemainingSeconds = (f.keep - time.Duration(h.outage.clock()-f.at)).Seconds()
		list = append(list, c)
	}
	return list
}

// describeKey says what appendKey has written.
func describeKey(key string) CacheEntry {
	name, _, err := dns.UnpackDomainName([]byte(key), keyFixed)
	if err != nil { // a key is made of a name that was read
		name = "?"
	}
	c := CacheEntry{Name: name, Type: dns.Type(binary.BigEndian.Uint16([]byte(key))).String()}
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

func (h *cache) flush(wanted func(name string) bool) (n int) {
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
