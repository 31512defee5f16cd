package webhook

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what became of the reviews, by Istio's names.
type Metrics struct {
	requests, successes, failures prometheus.Counter
	skips                         *prometheus.CounterVec
	seconds                       prometheus.Histogram
}

// prefix is what all of their names begin with.
const prefix = "sidecar_injection_"

// NewMetrics registers them.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
	}
	m := &Metrics{
		requests:  counter("requests_total", "Reviews that were asked for."),
		successes: counter("success_total", "Pods that were injected."),
		failures:  counter("failure_total", "Reviews that ended in an error: the pod was refused."),
		skips: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "skip_total", Help: "Pods that were left as they are."},
			[]string{"rule"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "time_seconds", Help: "How long a review took.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
	}
	registry.MustRegister(m.requests, m.successes, m.failures, m.skips, m.seconds)
	return m
}
