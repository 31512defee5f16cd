package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(tc.in); got != tc.want {
			t.Errorf("median(%v) = %v, want %v", tc.in, got, tc.want)
		}
	}
}

func TestTable(t *testing.T) {
	got := table([]result{
		measured("a", "ms", []float64{2, 1, 3}).against("peer", []float64{4}),
		measured("b", "MiB", []float64{1234.5}),
		measured("c", "ms", []float64{2, 9, 3}).largest().against("limit", []float64{9}),
		measured("d", "ms", []float64{2, 9, 3}).smallest(),
	})
	want := "what  agent  unit  against  peer  ratio\n" +
		"a     2.00   ms    peer     4.00  0.50\n" +
		"b     1234   MiB                  \n" +
		"c     9.00   ms    limit    9.00  1.00\n" +
		"d     2.00   ms                   \n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestBroken(t *testing.T) {
	half := measured("a", "ms", []float64{2}).against("peer", []float64{4})
	if err := broken([]result{half, half.atMost(2), half.ratioAtMost(0.5)}); err != nil {
		t.Error(err)
	}
	err := broken([]result{half.atMost(1.9), half.ratioAtMost(0.49)})
	if want := "a: 2.00 ms, more than 1.90\na: 0.500 of peer's, more than 0.490"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestPercentile99(t *testing.T) {
	output := "junk\n" + strings.Repeat("> NOERROR a.example A 0.000100\n", 98) +
		"> NOERROR b.example A 0.000200\n> NOERROR c.example A 0.000900\n"
	if got := percentile99(t, output); got < 899 || got > 901 {
		t.Errorf("p99 = %v µs, want 900", got)
	}
}

// TestStaticBootstrap moves resources out of a dump as Envoy writes it.
func TestStaticBootstrap(t *testing.T) {
	var dump configDump
	err := json.Unmarshal([]byte(`{"configs": [
		{"@type": "B", "bootstrap": {"node": {"id": "n", "extensions": [{}], "user_agent_name": "envoy"},
			"static_resources": {"clusters": [{"name": "xds-grpc"}]}, "dynamic_resources": {"ads_config": {}}, "admin": {"address": {"pipe": {"path": "/x"}}}}},
		{"@type": "C", "dynamic_active_clusters": [{"version_info": "1", "cluster": {"@type": "Cluster", "name": "c"}}]},
		{"@type": "L", "dynamic_listeners": [{"name": "l", "active_state": {"listener": {"@type": "Listener", "name": "l"}}}]}]}`), &dump)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"node": map[string]any{"id": "n"},
		"static_resources": map[string]any{
			"clusters":  []any{map[string]any{"name": "xds-grpc"}, map[string]any{"name": "c"}},
			"listeners": []any{map[string]any{"name": "l"}},
		},
		"admin": map[string]any{"address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": 15000}}},
	}
	if diff := cmp.Diff(want, staticBootstrap(t, dump)); diff != "" {
		t.Error(diff)
	}
}

// TestLoad measures the peers for a moment: they answer every query, and the figures are sane.
func TestLoad(t *testing.T) {
	l := lab.New(t)
	upstream := l.StartDNS(t, map[string][]string{"hot-0.forwarded.example": {"198.51.100.7"}})
	unbound := startUnbound(t, l, 10)
	table := writeQueries(t, l, "table", "host-%d.bench.example", 10)
	hot := writeQueries(t, l, "hot", "hot-%d.forwarded.example", 1)
	for _, target := range []*dnsTarget{
		{name: "local-data", addr: unboundDNS, file: table, pid: unbound},
		{name: "cache", addr: unboundDNS, file: hot, pid: unbound},
	} {
		target.measure(t, l, time.Second)
		if target.cpu[0] <= 0 || target.cpu[0] > 1000 || target.qps[0] < 100 || target.p99[0] <= 0 {
			t.Errorf("%s: %v µs CPU a query, %v queries/s, p99 %v µs", target.name, target.cpu, target.qps, target.p99)
		}
		t.Logf("%s: %v µs CPU a query, %v queries/s, p99 %v µs", target.name, target.cpu, target.qps, target.p99)
	}
	if n := upstream.Queries("hot-0.forwarded.example", "A"); n > 3 {
		t.Errorf("%d queries of a cached name reached the upstream", n)
	}
}

func TestWants(t *testing.T) {
	for _, tc := range []struct {
		only, section string
		want          bool
	}{
		{"", "dns", true}, {"dns", "dns", true}, {"dns,start", "start", true}, {"dns", "start", false},
		{"upgrade", "upgrade-load", true}, {"upgrade-load", "upgrade-load", true}, {"upgrade-load", "upgrade-crash", false},
		{"start", "upgrade-start", false},
	} {
		if got := (settings{only: tc.only}).wants(tc.section); got != tc.want {
			t.Errorf("-only %q: %s: %v", tc.only, tc.section, got)
		}
	}
}

// TestDuring takes the seconds that a time touches.
func TestDuring(t *testing.T) {
	start := time.Now()
	var c clients
	for i := range 4 { // second i ends at i+1
		var h load.Histogram
		h.Add(time.Duration(i+1) * time.Millisecond)
		c.reports = append(c.reports, load.Report{
			Time: start.Add(time.Duration(i+1) * time.Second), Interval: 1,
			Flows: []load.FlowReport{{Interval: load.Counts{Latency: h}}},
		})
	}
	got := c.during(start.Add(1500*time.Millisecond), start.Add(2500*time.Millisecond))
	if diff := cmp.Diff([]float64{2, 3}, got); diff != "" {
		t.Error(diff)
	}
}

// TestHandedOverLine reads the line as the agent writes it.
func TestHandedOverLine(t *testing.T) {
	got := handedOverLine.FindStringSubmatch("2026-11-22T16:54:18.309509Z\tdebug\tagent\tthe generation before has told and given what it has" +
		"\tbytes=580020\tsockets=20\tafter=26.418ms\n")
	if len(got) != 3 || got[1] != "580020" || got[2] != "26.418ms" {
		t.Errorf("%q", got)
	}
}
