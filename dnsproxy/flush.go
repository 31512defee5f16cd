package dnsproxy

// Flush takes what the cache has for the names that are wanted out of it, answers and
// failures, and returns how many that were. A question that is on its way is kept when
// it is answered. Names are as in CacheEntry; nil wants all.
func (s *Server) Flush(wanted func(name string) bool) int { return s.cache.flush(wanted) }

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
