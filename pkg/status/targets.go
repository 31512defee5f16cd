package status

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"understudy.mesh/pkg/contract"
)

// annotationsSource names the environment variable in errors.
const annotationsSource = contract.PrometheusVariable

const (
	defaultMetricsPort text = "80"       // Istio's, when prometheus.io/port is not set
	defaultMetricsPath text = "/metrics" // Prometheus's
)

// reservedPorts returns those that a pod's metrics never come from, because
// the agent or Envoy has them: a scrape of them would merge what is merged
// already, without end.
func reservedPorts() []uint16 {
	return []uint16{contract.AdminPort, contract.OutboundPort, contract.DebugPort, contract.InboundPort, contract.TunnelPort,
		contract.StatusPort, contract.ReadyPort, contract.DNSPort, contract.StatsPort}
}

// annotations is what the injector makes of the pod's prometheus.io/*
// annotations. Every value is a string there, and may be a bare number or
// boolean here.
type annotations struct {
	Scrape text `json:"scrape"`
	exposure
	Targets []exposure `json:"targets"`
}

// exposure is where the application exposes metrics.
type exposure struct {
	Port text `json:"port"`
	Path text `json:"path"`
}

// text is a JSON string, or the literal text of a number or boolean.
type text string

// UnmarshalJSON implements [json.Unmarshaler].
func (t *text) UnmarshalJSON(b []byte) error {
	switch {
	case string(b) == "null":
		return nil
	case b[0] == '"':
		return json.Unmarshal(b, (*string)(t))
	case b[0] == '{' || b[0] == '[':
		return fmt.Errorf("want a string, not %s", b)
	}
	*t = text(b)
	return nil
}

// parseScrapeTargets reads ISTIO_PROMETHEUS_ANNOTATIONS. The list of targets,
// where there is one, replaces the single port and path. No target when
// scraping is off. status are the status server's own ports.
func parseScrapeTargets(data []byte, status []uint16) ([]*url.URL, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	var a annotations
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, fmt.Errorf("%s: want a JSON object with scrape, path and port: %w", annotationsSource, err)
	}
	if a.Scrape != "true" {
		return nil, nil
	}
	if len(a.Targets) == 0 {
		a.Targets = []exposure{a.exposure}
	}
	var targets []*url.URL
	for _, at := range a.Targets {
		u, err := at.url(status)
		if err != nil {
			return nil, err
		}
		targets = append(targets, u)
	}
	return targets, nil
}

// url is http://localhost:<port><path>.
func (e exposure) url(status []uint16) (*url.URL, error) {
	path := string(cmp.Or(e.Path, defaultMetricsPath))
	n, err := parsePort(strings.TrimSpace(string(cmp.Or(e.Port, defaultMetricsPort))))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", annotationsSource, err)
	}
	if slices.Contains(status, n) || slices.Contains(reservedPorts(), n) {
		return nil, fmt.Errorf("%s: port %d belongs to the agent or Envoy: set prometheus.io/port to the application's own port (was the pod injected twice?)",
			annotationsSource, n)
	}
	u, err := url.Parse("/" + strings.TrimPrefix(path, "/"))
	if err != nil || u.Host != "" {
		return nil, fmt.Errorf("%s: path %q is not a URL path like /metrics", annotationsSource, path)
	}
	u.Scheme, u.Host, u.Fragment = "http", "localhost:"+portString(n), ""
	return u, nil
}
