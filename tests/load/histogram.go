package load

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"time"
)

const (
	// 16 steps to each power of two: a quantile is at most 1/16 too large.
	stepBits = 4
	steps    = 1 << stepBits
	// 2^36 µs are 19 hours; longer ones count as that.
	maxBits = 36
	buckets = (maxBits - stepBits + 1) * steps
)

// Histogram counts latencies: log-linear buckets of microseconds, 6 % wide, up to 19 hours. Its
// zero value is empty. It is JSON with the usual quantiles in milliseconds for the reader, and
// the buckets ([index, count] pairs) for Merge.
type Histogram struct {
	counts []uint64 // nil, or one for each bucket
	max    time.Duration
}

// bucketOf is the index of a latency: the first 16 are a microsecond wide, each further 16 twice as
// wide as those before.
func bucketOf(d time.Duration) int {
	µs := uint64(max(d, 0) / time.Microsecond)
	µs = min(µs, 1<<maxBits-1)
	shift := max(bits.Len64(µs)-stepBits-1, 0)
	return shift*steps + int(µs>>shift)
}

// bound is the largest latency of a bucket, to the microsecond.
func bound(bucket int) time.Duration {
	shift := max(bucket/steps-1, 0)
	return time.Duration(uint64(bucket-shift*steps+1)<<shift-1) * time.Microsecond
}

// Add counts one latency.
func (h *Histogram) Add(d time.Duration) {
	if h.counts == nil {
		h.counts = make([]uint64, buckets)
	}
	h.counts[bucketOf(d)]++
	h.max = max(h.max, d)
}

// Merge adds the counts of o.
func (h *Histogram) Merge(o Histogram) {
	if o.counts == nil {
		return
	}
	if h.counts == nil {
		h.counts = make([]uint64, buckets)
	}
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.max = max(h.max, o.max)
}

// Count is how many latencies were counted.
func (h Histogram) Count() (total uint64) {
	for _, n := range h.counts {
		total += n
	}
	return total
}

// Quantile is the latency that a share of q (0 to 1) did not exceed; 0 when nothing was counted.
func (h Histogram) Quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.Count()))
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen > rank {
			return min(bound(i), h.max)
		}
	}
	return h.max
}

// Max is the largest latency, exactly.
func (h Histogram) Max() time.Duration { return h.max }

type histogramJSON struct {
	P50     float64     `json:"p50_ms"`
	P99     float64     `json:"p99_ms"`
	Max     float64     `json:"max_ms"`
	Buckets [][2]uint64 `json:"buckets"`
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

// MarshalJSON implements json.Marshaler.
func (h Histogram) MarshalJSON() ([]byte, error) {
	out := histogramJSON{
		P50: milliseconds(h.Quantile(0.5)), P99: milliseconds(h.Quantile(0.99)), Max: milliseconds(h.max),
		Buckets: [][2]uint64{},
	}
	for i, n := range h.counts {
		if n > 0 {
			out.Buckets = append(out.Buckets, [2]uint64{uint64(i), n})
		}
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler.
func (h *Histogram) UnmarshalJSON(text []byte) error {
	var in histogramJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	*h = Histogram{max: time.Duration(in.Max * float64(time.Millisecond)).Round(time.Microsecond)}
	for _, pair := range in.Buckets {
		if pair[0] >= buckets {
			return fmt.Errorf("histogram: bucket %d of %d", pair[0], buckets)
		}
		if h.counts == nil {
			h.counts = make([]uint64, buckets)
		}
		h.counts[pair[0]] += pair[1]
	}
	return nil
}
