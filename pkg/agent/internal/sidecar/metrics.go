package sidecar

import (
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/pkg/status"
)

// samples are all metrics of the agent: the parts count for themselves and know
// nothing of Prometheus.
func (s *Sidecar) samples() []func() []status.Sample {
	all := []func() []status.Sample{s.lifeSamples, s.plane.Samples, s.xdsSamples, s.names.dnsSamples, s.names.vipSamples}
	if s.identity != nil {
		all = append(all, s.identity.Samples)
	}
	return all
}

func (s *Sidecar) lifeSamples() []status.Sample {
	ready, _ := s.Ready.Check()
	return []status.Sample{
		gauge("ready", "Whether the pod is ready as far as the agent is concerned.", truth(ready)),
		counter("envoy_restarts_total", "Times that Envoy was started again after it ended by itself.", s.Envoy.Restarts()),
	}
}

func (s *Sidecar) xdsSamples() []status.Sample {
	x := s.xds.Stats()
	ended := labelled("envoy_connection_terminations", "Configuration streams of Envoy that have ended, in good order (cancelled) or by an error.", "type",
		map[string]uint64{"cancelled": x.Cancelled, "error": x.Broken})
	return append(ended, []status.Sample{
		counter("xds_proxy_requests", "Requests that Envoy sent on its configuration streams.", x.Requests),
		counter("xds_proxy_responses", "Responses that were sent to Envoy.", x.Responses),
		counter("xds_streams_total", "Configuration streams that Envoy opened.", x.Streams),
		counter("xds_resources_total", "Resources that were sent to Envoy or removed from it.", x.Resources),
		counter("xds_pushes_total", "Configurations that Envoy has answered for in full.", x.Pushes),
		counter("xds_rejects_total", "Responses that Envoy refused.", x.NACKs),
	}...)
}

func (n *names) vipSamples() []status.Sample {
	v := n.vips.Stats()
	return []status.Sample{
		gauge("dns_vips_capacity", "Virtual addresses that can be given.", float64(v.Capacity)),
		gauge("dns_vips_assigned", "Virtual addresses that hosts have.", float64(v.Assigned)),
		gauge("dns_vips_quarantined", "Freed virtual addresses that no other host may get yet.", float64(v.Quarantined)),
		gauge("dns_vips_pending", "Hosts that got no virtual address because there was none left.", float64(v.Pending)),
		counter("dns_vips_exhausted_total", "Times that a host got no virtual address.", v.Exhausted),
		counter("dns_vips_write_errors_total", "Times that the allocation could not be saved.", v.WriteErrors),
	}
}

func (n *names) dnsSamples() []status.Sample {
	if !n.captured {
		return nil
	}
	d := n.dns.Stats()
	samples := []status.Sample{
		counter("dns_requests_total", "DNS queries that were answered.", d.Requests),
		counter("dns_dropped_total", "DNS messages that are no queries.", d.Dropped),
		counter("dns_refused_total", "DNS queries refused because too many were waiting.", d.Refused),
		gauge("dns_tcp_connections", "TCP connections of DNS clients.", float64(d.TCPOpen)),
		counter("dns_tcp_cut_total", "TCP connections of DNS clients refused or closed to make room.", d.TCPCut),
		gauge("dns_inflight", "DNS queries that wait for an upstream server.", float64(d.Inflight)),
		gauge("dns_table_names", "Names that the agent answers itself.", float64(d.TableSize)),
		gauge("dns_cache_entries", "Answers in the DNS cache.", float64(d.Cache.Entries)),
		gauge("dns_cache_bytes", "Estimated size of the DNS cache.", float64(d.Cache.Bytes)),
		counter("dns_cache_hits_total", "DNS queries answered from the cache, within the TTL.", d.Cache.Hits),
		counter("dns_cache_misses_total", "DNS queries that neither the table nor an answer within its TTL could answer.", d.Cache.Misses),
		counter("dns_cache_prefetches_total", "Answers asked for again before their end because they are asked for often.", d.Cache.Prefetches),
		counter("dns_cache_failures_total", "DNS queries answered with a failure of just before.", d.Cache.Failures),
	}
	samples = append(samples, labelled("dns_answers_total", "DNS answers by where they came from.", "source", d.BySource)...)
	samples = append(samples, labelled("dns_questions_total", "DNS questions by record type.", "type", d.ByType)...)
	samples = append(samples, labelled("dns_responses_total", "DNS responses by their code.", "rcode", d.ByRcode)...)
	samples = append(samples, labelled("dns_transport_requests_total", "DNS queries that were answered, by transport.", "transport", map[string]uint64{"udp": d.UDP, "tcp": d.TCP})...)
	return append(samples, upstreamSamples(d.Upstreams)...)
}

func labelled(name, help, label string, values map[string]uint64) []status.Sample {
	var samples []status.Sample
	for v, n := range values {
		samples = append(samples, status.Sample{Name: name, Help: help, Labels: map[string]string{label: v}, Value: float64(n)})
	}
	return samples
}

// upstreamSamples has Istio's names; the totals over all servers are a sum in a query.
func upstreamSamples(upstreams []upstream.Stats) []status.Sample {
	var samples []status.Sample
	for _, u := range upstreams {
		labels := map[string]string{"upstream": u.Server.String()}
		samples = append(samples,
			status.Sample{Name: "dns_upstream_requests_total", Help: "Questions sent to a DNS server.", Labels: labels, Value: float64(u.Requests)},
			status.Sample{Name: "dns_upstream_failures_total", Help: "Questions that a DNS server did not answer.", Labels: labels, Value: float64(u.Failures)},
			status.Sample{Name: "dns_upstream_hedges_total", Help: "Questions sent to a DNS server because an earlier one took long.", Labels: labels, Value: float64(u.Hedges)},
			status.Sample{Name: "dns_upstream_overtaken_total", Help: "Questions that a DNS server asked later answered first.", Labels: labels, Value: float64(u.Overtaken)},
			status.Sample{Name: "dns_upstream_rtt_seconds", Help: "Time that a DNS server takes to answer, smoothed.", Labels: labels, Value: u.RTT.Seconds(), Gauge: true},
			status.Sample{Name: "dns_upstream_request_duration_seconds", Help: "Time that a DNS server took to answer.", Labels: labels, Histogram: cumulative(u.Latency)},
		)
		if u.InUse { // an alert on a server that resolv.conf has no more would never end
			samples = append(samples, status.Sample{Name: "dns_upstream_healthy", Help: "Whether a DNS server of resolv.conf answers, and in time.", Labels: labels, Value: truth(u.State == upstream.StateHealthy), Gauge: true})
		}
	}
	return samples
}

// truth is how Prometheus says yes and no.
func truth(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// cumulative turns a histogram into Prometheus' form: each bucket counts all below it.
func cumulative(h upstream.Histogram) *status.Histogram {
	out := &status.Histogram{Count: h.Count, Sum: h.Sum.Seconds(), Buckets: map[float64]uint64{}}
	var below uint64
	for i, bound := range upstream.LatencyBuckets() {
		below += h.Buckets[i]
		out.Buckets[bound] = below
	}
	return out
}

func counter(name, help string, value uint64) status.Sample {
	return status.Sample{Name: name, Help: help, Value: float64(value)}
}

func gauge(name, help string, value float64) status.Sample {
	return status.Sample{Name: name, Help: help, Value: value, Gauge: true}
}
