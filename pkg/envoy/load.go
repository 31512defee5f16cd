package envoy

import (
	"context"
	"log/slog"
	"strings"
	"time"
)

// Load is what an Envoy that drains still serves.
type Load struct {
	// Connections are all of them.
	Connections int
	// Known: Envoy has told of what kind they are; else all below is 0.
	Known bool
	// Idle are HTTP connections without a request: at least so many, since one of HTTP/2 may have
	// several requests.
	Idle int
	// Active are requests, streams of gRPC and server-sent events among them.
	Active int
	// Streams are requests that became something else: WebSockets, CONNECT.
	Streams int
	// TCP are connections of which Envoy does not speak the protocol.
	TCP int

	unsent int // bytes of answers that clients have not taken yet
	total  int // HTTP connections and requests so far
}

// What a Load is made of, as names of Envoy's statistics: kindStats say of what kind connections are,
// useStats whether those without a request are idle.
const (
	kindStats = `http\..*\.downstream_(cx_active|rq_active|cx_upgrades_active)`
	useStats  = `http\..*\.downstream_(cx_total|rq_total|cx_tx_bytes_buffered)`

	// adminHTTP is the prefix of the admin's own. The question itself is one of its requests, so that
	// they are there whenever Envoy keeps such statistics.
	adminHTTP = "http.admin."
)

// LoadStats are what Envoy has to keep of its statistics, as regular expressions for the bootstrap, for
// a Load to be known; idle is whether a drain ends with the last connection that is not idle.
func LoadStats(idle bool) []string {
	if idle {
		return []string{kindStats, useStats}
	}
	return []string{kindStats}
}

// Load asks Envoy what it serves, on whatever listener.
func (s *Supervisor) Load(ctx context.Context) (Load, error) {
	n, err := s.Connections(ctx)
	if err != nil || n == 0 {
		return Load{Connections: n}, err
	}
	// Asked afterwards: what ends meanwhile is missing here, and counts as TCP, which is never idle.
	stats, err := s.cfg.Admin.stats(ctx, "", "^("+kindStats+"|"+useStats+")$")
	if err != nil {
		s.cfg.Log.Debug("Envoy does not tell of what kind its connections are", "err", err)
	}
	return loadOf(n, stats), nil
}

// loadOf tells of what kind connections are by the statistics of all HTTP connection managers.
func loadOf(connections int, stats map[string]uint64) Load {
	sums := map[string]int{}
	known := false
	for name, value := range stats {
		switch {
		case strings.HasPrefix(name, adminHTTP): // its connections are not among them
			known = true
		case strings.HasPrefix(name, "http."):
			sums[name[strings.LastIndexByte(name, '.')+1:]] += int(value)
		}
	}
	if !known {
		return Load{Connections: connections}
	}
	http, requests := min(sums["downstream_cx_active"], connections), sums["downstream_rq_active"]
	upgrades := min(sums["downstream_cx_upgrades_active"], requests)
	return Load{
		Connections: connections, Known: true,
		Idle: max(http-requests, 0), Active: requests - upgrades, Streams: upgrades, TCP: connections - http,
		unsent: sums["downstream_cx_tx_bytes_buffered"],
		total:  sums["downstream_cx_total"] + sums["downstream_rq_total"],
	}
}

// idleness finds the moment from which only idle HTTP connections have been left for limit.
type idleness struct {
	limit time.Duration // 0: idle connections are waited for like all others
	since time.Time     // zero: something else is left
	total int           // of the last Load
}

// drained tells whether a drain is over with what is left now: nothing, or what it does not wait for.
func (i *idleness) drained(l Load, log *slog.Logger) bool {
	if l.Connections == 0 {
		return true
	}
	over := i.over(l, time.Now())
	if over {
		log.Info("only idle connections are left, and they are closed", "connections", l.Connections, "for", i.limit)
	}
	return over
}

// over takes in what is left now, and tells whether that moment has come limit ago. Of connections that were
// used since the last time none counts as idle, though they may be between two requests whenever somebody looks.
func (i *idleness) over(l Load, now time.Time) bool {
	switch idle := l.Known && l.Active+l.Streams+l.TCP+l.unsent == 0; {
	case !idle:
		i.since = time.Time{}
		return false
	case i.since.IsZero(), l.total != i.total:
		i.since, i.total = now, l.total
		return false
	}
	return i.limit > 0 && now.Sub(i.since) >= i.limit
}
