package ecds

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/wasm"
)

// loads counts the modules that were to be had.
type loads struct {
	good, bad uint64
	took      status.Histogram // in milliseconds, as Istio has it
}

// loadBuckets are the upper bounds of the histogram.
var loadBuckets = [...]float64{1, 10, 100, 1000, 10_000, 100_000}

// count takes in how long a module took, or why there is none.
func (l *loads) count(took time.Duration, err error) {
	if err != nil {
		l.bad++
		return
	}
	l.good++
	if l.took.Buckets == nil {
		l.took.Buckets = make(map[float64]uint64, len(loadBuckets))
	}
	ms := float64(took.Microseconds()) / 1000
	for _, bound := range loadBuckets {
		if ms <= bound {
			l.took.Buckets[bound]++
		}
	}
	l.took.Count++
	l.took.Sum += ms
}

// samples are Istio's metrics of modules, and what else a store counts.
func (l *loads) samples(s wasm.Stats) []status.Sample {
	took := l.took
	took.Buckets = maps.Clone(l.took.Buckets)
	out := []status.Sample{
		{Name: "wasm_cache_entries", Help: "Wasm modules in the pod's store.", Value: float64(s.Modules), Gauge: true},
		{Name: "wasm_store_bytes", Help: "Size of the Wasm modules in the pod's store.", Value: float64(s.Bytes), Gauge: true},
		{Name: "wasm_fetch_retries_total", Help: "How often a Wasm module was asked for again.", Value: float64(s.Retries)},
		{Name: "wasm_config_conversion_duration", Help: "How long modules of Wasm filters took to be had, checked and tried, in milliseconds.", Histogram: &took},
	}
	for hit, n := range map[bool]uint64{true: s.Hits, false: s.Misses} {
		out = append(out, status.Sample{Name: "wasm_cache_lookup_count", Help: "Wasm modules that were looked for in the pod's store, by whether they were there.",
			Labels: map[string]string{"hit": strconv.FormatBool(hit)}, Value: float64(n)})
	}
	for result, n := range s.Fetches {
		out = append(out, status.Sample{Name: "wasm_remote_fetch_count", Help: "Fetches of Wasm modules by result.",
			Labels: map[string]string{"result": result}, Value: float64(n)})
	}
	for result, n := range map[string]uint64{"success": l.good, "fetch_failure": l.bad} {
		out = append(out, status.Sample{Name: "wasm_config_conversion_count", Help: "Configurations of Wasm filters that were given their module, or can never be.",
			Labels: map[string]string{"result": result}, Value: float64(n)})
	}
	return out
}

// Samples are the metrics.
func (x *Extensions) Samples() []status.Sample {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.modules == nil {
		return nil
	}
	out := x.loads.samples(x.modules.Stats())
	gauge := func(name, help string, value float64, labels map[string]string) {
		out = append(out, status.Sample{Name: name, Help: help, Labels: labels, Value: value, Gauge: true})
	}
	for _, name := range slices.Sorted(maps.Keys(x.all)) {
		e := x.all[name]
		r := x.report(e)
		gauge("wasm_module_info", "The Wasm module of each filter, by its phase; sha256 is that of the one that serves.", 1,
			map[string]string{"name": name, "phase": r.Phase, "sha256": r.SHA256})
		placeholder := 0.0
		if r.Instead != "" {
			placeholder = 1
		}
		gauge("wasm_placeholder", "1 while a filter without its module lets all traffic pass, or none.", placeholder, map[string]string{"name": name})
		if v := e.good; v != nil {
			gauge("wasm_in_force_timestamp", "When the module of a filter came into force, in seconds since 1970.", float64(v.inUse.UnixMilli())/1000, map[string]string{"name": name})
			took := v.module.Took
			for step, took := range map[string]time.Duration{"resolve": took.Resolve, "verify": took.Verify, "preflight": took.Preflight, "push": v.inUse.Sub(v.made)} {
				gauge("wasm_load_seconds", "How long the last load of a module took: to fetch it (resolve), to check it (verify), to have another Envoy try it (preflight), and until Envoy had it (push).",
					took.Seconds(), map[string]string{"name": name, "step": step})
			}
		}
	}
	return out
}
