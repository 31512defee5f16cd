package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"understudy.mesh/tests/lab"
)

const (
	monitoringDir = "../../deploy/monitoring"
	prometheusAPI = "http://127.0.0.1:9090/api/v1/"
	// relayAddress is where the Prometheus of one lab finds the pod of another.
	relayAddress = lab.OutIP + ":19020"
	// kubeletAddress is where it finds what a kubelet says of containers.
	kubeletAddress = lab.OutIP + ":10250"
)

// kubeletMetrics are some of a kubelet's at /metrics/cadvisor, of a pod with two slots of which one was started anew a moment ago.
const kubeletMetrics = `# TYPE container_memory_working_set_bytes gauge
container_memory_working_set_bytes{container="",id="/kubepods/pod1",image="",name="",namespace="default",pod="files"} 3e8
container_memory_working_set_bytes{container="app",id="/kubepods/pod1/a",image="app",name="a",namespace="default",pod="files"} 1e8
container_memory_working_set_bytes{container="istio-proxy",id="/kubepods/pod1/b",image="proxy",name="b",namespace="default",pod="files"} 1.2e8
container_memory_working_set_bytes{container="istio-proxy-2",id="/kubepods/pod1/c",image="empty",name="c",namespace="default",pod="files"} 3e6
container_memory_working_set_bytes{container="istio-proxy-2",id="/kubepods/pod1/d",image="proxy",name="d",namespace="default",pod="files"} 1.1e8
`

// metricName is one of ours, of Envoy or of the kubelet in a query.
var metricName = regexp.MustCompile(`\b(?:istio_agent|envoy|container)_[a-z0-9_]+\b(\{[^}]*\})?`)

// TestMonitoring evaluates each query of the dashboard and each alert on what a real Prometheus scrapes of two real pods, of which
// one has its configuration from files and is upgraded meanwhile, and the other is under istiod.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{})
	p.slots.Write(t, "broken.yaml", documents(entry("broken", "broken.example", 70000, "HTTP", "DNS")))
	module, err := os.ReadFile("../../pkg/envoyfilter/testdata/header.wasm")
	must(t, err)
	p.slots.Write(t, "header.wasm", string(module))
	p.slots.Write(t, "filter.yaml", fmt.Sprintf(manualFilter, "/config/mesh/header.wasm"))
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)

	under, _ := newIstiodPod(t, "ENVOY_SECURE_METRICS_PORT="+securePort) // for which its Envoy needs a certificate
	under.start(t, 0, under.older, 1, 0)
	under.mustServe(t, 0, under.older)
	serve := func(address string, handler http.HandlerFunc) {
		server := &http.Server{Handler: handler}
		listener := p.Out.Listen(t, address)
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(func() { server.Close() })
	}
	serve(relayAddress, func(w http.ResponseWriter, r *http.Request) {
		_, body, err := under.Out.Get("http://" + lab.PodIP + ":" + lab.StatusPort + r.URL.Path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		io.WriteString(w, body)
	})
	serve(kubeletAddress, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, kubeletMetrics) })

	db := startPrometheus(t, p)
	lab.Eventually(t, lab.Deadline, "Prometheus has scraped both pods", func() error { return db.finds(`count(istio_agent_scrapes_total > 1) == 2`) })
	held := dial(t, p.Out, lab.PodIP+":9000")
	const noHTTP = "\x00" // at the first byte: Envoy waits for no more of it
	send(t, held, noHTTP)
	expect(t, held, noHTTP)
	p.start(t, 1, p.newer, 2, 1)
	p.waitRole(t, 1, roleServing)

	queries := dashboardQueries(t)
	for what, q := range queries {
		lab.Eventually(t, lab.Deadline, what+": "+q.expr, func() error {
			return errors.Join(db.knows(q.expr), db.finds(q.expr, q.labels...))
		})
	}
	slots := queries["Memory of both slots A"].expr
	must(t, errors.Join(db.finds("count("+slots+") == 2"), db.finds("max("+strings.Replace(slots, "istio-proxy(-[12])?", "istio-proxy-2", 1)+") == 1.1e8")))
	names := db.alerts(t)
	if len(names) == 0 {
		t.Error("no alerts")
	}
	for name, q := range names {
		lab.Eventually(t, lab.Deadline, "the alert "+name+": "+q.expr, func() error { return errors.Join(db.knows(q.expr), db.labelled(q)) })
	}
	must(t, held.Close())
}

