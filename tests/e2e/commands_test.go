package e2e_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// testCommands runs the commands that ask the running agent, in its container, with nothing in
// their environment.
func testCommands(t *testing.T, p *pod, _ *lab.CA) {
	vip := p.vip(t, "aliyun.com", dns.TypeA).String()
	for _, tc := range []struct {
		uid   int
		argv  []string
		code  int
		words []string
	}{
		{lab.AgentUID, []string{"wait", "--timeoutSeconds=10", "--periodMillis=50"}, 0, nil},
		{lab.RootUID, []string{"wait", "--timeoutSeconds=10", "--periodMillis=50"}, 0, nil},
		{lab.AgentUID, []string{"wait", "--timeoutSeconds=1", "--periodMillis=50", "--url=http://127.0.0.1:1/"}, 1, nil},
		{lab.AgentUID, []string{"dns", "lookup", "aliyun.com"}, 0, []string{vip, "aliyun.com"}},
		{lab.AgentUID, []string{"dns", "lookup", "plain.example"}, 0, []string{"198.51.100.40", lab.NameServer}},
		{lab.AgentUID, []string{"dns", "table"}, 0, []string{vip, "aliyun.com", "one.example", "listed.example"}},
		{lab.AgentUID, []string{"dns", "table", "one.example", "-o", "json"}, 0, []string{`"Name":"one.example"`}},
		{lab.AgentUID, []string{"dns", "cache"}, 0, []string{"plain.example.", "NOERROR", "fresh", lab.NameServer}},
		{lab.RootUID, []string{"dns", "cache", "plain.example", "-o", "json"}, 0, []string{`"name":"plain.example.","type":"A"`}},
		{lab.AgentUID, []string{"dns", "vips", "aliyun.com"}, 0, []string{vip, "aliyun.com", "used for", "Used: "}},
		{lab.AgentUID, []string{"dns", "vips", "-o", "json"}, 0, []string{`"capacity":65024`, vip}},
		{lab.AgentUID, []string{"dns", "upstreams"}, 0, []string{lab.NameServer + ":53", "healthy", "yes"}},
		{lab.AgentUID, []string{"dns", "upstreams", "-o", "json"}, 0, []string{`"state":"healthy"`, `"inUse":true`}},
		{lab.AgentUID, []string{"status"}, 0, []string{": serving, ready\n", "VIP " + vip, "-> ", "(DNS)", lab.NameServer + ":53", "healthy", "envoy   done", "Captured by REDIRECT"}},
		{lab.RootUID, []string{"status", "-o", "json"}, 0, []string{`"role": "serving"`, vip}},
		{lab.AgentUID, []string{"dns", "cache", "-o", "yaml"}, 2, []string{"yaml", "table or json"}},
		{lab.AgentUID, []string{"request", "GET", "server_info"}, 0, []string{"LIVE"}},
		{lab.AgentUID, []string{"request", "GET", "/stats?filter=server.state"}, 0, []string{"server.state"}},
		{lab.AgentUID, []string{"version"}, 0, []string{"version"}},
		{lab.AgentUID, []string{"completion", "bash"}, 0, []string{"pilot-agent"}},
		{lab.AgentUID, []string{"no-such-command"}, 2, []string{"no-such-command"}},
		{lab.AgentUID, []string{"proxy", "waypoint9"}, 2, []string{"waypoint9", "sidecar"}},
		{lab.AgentUID, []string{"wait", "--timeoutSeconds=soon"}, 2, []string{"timeoutSeconds", "soon"}},
	} {
		got := p.c.Run(t, lab.As{UID: tc.uid}, append([]string{lab.AgentPath}, tc.argv...)...)
		if err := contains(got.Output(), tc.words...); got.Code != tc.code || err != nil {
			t.Errorf("%s as uid %d: want exit status %d and %q: %v", strings.Join(tc.argv, " "), tc.uid, tc.code, tc.words, got)
		}
	}
}

// testPages reads what the agent and Envoy show over HTTP in the pod.
func testPages(t *testing.T, p *pod, _ *lab.CA) {
	for _, tc := range []struct {
		url    string
		status int
		words  []string
	}{
		{"127.0.0.1:15020/healthz/ready", http.StatusOK, nil},
		{"127.0.0.1:15021/healthz/ready", http.StatusOK, nil},
		{"[::1]:15021/healthz/ready", http.StatusOK, nil},
		{"127.0.0.1:15020/stats/prometheus", http.StatusOK, []string{"istio_agent_dns_requests_total", `istio_agent_dns_answers_total{source="table"}`, "istio_agent_dns_vips_assigned", "envoy_server_live"}},
		{"127.0.0.1:15020/metrics", http.StatusOK, []string{"istio_agent_startup_duration_seconds"}},
		{"127.0.0.1:15090/stats/prometheus", http.StatusOK, []string{"envoy_server_live"}},
		{"127.0.0.1:15000/server_info", http.StatusOK, []string{`"state": "LIVE"`}},
		{"127.0.0.1:15000/clusters", http.StatusOK, []string{"aliyun.com"}},
		{"127.0.0.1:15000/listeners", http.StatusOK, []string{":15001", ":15006"}},
		{"127.0.0.1:15020/debug/configz", http.StatusOK, []string{"mesh.yaml", "mydnsproxying-sample"}},
		{"127.0.0.1:15020/no-such-page", http.StatusNotFound, nil},
		{"127.0.0.1:15020/debug/pprof/goroutine?debug=1", http.StatusOK, []string{"goroutine profile: total"}},
	} {
		status, body, err := p.Pod.Get("http://" + tc.url)
		if err != nil || status != tc.status {
			t.Errorf("GET %s: status %d (%v), want %d: %s", tc.url, status, err, tc.status, body)
		} else if err := contains(body, tc.words...); err != nil {
			t.Errorf("GET %s: %v", tc.url, err)
		}
	}
	for _, path := range []string{"/drain", "/quitquitquit"} {
		if status, _, err := p.Pod.Get("http://127.0.0.1:15020" + path); err != nil || status != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: status %d (%v), want 405 and no effect", path, status, err)
		}
	}
}
