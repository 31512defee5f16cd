package sidecar

import "understudy.mesh/pkg/status"

// samples are all metrics of the agent: the parts count for themselves and know
// nothing of Prometheus.
func (s *Sidecar) samples() []func() []status.Sample {
	return []func() []status.Sample{s.lifeSamples, s.files.Samples, s.xdsSamples, s.dnsSamples, s.vipSamples}
}

func (s *Sidecar) lifeSamples() []status.Sample {
	return []status.Sample{
		counter("envoy_restarts_total", "Times that Envoy was started again after it ended by itself.", s.Envoy.Restarts()),
	}
}

func (s *Sidecar) xdsSamples() []status.Sample {
	x := s.xds.Stats()
	return []status.Sample{
		counter("xds_proxy_requests", "Requests that Envoy sent on its configuration streams.", x.Requests),
		counter("xds_proxy_responses", "Responses that were sent to Envoy.", x.Responses),
		counter("xds_streams_total", "Configuration streams that Envoy opened.", x.Streams),
		counter("xds_resources_total", "Resources that were sent to Envoy or removed from it.", x.Resources),
		counter("xds_pushes_total", "Configurations that Envoy has answered for in full.", x.Pushes),
		counter("xds_rejects_total", "Responses that Envoy refused.", x.NACKs),
	}
}