// query is one, with the labels that its result is shown by.
type query struct {
	expr   string
	labels []string
}

// shownBy are the labels in a text of Grafana's or of an alert's.
func shownBy(text string) (labels []string) {
	for _, m := range regexp.MustCompile(`\{\{ *(?:\$labels\.)?([a-z0-9_]+) *\}\}`).FindAllStringSubmatch(text, -1) {
		labels = append(labels, m[1])
	}
	return labels
}

// dashboardQueries are those of the dashboard's panels, with its variables as Grafana would fill them in.
func dashboardQueries(t *testing.T) map[string]query {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(monitoringDir, "dashboard.json"))
	must(t, err)
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ RefID, Expr, LegendFormat string }
		}
	}
	must(t, json.Unmarshal(text, &dashboard))
	all, ids, taken := map[string]query{}, map[int]bool{}, map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q lies on %q, or beyond the 24 columns", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "20s", "$__range", "1m", "$namespace", ".*", "$pod", ".*").Replace(target.Expr)
			all[p.Title+" "+target.RefID] = query{expr, shownBy(target.LegendFormat)}
		}
	}
	if len(all) < 40 {
		t.Fatalf("the dashboard has %d queries", len(all))
	}
	return all
}

// prometheus is one that runs outside of a pod.
type prometheus struct{ out *lab.Namespace }

func startPrometheus(t *testing.T, p *slotPod) prometheus {
	t.Helper()
	if _, err := exec.LookPath("prometheus"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs prometheus: build/setup.sh test")
		}
		t.Skip("needs prometheus: build/setup.sh test")
	}
	dir := t.TempDir()
	config := fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yaml]
scrape_configs:
- job_name: pods
  metrics_path: /stats/prometheus
  static_configs:
  - {targets: ['%s:%s'], labels: {namespace: default, pod: files}}
  - {targets: ['%s'], labels: {namespace: default, pod: istiod}}
- job_name: kubelet
  metrics_path: /metrics/cadvisor
  honor_labels: true
  static_configs:
  - {targets: ['%s']}
