package inject

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"understudy.mesh/pkg/contract"
)

// Annotations by which Prometheus finds what to scrape.
const (
	scrapeAnnotation  = "prometheus.io/scrape"
	portAnnotation    = "prometheus.io/port"
	pathAnnotation    = "prometheus.io/path"
	targetsAnnotation = "prometheus.istio.io/scrape-targets"
)

// scrape is ISTIO_PROMETHEUS_ANNOTATIONS: where the agent finds the application's metrics, which it answers with Envoy's and its own.
type scrape struct {
	Scrape  string   `json:"scrape,omitempty"`
	Path    string   `json:"path,omitempty"`
	Port    string   `json:"port,omitempty"`
	Targets []target `json:"targets,omitempty"`
}

type target struct {
	Port string `json:"port"`
	Path string `json:"path,omitempty"`
}

// unusual is what Prometheus replaces in names of annotations, so that prometheus_io_port is another spelling.
var unusual = regexp.MustCompile(`[^a-zA-Z0-9_]`)

// mergePrometheus sends Prometheus to the agent, and the agent to where Prometheus was to go.
func (b *builder) mergePrometheus() error {
	port := strconv.Itoa(int(*b.settings.Proxy.StatusPort))
	if !*b.settings.Proxy.MergePrometheus || port == "0" {
		return nil
	}
	spelled := map[string][]string{}
	for _, name := range sortedKeys(b.annotations) {
		key := unusual.ReplaceAllString(name, "_")
		spelled[key] = append(spelled[key], name)
	}
	find := func(annotation string) string {
		for _, name := range spelled[unusual.ReplaceAllString(annotation, "_")] {
			return b.annotations[name]
		}
		return ""
	}
	s := scrape{Scrape: find(scrapeAnnotation), Path: find(pathAnnotation), Port: find(portAnnotation)}
	if s.Scrape == "false" || s.Port == port {
		return nil
	}
	targets, err := b.scrapeTargets()
	if err != nil {
		return err
	}
	if s.Targets = targets; len(targets) > 0 {
		s.Scrape = "true"
	}
	if s.Scrape+s.Path+s.Port != "" {
		b.scrape = asJSON(s)
	}
	for annotation, value := range map[string]string{scrapeAnnotation: "true", portAnnotation: port, pathAnnotation: contract.MetricsPath} {
		for _, name := range spelled[unusual.ReplaceAllString(annotation, "_")] {
			delete(b.annotations, name)
		}
		b.annotate(annotation, value)
	}
	return nil
}

// scrapeTargets reads a list such as 8080:/metrics,9090. A port of ours would be scraped through itself without end.
func (b *builder) scrapeTargets() (targets []target, err error) {
	text := b.annotations[targetsAnnotation]
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		port, path, _ := strings.Cut(item, ":")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("annotation %s: %q: want PORT:PATH, such as 8080:/metrics", targetsAnnotation, item)
		}
		switch n {
		case contract.AdminPort, contract.OutboundPort, contract.DebugPort, contract.InboundPort, contract.TunnelPort,
			contract.StatusPort, contract.ReadyPort, contract.DNSPort, contract.StatsPort, uint64(*b.settings.Proxy.StatusPort):
			return nil, fmt.Errorf("annotation %s: %q: port %d is the proxy's, whose metrics are there without it: leave it out", targetsAnnotation, item, n)
		}
		targets = append(targets, target{port, path})
	}
	return targets, nil
}

// restoreScrape puts back what an earlier pass gave to the agent.
func (b *builder) restoreScrape(text string) {
	var s scrape
	if json.Unmarshal([]byte(text), &s) != nil {
		return
	}
	for name, value := range map[string]string{scrapeAnnotation: s.Scrape, portAnnotation: s.Port, pathAnnotation: s.Path} {
		if value != "" {
			b.annotations[name] = value
		}
	}
}
