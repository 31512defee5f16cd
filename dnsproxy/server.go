package dnsproxy

import (
	"fmt"
	"log/slog"
	"net/netip"
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
	// Own is where this proxy listens: a server of resolv.conf that is one of
	// these is never asked, for the query would come back.
	Own []netip.AddrPort

	// Mark is set on every socket to an upstream (SO_MARK), so that capture knows the
	// proxy's queries by it; 0: none. It takes CAP_NET_ADMIN or, from Linux 5.17 on,
	// CAP_NET_RAW; without, every forwarded query fails.
	Mark uint32

	// Domain is the search domain of the pod's own namespace,
	// <namespace>.svc.<cluster domain>. While it is the first of ResolvConf's, a
	// name below it is answered as the table's name without it, as Istio does.
	// "": names are answered as they are.
	Domain string

	// ResolvConf is the path of the file with the servers to forward to. It
	// is read again when it changes. It need not exist.
	ResolvConf string

	ForwardTimeout  time.Duration // per try; 0: five seconds
	ForwardParallel bool          // ask all servers at once instead of in turn

	CacheEntries int   // 0: 10,000
	CacheBytes   int64 // 0: 8 MiB

	// Stale is how long beyond its end an answer may be given while no server
	// answers: 0: an hour; below 0: not at all. For names under
	// ClusterDomain, if there is one, it is a minute at most.
	Stale         time.Duration
	ClusterDomain string

	// Without a cache each query is forwarded, but for those that ask the same at
	// one time; without prefetching no answer is asked for before its end; without
	// hedging the next server is asked when one fails or is out of time.
	NoCache, NoPrefetch, NoHedge bool

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
	cache     *cache.Cache
	forwarder *upstream.Forwarder
	counters  counters
	inflight  chan struct{} // one slot for each query that waits
	conns     connSet
}

// New returns a server that serves nothing yet. Errors are about c; a
// resolv.conf that cannot be read is only logged.
func New(c Config) (*Server, error) {
	if c.CacheEntries < 0 || c.CacheBytes < 0 || c.ForwardTimeout < 0 || c.HoldBeforeTable < 0 {
		return nil, fmt.Errorf("start dns proxy: negative setting: cache entries %d, cache bytes %d, forward timeout %s, hold %s; use 0 for the default",
			c.CacheEntries, c.CacheBytes, c.ForwardTimeout, c.HoldBeforeTable)
	}
	c = c.withDefaults()
	s := &Server{config: c, log: c.Log, inflight: make(chan struct{}, maxInflight), localhost: table.NewLocalhost(c.TTL)}
	s.forwarder = upstream.New(upstream.Config{
		Own: c.Own, Mark: c.Mark, ResolvConf: c.ResolvConf, Timeout: c.ForwardTimeout, Parallel: c.ForwardParallel, NoHedge: c.NoHedge,
		Log: c.Log, Now: c.Now,
	})
	var err error
	s.cache, err = cache.New(cache.Config{
		Entries: c.CacheEntries, Bytes: c.CacheBytes, Stale: c.Stale, ClusterDomain: c.ClusterDomain, Off: c.NoCache, NoPrefetch: c.NoPrefetch,
		Log: c.Log, Now: c.Now,
	}, s.forwarder)
	if err != nil {
		return nil, fmt.Errorf("start dns proxy: make cache of %d entries: %w", c.CacheEntries, err)
	}
	s.tables = newTables(c, s.cache)
	s.searching = &searching{next: s.cache}
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
	return c
}

// searched is told resolv.conf's search domains.
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
	st.Cache.Stats = s.cache.Stats()
	st.Upstreams = s.forwarder.Stats()
	if t := s.Table(); t != nil {
		st.TableSize = t.Len()
	}
	return st
}

// Cached returns what is in the cache and may be given, the entry used last
// first, and then the failures. It changes nothing.
func (s *Server) Cached() []cache.Entry { return s.cache.List() }

// Upstreams returns what is known of every server that resolv.conf has or had,
// sorted by address. Those that it has no more are forgotten when they are many.
func (s *Server) Upstreams() []upstream.Stats { return s.forwarder.Stats() }

// Flush takes what the cache has for the names that are wanted out of it, answers and
// failures, and returns how many that were. A question that is on its way is kept when
// it is answered. Names are as in CacheEntry; nil wants all.
func (s *Server) Flush(wanted func(name string) bool) int { return s.cache.Flush(wanted) }

// ExportCache returns the cache in at most maxBytes for a successor on this
// machine (see ImportCache): the entries used last, as many as there is room
// for. Nothing is changed.
func (s *Server) ExportCache(maxBytes int) []byte { return s.cache.Export(maxBytes) }

// ImportCache takes over what ExportCache gave in another process on this
// machine, and returns how many answers that are: those that are too old even
// to be given while no server answers, or that this cache has newer ones of,
// are left out. Every entry is checked as if
// an upstream had sent it. Where one is damaged, or the version is not known,
// nothing is imported and the error says why.
func (s *Server) ImportCache(data []byte) (entries int, err error) { return s.cache.Import(data) }
