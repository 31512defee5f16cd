package istiod

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"understudy.mesh/pkg/xds"
)

// changed asks the log of the configuration.
func (a *agent) changed(query string) (changes []xds.Change) {
	a.t.Helper()
	page := httptest.NewRecorder()
	a.DebugPages()[ConfigLogPage].ServeHTTP(page, httptest.NewRequest(http.MethodGet, ConfigLogPage+query, nil))
	if err := json.Unmarshal(page.Body.Bytes(), &changes); err != nil {
		a.t.Fatalf("the page is no list: %v: %s", err, page.Body)
	}
	return changes
}

func TestConfigLog(t *testing.T) {
	if changes := newAgent(t, startFake(t), nil).changed(""); len(changes) != 0 {
		t.Errorf("nothing came, and the log has %v", changes)
	}
	_, a, e, s := cold(t)
	s.give(clusterType, "b=1")
	e.gets("Cluster +b", "")
	s.asked("Cluster ack n4")
	for query, want := range map[string]int{"": 4, "?name=virtual": 1, "?name=Virtual": 0} {
		if changes := a.changed(query); len(changes) != want {
			t.Errorf("the log of %q has %v, want %d", query, changes, want)
		}
	}
	if last := a.changed("")[3]; last.Change != "added" || last.Type != clusterType || last.Name != "b" {
		t.Errorf("the last change is %+v", last)
	}
}

// resync asks the page, and returns the status of its answer.
func (a *agent) resync(method string) int {
	a.t.Helper()
	page := httptest.NewRecorder()
	a.DebugPages()[resyncPage].ServeHTTP(page, httptest.NewRequest(method, resyncPage, nil))
	return page.Code
}

// TestResync: another stream is opened at once, and Envoy gets what is the same; on the next one it does not.
func TestResync(t *testing.T) {
	f, a, e, s := cold(t)
	if code := a.resync(http.MethodGet); code != http.StatusMethodNotAllowed {
		t.Errorf("a GET is answered with %d", code)
	}
	s.quiet()
	if code := a.resync(http.MethodPost); code != http.StatusOK {
		t.Errorf("a POST is answered with %d", code)
	}
	<-s.gone
	again := f.stream()
	again.asked("Cluster node held:a", "ClusterLoadAssignment +a held:a", "Listener held:virtualOutbound", "NameTable")
	again.give(clusterType, "a=1")
	e.gets("Cluster +a", "")
	again.asked("Cluster ack n1")
	if changes := a.changed(""); len(changes) != 3 { // one of each type
		t.Errorf("what is the same has changed: %v", changes)
	}
	again.end <- nil
	third := f.stream()
	third.asked("Cluster node held:a", "ClusterLoadAssignment +a held:a", "Listener held:virtualOutbound", "NameTable")
	third.give(clusterType, "a=1")
	third.asked("Cluster ack n1") // without Envoy
}

// TestResyncWithoutStream: the pause before the next attempt is over.
func TestResyncWithoutStream(t *testing.T) {
	f := startFake(t)
	f.stop()
	a := newAgent(t, f, func(i *Istiod) { i.loop.backoff.random = func(time.Duration) time.Duration { return time.Hour } })
	a.envoy().asks(clusterType)
	a.failed("connection refused")
	f.start()
	a.resync(http.MethodPost)
	f.stream().asked("Cluster node")
}

// TestPassAll: Envoy gets everything again, on each stream.
func TestPassAll(t *testing.T) {
	f := startFake(t)
	a := newAgent(t, f, func(i *Istiod) { i.c.PassAll = true })
	e := a.envoy()
	e.asks(clusterType)
	s := f.stream()
	for range 3 {
		s.next()
		s.give(clusterType, "a=1")
		e.gets("Cluster +a", "")
		s.asked("Cluster ack n1")
		s.end <- nil
		s = f.stream()
	}
}

// counted are the metrics of a name, by their label.
func (a *agent) counted(name string) map[string]float64 {
	counted := make(map[string]float64)
	for _, s := range a.Samples() {
		if s.Name == name {
			counted[s.Labels["type"]] = s.Value
		}
	}
	return counted
}

// TestLeadsTo: a name leads to the clusters that Envoy has taken of its host, also in its short forms.
func TestLeadsTo(t *testing.T) {
	_, a, e, s := cold(t)
	names := []string{
		"outbound|443||web.default.svc.cluster.local", "outbound|80||web.default.svc.cluster.local", "outbound|80|v1|web.default.svc.cluster.local", "inbound|9000||",
		"outbound|80||web.other.svc.cluster.local", "PassthroughCluster", "outbound|x||odd.example.com",
		"outbound|1||*.example.com", "outbound|2||*.example.com", "outbound|3||*.example.com", "outbound|4||*.example.com", "outbound|5||*.example.com",
	}
	s.give(clusterType, strings.Split(strings.Join(names, "=1 ")+"=1", " ")...)
	e.gets("Cluster +"+strings.Join(names, " +"), "")
	s.asked("Cluster ack n4")
	const web = "80 -> outbound|80||web.default.svc.cluster.local; 443 -> outbound|443||web.default.svc.cluster.local"
	for host, want := range map[string]string{
		"web.default.svc.cluster.local": web, "web.default.svc": web, "web.default": web, "web": web, "web.other": "80 -> outbound|80||web.other.svc.cluster.local",
		"*.example.com": "1 -> outbound|1||*.example.com; 2 -> outbound|2||*.example.com; 3 -> outbound|3||*.example.com; 2 more ports",
		"":              "", "default.svc.cluster.local": "", "web-0.web.default.svc.cluster.local": "", "odd.example.com": "",
	} {
		if got := a.LeadsTo(host); got != want {
			t.Errorf("%s leads to %q, want %q", host, got, want)
		}
	}
}

// TestTypedMetrics: how streams have ended, and what Envoy refuses now.
func TestTypedMetrics(t *testing.T) {
	f, a, e, s := cold(t)
	s.give(listenerType, "virtualOutbound=2")
	e.gets("Listener +virtualOutbound", "no such field")
	s.asked("Listener nack n4")
	if got := a.counted("xds_rejected"); got["Listener"] != 1 || got["Cluster"] != 0 || len(got) != 3 {
		t.Errorf("refused are %v", got)
	}
	o := a.Overview()
	if o.ErrorsCount != 1 || o.Errors[0].Where != "Listener virtualOutbound" || !strings.Contains(o.Errors[0].Reason, "no such field") || !o.Istiod.Connected {
		t.Errorf("people see %+v of %+v", o, o.Istiod)
	}
	s.end <- nil
	s = f.stream()
	s.end <- status.Error(codes.Internal, "no")
	f.stream()
	if got := a.counted("istiod_connection_terminations"); got["cancelled"] != 1 || got["error"] != 1 {
		t.Errorf("streams have ended as %v", got)
	}
}
