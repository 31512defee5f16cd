package lab

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// EnvoyStats are the counters and gauges of the pod's Envoy that match a regular expression.
func (l *Lab) EnvoyStats(t T, filter string) map[string]int {
	t.Helper()
	status, body, err := l.Pod.Get("http://127.0.0.1:" + AdminPort + "/stats?format=json&filter=" + filter)
	if err != nil || status != http.StatusOK {
		t.Fatalf("Envoy's statistics: %d, %v", status, err)
	}
	var page struct {
		Stats []struct {
			Name  string
			Value json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(body), &page); err != nil {
		t.Fatalf("Envoy's statistics: %v", err)
	}
	stats := make(map[string]int)
	for _, s := range page.Stats {
		if n, err := strconv.Atoi(string(s.Value)); err == nil {
			stats[s.Name] = n
		}
	}
	return stats
}
