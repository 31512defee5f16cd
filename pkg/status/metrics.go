package status

import (
	"fmt"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metricPrefix is what the name of every metric of the agent begins with; it
// is Istio's, so that dashboards go on working.
const metricPrefix = "istio_agent_"

// The values of the label "type" of scrape_failures_total.
const (
	sourceAgent       = "agent"
	sourceEnvoy       = "envoy"
	sourceApplication = "application"
)

// metrics are the ones that this package itself counts.
type metrics struct {
	startup  prometheus.Gauge
	scrapes  prometheus.Counter
	failures *prometheus.CounterVec
}

// NewRegistry returns a registry with the collectors of the process and of the
// Go runtime, prefixed as Istio's are: istio_agent_process_*, istio_agent_go_*.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	prometheus.WrapRegistererWithPrefix(metricPrefix, reg).MustRegister(
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewGoCollector(),
	)
	return reg
}

func newMetrics(reg *prometheus.Registry) (*metrics, error) {
	m := &metrics{
		startup: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: metricPrefix + "startup_duration_seconds",
			Help: "The time from the start of the process until it was ready.",
		}),
		scrapes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: metricPrefix + "scrapes_total",
			Help: "The number of scrapes of the merged metrics.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: metricPrefix + "scrape_failures_total",
			Help: "The number of scrapes of which one part was missing or incomplete, by that part.",
		}, []string{"type"}),
	}
	for _, source := range []string{sourceAgent, sourceEnvoy, sourceApplication} {
		m.failures.WithLabelValues(source) // there from the start, as 0: an alert on its rate needs that
	}
	for _, c := range []prometheus.Collector{m.startup, m.scrapes, m.failures} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the status server's metrics: %w", err)
		}
	}
	return m, nil
}

// Sample is one value that a part of the agent counts for itself, without
// knowing of Prometheus.
type Sample struct {
	Name   string // without the prefix istio_agent_; a counter's ends in _total
	Help   string // the same for all samples of one name
	Labels map[string]string
	Gauge  bool // goes up and down; otherwise a counter
	Value  float64
	// Histogram makes it one, instead of Value.
	Histogram *Histogram
}

// Histogram is the state of one: Buckets maps an upper bound to the number of
// observations up to it (cumulative, as Prometheus has it), without +Inf.
type Histogram struct {
	Count   uint64
	Sum     float64
	Buckets map[float64]uint64
}

// Register has the registry read samples at every scrape. read is called from
// many goroutines, and must return the same names and labels' keys each time;
// what it returns now is checked at once.
func Register(reg *prometheus.Registry, read func() []Sample) error {
	for _, s := range read() {
		if _, err := s.metric(); err != nil {
			return err
		}
	}
	if err := reg.Register(sampler(read)); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	return nil
}

// sampler is an unchecked collector: it describes nothing in advance, since
// labels come and go with what is counted.
type sampler func() []Sample

// Describe implements [prometheus.Collector].
func (sampler) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (read sampler) Collect(out chan<- prometheus.Metric) {
	for _, s := range read() {
		m, err := s.metric()
		if err != nil {
			m = prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(err), err)
		}
		out <- m
	}
}

func (s Sample) metric() (prometheus.Metric, error) {
	keys := slices.Sorted(maps.Keys(s.Labels))
	values := make([]string, len(keys))
	for i, k := range keys {
		values[i] = s.Labels[k]
	}
	desc := prometheus.NewDesc(metricPrefix+s.Name, s.Help, keys, nil)
	kind := prometheus.CounterValue
	if s.Gauge {
		kind = prometheus.GaugeValue
	}
	m, err := prometheus.NewConstMetric(desc, kind, s.Value, values...)
	if s.Histogram != nil {
		m, err = prometheus.NewConstHistogram(desc, s.Histogram.Count, s.Histogram.Sum, s.Histogram.Buckets, values...)
	}
	if err != nil {
		return nil, fmt.Errorf("metric %q: %w", s.Name, err)
	}
	return m, nil
}
