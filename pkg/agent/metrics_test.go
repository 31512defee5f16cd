package agent

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/tests/golden"
)

// TestMetricsStay compares the agent's own metrics, each with its type and labels, with those that dashboards and
// alerts may use. Those of the process and of Go are the client library's.
func TestMetricsStay(t *testing.T) {
	t.Parallel()
	if resolvConf, err := os.ReadFile("/etc/resolv.conf"); err != nil || !strings.Contains(string(resolvConf), "nameserver") {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs a nameserver in /etc/resolv.conf")
		}
		t.Skip("needs a nameserver in /etc/resolv.conf: there are metrics of each")
	}
	p := newPod(t)
	p.start("a").settles(handoff.RoleServing)
	b := p.start("b") // some metrics are of hand-offs
	b.settles(handoff.RoleServing)
	w := httptest.NewRecorder()
	b.current().Status.Local().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/stats/prometheus", nil))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(families)) {
		if !strings.HasPrefix(name, "istio_agent_") || regexp.MustCompile("^istio_agent_(go|process)_").MatchString(name) {
			continue
		}
		labels := map[string]bool{}
		for _, m := range families[name].Metric {
			for _, l := range m.Label {
				labels[l.GetName()] = true
			}
		}
		line := fmt.Sprintf("%s %s {%s}", name, strings.ToLower(families[name].GetType().String()), strings.Join(slices.Sorted(maps.Keys(labels)), ", "))
		fmt.Fprintln(&text, strings.TrimSuffix(line, " {}"))
	}
	golden.Check(t, "testdata/metrics.golden", text.String())
}