`, lab.PodIP, lab.StatusPort, relayAddress, kubeletAddress)
	must(t, os.WriteFile(filepath.Join(dir, "prometheus.yaml"), []byte(config), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "rules.yaml"), alertGroups(t), 0o644))
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := p.Out.Command(ctx, "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:9090")
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		log.Close()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("prometheus: %s", text)
		}
	})
	return prometheus{p.Out}
}

// alertGroups are the alerts as Prometheus itself reads them.
func alertGroups(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(monitoringDir, "alerts.yaml"))
	must(t, err)
	var rule struct {
		Spec struct {
			Groups []any `json:"groups"`
		} `json:"spec"`
	}
	must(t, yaml.Unmarshal(text, &rule))
	groups, err := yaml.Marshal(rule.Spec)
	must(t, err)
	return groups
}

func (db prometheus) ask(path string, data any) error {
	_, body, err := db.out.Get(prometheusAPI + path)
	if err != nil {
		return err
	}
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		return fmt.Errorf("%w: %s", err, body)
	}
	if answer.Status != "success" {
		return errors.New(answer.Error)
	}
	return nil
}

// finds returns nil when a query has a result, of which each series has the labels.
func (db prometheus) finds(query string, labels ...string) error {
	var data struct {
		Result []struct{ Metric map[string]string }
	}
	if err := db.ask("query?query="+url.QueryEscape(query), &data); err != nil {
		return err
	}
	if len(data.Result) == 0 {
		return fmt.Errorf("%s finds nothing", query)
	}
	for _, series := range data.Result {
		for _, l := range labels {
			if series.Metric[l] == "" {
				return fmt.Errorf("%s finds %v, without the label %s", query, series.Metric, l)
			}
		}
	}
	return nil
}

// knows returns nil when each metric of a query has series with the labels that it selects them by, whatever their values are.
func (db prometheus) knows(query string) error {
	label := regexp.MustCompile(`([a-z_]+)\s*[=!]`)
	for _, m := range metricName.FindAllStringSubmatch(query, -1) {
		name := strings.TrimSuffix(m[0], m[1])
		selector := []string{}
		for _, l := range label.FindAllStringSubmatch(m[1], -1) {
			selector = append(selector, l[1]+`!=""`)
		}
		if err := db.finds(name + "{" + strings.Join(selector, ",") + "}"); err != nil {
			return err
		}
	}
	return nil
}

// labelled returns nil when what fires an alert has the labels that the alert names.
func (db prometheus) labelled(q query) error {
	by := regexp.MustCompile(`by \(([^)]*)\)`).FindStringSubmatch(q.expr)
	for _, l := range q.labels {
		if by != nil && !slices.Contains(strings.Split(by[1], ", "), l) {
			return fmt.Errorf("%s has no label %s", q.expr, l)
		}
		if by == nil {
			if err := db.finds(strings.Split(metricName.FindString(q.expr), "{")[0], l); err != nil {
				return err
			}
		}
	}
	return nil
}

// alerts are the queries of those that Prometheus evaluates, by name.
func (db prometheus) alerts(t *testing.T) map[string]query {
	t.Helper()
	all := map[string]query{}
	lab.Eventually(t, lab.Deadline, "every alert was evaluated", func() error {
		var data struct {
			Groups []struct {
				Rules []struct {
					Name, Query, Health, LastError string
					Annotations                    map[string]string
				}
			}
		}
		if err := db.ask("rules", &data); err != nil {
			return err
		}
		for _, g := range data.Groups {
			for _, r := range g.Rules {
				if all[r.Name] = (query{r.Query, shownBy(r.Annotations["summary"])}); r.Health != "ok" {
					return fmt.Errorf("%s: %s %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		return nil
	})
	return all
}

// TestAlertsFire: each alert fires for what it is there for, and none of the others does; in a pod that is well none does.
func TestAlertsFire(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs promtool: build/setup.sh test")
		}
		t.Skip("needs promtool: build/setup.sh test")
	}
	const pod = `namespace="n",pod="p"`
	well := map[string]string{
		"istio_agent_ready{" + pod + "}":                                                             "1+0x2000",
		"istio_agent_envoy_restarts_total{" + pod + "}":                                              "7+0x2000",
		`istio_agent_upgrade_total{result="success",reason="took_over",` + pod + "}":                 "0+1x2000",
		`istio_agent_generation_info{agent="1",envoy="2",generation="a",role="serving",` + pod + "}": "1+0x2000",
		`istio_agent_config_documents{status="ok",` + pod + "}":                                      "9+0x2000",
		`istio_agent_config_documents{status="ignored",` + pod + "}":                                 "1+0x2000",
		`istio_agent_config_documents{status="error",` + pod + "}":                                   "0+0x2000",
		"istio_agent_config_hosts_refused{" + pod + "}":                                              "0+0x2000",
		`istio_agent_wasm_placeholder{name="f",` + pod + "}":                                         "0+0x2000",
		`istio_agent_wasm_module_info{name="f",phase="InForce",` + pod + "}":                         "1+0x2000",
		`istio_agent_xds_rejected{type="Cluster",` + pod + "}":                                       "0+0x2000",
		"istio_agent_config_age_seconds{" + pod + "}":                                                "0+0x2000",
		`istio_agent_num_failed_outgoing_requests{request_type="csr",` + pod + "}":                   "3+0x2000",
		`istio_agent_cert_expiry_seconds{resource_name="default",` + pod + "}":                       "40000+0x2000",
		`istio_agent_dns_upstream_healthy{upstream="a",` + pod + "}":                                 "0+0x2000",
		`istio_agent_dns_upstream_healthy{upstream="b",` + pod + "}":                                 "1+0x2000",
		"istio_agent_dns_refused_total{" + pod + "}":                                                 "5+0x2000",
		"istio_agent_dns_vips_pending{" + pod + "}":                                                  "0+0x2000",
		"istio_agent_dns_vips_write_errors_total{" + pod + "}":                                       "2+0x2000",
		`istio_agent_scrape_failures_total{type="envoy",` + pod + "}":                                "1+0x2000",
	}
	// What becomes of one of these series, or of another one, and at which minute that is seen.
	ill := map[string]struct {
		series, values string
		minute         int
		also           string // an alert that goes with it
	}{
		"NotReady":                  {"istio_agent_ready{" + pod + "}", "0+0x20", 6, ""},
		"EnvoyRestarts":             {"istio_agent_envoy_restarts_total{" + pod + "}", "7+0x20 8+0x9", 22, ""},
		"EnvoyKeepsEnding":          {"istio_agent_envoy_restarts_total{" + pod + "}", "7+0x20 9 11 13 15+0x9", 24, "EnvoyRestarts"},
		"HotUpgradeFails":           {`istio_agent_upgrade_total{result="failure",reason="timeout",` + pod + "}", "_x20 1+0x9", 22, ""},
		"UpgradeStoppedHalfway":     {`istio_agent_generation_info{agent="1",envoy="1",generation="b",role="serving",namespace="n",pod="q"}`, "1+0x2000", 1450, ""},
		"DocumentsNotInForce":       {`istio_agent_config_documents{status="stale",` + pod + "}", "1+0x20", 6, ""},
		"EnvoyRefusesConfiguration": {`istio_agent_xds_rejected{type="Cluster",` + pod + "}", "2+0x20", 6, ""},
		"WasmModuleMissing":         {`istio_agent_wasm_placeholder{name="f",` + pod + "}", "1+0x20", 6, ""},
		"WasmModuleStale":           {`istio_agent_wasm_module_info{name="g",phase="Stale",` + pod + "}", "1+0x20", 11, ""},
		"IstiodAway":                {"istio_agent_config_age_seconds{" + pod + "}", "0+60x20", 6, ""},
		"CertificateNotRenewed":     {`istio_agent_num_failed_outgoing_requests{request_type="csr",` + pod + "}", "3+1x60", 20, ""},
		"CertificateEnds":           {`istio_agent_cert_expiry_seconds{resource_name="default",` + pod + "}", "1200-60x30", 6, ""},
		"DNSServersFail":            {`istio_agent_dns_upstream_healthy{upstream="b",` + pod + "}", "0+0x20", 3, ""},
		"DNSRefused":                {"istio_agent_dns_refused_total{" + pod + "}", "5+10x20", 8, ""},
		"NoVIPLeft":                 {"istio_agent_dns_vips_pending{" + pod + "}", "3+0x20", 6, ""},
		"VIPsNotSaved":              {"istio_agent_dns_vips_write_errors_total{" + pod + "}", "2+0x20 3+0x9", 22, ""},
		"ScrapeIncomplete":          {`istio_agent_scrape_failures_total{type="envoy",` + pod + "}", "1+1x60", 20, ""},
	}
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "rules.yaml"), alertGroups(t), 0o644))
	type series struct {
		Series string `json:"series"`
		Values string `json:"values"`
	}
	test := func(name, also string, with series, minute int) map[string]any {
		input := []series{with}
		for s, values := range well {
			if s != with.Series {
				input = append(input, series{s, values})
			}
		}
		firing := []any{}
		for _, alert := range []string{name, also} {
			if alert != "" {
				firing = append(firing, map[string]any{"labels": fmt.Sprintf("{alertname=%q}", alert), "value": 1})
			}
		}
		return map[string]any{"name": name, "interval": "1m", "input_series": input, "promql_expr_test": []any{
			map[string]any{"expr": `count by (alertname) (ALERTS{alertstate="firing"})`, "eval_time": fmt.Sprintf("%dm", minute), "exp_samples": firing},
		}}
	}
	tests := []any{test("", "", series{"unrelated", "1+0x2000"}, 1500)}
	for name, i := range ill {
		tests = append(tests, test(name, i.also, series{i.series, i.values}, i.minute))
		if !strings.Contains(string(alertGroups(t)), "alert: "+name+"\n") {
			t.Errorf("there is no alert %s", name)
		}
	}
	if n := strings.Count(string(alertGroups(t)), "alert: "); n != len(ill) {
		t.Errorf("%d alerts, and cases for %d", n, len(ill))
	}
	text, err := yaml.Marshal(map[string]any{"rule_files": []string{"rules.yaml"}, "evaluation_interval": "1m", "tests": tests})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "tests.yaml"), text, 0o644))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "promtool", "test", "rules", filepath.Join(dir, "tests.yaml")).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
