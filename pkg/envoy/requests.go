package envoy

import (
	"context"
	"errors"
	"strings"
)

// Requests are the HTTP requests that an Envoy has answered by itself.
type Requests struct{ Inbound, Outbound Answers }

// Answers are a number of requests, and how many of them were answered with a status of 500 to 599.
type Answers struct{ Completed, Errors uint64 }

// RequestStats is what Envoy has to keep of its statistics, as a regular expression for the bootstrap, for Requests to be
// known. The admin's own are among them, so that one is there whenever Envoy keeps such statistics.
const RequestStats = `http\.(inbound|outbound|admin).*\.downstream_rq_(completed|5xx)`

// What the names of those statistics begin and end with.
const (
	inboundHTTP, outboundHTTP = "http.inbound", "http.outbound"
	requestsCompleted         = ".downstream_rq_completed"
	requestsFailed            = ".downstream_rq_5xx"
)

var (
	errRequestsUnkept = errors.New("no statistics of requests are kept by Envoy")
	errRequestsMoving = errors.New("what the Envoy before has counted is being taken over")
)

// Requests asks Envoy what it has answered since its start, less what it was told of the Envoy before it.
func (s *Supervisor) Requests(ctx context.Context) (Requests, error) {
	const attempts = 2 // Envoy takes counters over in an instant, and not again for 5 s
	for range attempts {
		told := s.cfg.Stats.given()
		stats, err := s.cfg.Admin.stats(ctx, "type=Counters&", "^"+RequestStats+"$")
		if err != nil {
			return Requests{}, err
		}
		all, known := requestsOf(stats)
		if !known {
			return Requests{}, errRequestsUnkept
		}
		// Envoy's main thread asks for counters, adds them up, and only then answers here: what was given before
		// this question is in its answer.
		if told == s.cfg.Stats.given() {
			return Requests{all.Inbound.less(told.Inbound), all.Outbound.less(told.Outbound)}, nil
		}
	}
	return Requests{}, errRequestsMoving
}

// requestsOf adds up the statistics of all HTTP connection managers; known is whether Envoy keeps any.
func requestsOf(stats map[string]uint64) (r Requests, known bool) {
	for name, n := range stats {
		of := &r.Inbound
		switch {
		case strings.HasPrefix(name, inboundHTTP):
		case strings.HasPrefix(name, outboundHTTP):
			of = &r.Outbound
		default:
			known = known || strings.HasPrefix(name, adminHTTP)
			continue
		}
		switch {
		case strings.HasSuffix(name, requestsCompleted):
			of.Completed += n
		case strings.HasSuffix(name, requestsFailed):
			of.Errors += n
		}
	}
	return r, known
}

// less is what is left of a without b: never below 0, since Envoy may forget statistics that it has not used for long
// (sidecar.istio.io/statsEvictionInterval).
func (a Answers) less(b Answers) Answers {
	return Answers{a.Completed - min(a.Completed, b.Completed), a.Errors - min(a.Errors, b.Errors)}
}

func (a Answers) plus(b Answers) Answers {
	return Answers{a.Completed + b.Completed, a.Errors + b.Errors}
}
