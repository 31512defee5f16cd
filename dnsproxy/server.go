package dnsproxy

import (
	"fmt"
	"log/slog"
	"time"

	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
)

// maxInflight bounds the queries that wait for an upstream or for the first
// table at one time; each costs a goroutine and a socket, some 10 KiB. Further
// ones get SERVFAIL, and their client tries again.
const maxInflight = 1024

// Config is what New needs.
type Config struct {
	// Upstream and Cache are what is below; their Log and Now are the ones here.
	Upstream upstream.Config
	Cache    cache.Config

	// Domain is the search domain of the pod's own namespace,
	// <namespace>.svc.<cluster domain>. While it is the first of resolv.conf's, a
	// name below it is answered as the table's name without it, as Istio does.
	// "": names are answered as they are.
	Domain string

	// HoldBeforeTable is how long a query that comes before the first Swap
	// waits for it; then it is forwarded. 0: not at all.
	HoldBeforeTable time.Duration

	TTL uint32           // of table answers, in seconds; 0: table.DefaultTTL
	Log *slog.Logger     // nil: slog.Default
	Now func() time.Time // nil: time.Now
}

// Server answers DNS queries from whatever sockets it is given, see Start.
type Server struct {
	config    Config
	log       *slog.Logger
	localhost *table.Localhost
	tables    *tables
	searching *searching
	Cache     *cache.Cache // what upstreams have said
	forwarder *upstream.Forwarder
	counters  counters
	inflight  chan struct{} // one slot for each query that waits
	conns     connSet
}

// New returns a server that serves nothing yet. Errors are about c; a
// resolv.conf that cannot be read is only logged.
func New(c Config) (*Server, error) {
	if c.Cache.Entries < 0 || c.Cache.Bytes < 0 || c.Upstream.Timeout < 0 || c.HoldBeforeTable < 0 {
		return nil, fmt.Errorf("start dns proxy: negative setting: cache entries %d, cache bytes %d, forward timeout %s, hold %s; use 0 for the default",
			c.Cache.Entries, c.Cache.Bytes, c.Upstream.Timeout, c.HoldBeforeTable)
	}
	c = c.withDefaults()
	s := &Server{config: c, log: c.Log, inflight: make(chan struct{}, maxInflight), localhost: table.NewLocalhost(c.TTL)}
	s.forwarder = upstream.New(c.Upstream)
	var err error
	if s.Cache, err = cache.New(c.Cache, s.forwarder); err != nil {
		return nil, fmt.Errorf("start dns proxy: make cache of %d entries: %w", c.Cache.Entries, err)
	}
	s.tables = newTables(c, s.Cache)
	s.searching = &searching{next: s.Cache}
	s.forwarder.Follow(s.searched)
	return s, nil
}

func (c Config) withDefaults() Config {
	if c.TTL == 0 {
		c.TTL = table.DefaultTTL
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Upstream.Log, c.Upstream.Now = c.Log, c.Now
	c.Cache.Log, c.Cache.Now = c.Log, c.Now
	return c
}

// searched takes resolv.conf's search domains.
func (s *Server) searched(domains []string) {
	s.localhost.Searched(domains)
	s.tables.searched(domains)
	s.searching.searched(domains)
}

// Swap puts t in force for every query that is looked up from now on.
func (s *Server) Swap(t *table.Table) {
	s.forwarder.Look()
	s.tables.swap(t)
}

// Table returns the table in force, nil before the first Swap.
func (s *Server) Table() *table.Table { return s.tables.current.Load() }

// Stats returns the counters as they are now.
func (s *Server) Stats() Stats {
	st := s.counters.snapshot()
	st.Inflight = len(s.inflight)
	st.Cache.Stats = s.Cache.Stats()
	st.Upstreams = s.forwarder.Stats()
	if t := s.Table(); t != nil {
		st.TableSize = t.Len()
	}
	return st
}

// Upstreams returns what is known of every server that resolv.conf has or had,
// sorted by address. Those that it has no more are forgotten when they are many.
func (s *Server) Upstreams() []upstream.Stats { return s.forwarder.Stats() }
