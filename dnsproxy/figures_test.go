package dnsproxy

import "time"

// Figures of the cache and of the upstreams that tests of the whole server go by.
const (
	prefetchHits    = 3               // as often an answer is given before it is asked for again
	failureKept     = time.Second     // the first failure of a name
	staleFor        = time.Hour       // after its end an answer may be given
	clusterStaleFor = time.Minute     // the same for a name of the cluster
	staleSeconds    = 30              // the TTL of such an answer
	failuresInARow  = 2               // make a server failing
	probeAfter      = 5 * time.Second // a server that fails is tried again
	recheckAfter    = 500 * time.Millisecond
	plainlyFor      = 10 * time.Minute // a server without EDNS is asked without
	rereadAfter     = 2 * time.Second  // resolv.conf is looked at again
)
