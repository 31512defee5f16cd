package upstream

import (
	"net/netip"
	"slices"
	"time"
)

// Stats is what is known of one server.
type Stats struct {
	Server   netip.AddrPort `json:"server"`
	State    string         `json:"state"`            // healthy, slow, failing
	Error    string         `json:"error,omitempty"`  // of the last try that failed or was overtaken
	ErrorAt  time.Time      `json:"errorAt,omitzero"` // when that was
	InUse    bool           `json:"inUse"`            // resolv.conf has it now
	Requests uint64         `json:"requests"`         // tries
	Failures uint64         `json:"failures"`         // tries that ended without an answer
	Hedges   uint64         `json:"hedges"`           // tries begun because another one took long

	// Overtaken is tries called off because a server that was asked later
	// had answered.
	Overtaken uint64    `json:"overtaken"`
	Latency   Histogram `json:"-"`

	RTT      time.Duration `json:"rttNanoseconds"`      // how long an answer takes, smoothed; 0 when there was none
	Patience time.Duration `json:"patienceNanoseconds"` // how long it may take before another try is begun
}

// LatencyBuckets are the upper bounds of Histogram's buckets in seconds,
// those of istio_agent_dns_upstream_request_duration_seconds.
func LatencyBuckets() [6]float64 { return [...]float64{.001, .005, .01, .1, 1, 5} }

// Histogram counts durations. Buckets are not cumulative; the last one is for
// those above every bound.
type Histogram struct {
	Buckets [7]uint64
	Count   uint64
	Sum     time.Duration
}

func (h *Histogram) observe(d time.Duration) {
	bounds := LatencyBuckets()
	i, _ := slices.BinarySearch(bounds[:], d.Seconds()) // the first bound that d is not above
	h.Buckets[i]++
	h.Count++
	h.Sum += d
}
