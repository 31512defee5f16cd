package cache

import (
	"net/netip"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// minFailure and maxFailure bound how long a failure is kept: RFC 9520
	// section 3.2 wants a second at least and a longer time where it lasts,
	// RFC 2308 section 7 allows five minutes. Five seconds are what a client
	// waits before it asks again.
	minFailure = time.Second
	maxFailure = 5 * time.Second

	// maxFailures bounds the names with a kept failure. They have a place
	// of their own, so that names that fail displace none that answer.
	maxFailures = 1024
)

// failureEntry says that nobody could answer a question a short time ago.
type failureEntry struct {
	key    string
	rcode  int
	server netip.AddrPort // that said so; none when nobody did
	at     int64          // see Health.Clock
	keep   time.Duration
}

// failureCache keeps failures. Its user has the lock.
type failureCache struct {
	lru *simplelru.LRU[uint64, *failureEntry]
}

func newFailureCache() failureCache {
	lru, err := simplelru.NewLRU[uint64, *failureEntry](maxFailures, nil)
	if err != nil {
		panic(err) // the size is a constant above zero
	}
	return failureCache{lru}
}

// get returns key's failure, nil when there is none.
func (c failureCache) get(hash uint64, key []byte) *failureEntry {
	if f, ok := c.lru.Get(hash); ok && f.key == string(key) {
		return f
	}
	return nil
}

// add keeps f for twice as long as the failure before it, if that was the same
// name's and not long ago.
func (c failureCache) add(hash uint64, f *failureEntry) {
	f.keep = minFailure
	if last, ok := c.lru.Peek(hash); ok && last.key == f.key && f.at-last.at < int64(2*maxFailure) {
		f.keep = min(2*last.keep, maxFailure)
	}
	c.lru.Add(hash, f)
}

func (c failureCache) remove(hash uint64) { c.lru.Remove(hash) }
