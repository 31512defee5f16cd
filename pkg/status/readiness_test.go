package status

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestReadiness(t *testing.T) {
	r := &Readiness{}
	steps := []struct {
		name string
		do   func()
		want []string // empty: ready
	}{
		{"nothing was registered", func() {}, []string{"start"}},
		{"two tasks", func() { r.Pending("envoy", "workers"); r.Pending("dns", "table") }, []string{"dns: table", "envoy: workers"}},
		{"one done", func() { r.Done("dns") }, []string{"envoy: workers"}},
		{"one failed", func() { r.Fail("envoy", errors.New("exec: no such file")) }, []string{"envoy: exec: no such file (failed)"}},
		{"all done", func() { r.Done("envoy") }, nil},
		{"off", func() { r.Off("SIGTERM") }, []string{"drain: SIGTERM (failed)"}},
		{"done changes nothing while off", func() { r.Done("envoy") }, []string{"drain: SIGTERM (failed)"}},
		{"on again", func() { r.On() }, nil},
		{"pending again", func() { r.Pending("envoy", "restarts") }, []string{"envoy: restarts"}},
	}
	for _, s := range steps {
		s.do()
		ready, pending := r.Check()
		if ready != (len(s.want) == 0) {
			t.Errorf("%s: ready = %v", s.name, ready)
		}
		if len(pending) != len(s.want) {
			t.Fatalf("%s: pending = %v, want %v", s.name, pending, s.want)
		}
		for i, p := range pending {
			got := p.Task + ": " + p.Reason
			if p.failed {
				got += " (failed)"
			}
			if !strings.HasPrefix(got, s.want[i]) {
				t.Errorf("%s: pending %q, want %q", s.name, got, s.want[i])
			}
		}
	}
}

func TestReadyEndpoint(t *testing.T) {
	c := testConfig(t)
	c.Ready.Pending("envoy", "it waits for\nlisteners")
	c.Ready.Fail("dns", errors.New("port taken"))
	url := run(t, c) + "/healthz/ready"
	resp, body := get(t, url)
	if want := "dns: failed: port taken\nenvoy: waiting: it waits for listeners\n"; resp.StatusCode != 503 || body != want {
		t.Errorf("got %d %q, want 503 %q", resp.StatusCode, body, want)
	}
	c.Ready.Done("dns")
	c.Ready.Done("envoy")
	if resp, _ := get(t, url); resp.StatusCode != 200 {
		t.Errorf("ready: got %d", resp.StatusCode)
	}
	c.Ready.Off("asked to")
	if resp, body := get(t, url); resp.StatusCode != 503 || body != "drain: off: asked to\n" {
		t.Errorf("off: got %d %q", resp.StatusCode, body)
	}
}

// Where somebody else serves, what that one says counts; where nobody does, what holds after the question.
func TestReadyStandIn(t *testing.T) {
	c := testConfig(t)
	asked := 0
	c.StandIn = func(w http.ResponseWriter, r *http.Request) bool {
		asked++
		if r.URL.RawQuery == "late" {
			c.Ready.Done("envoy")
			return false
		}
		if r.URL.RawQuery == "elsewhere" {
			w.WriteHeader(http.StatusOK)
			io.WriteString(w, "ready there\n")
			return true
		}
		return false
	}
	url := run(t, c) + "/healthz/ready"
	for _, step := range []struct {
		query, body string
		status      int
		pending     bool
		asked       int
	}{
		{"", "ready\n", 200, false, 0},
		{"elsewhere", "ready there\n", 200, true, 1},
		{"nowhere", "envoy: waiting: it died\n", 503, true, 2},
		{"late", "ready\n", 200, true, 3},
	} {
		if step.pending {
			c.Ready.Pending("envoy", "it died")
		}
		if resp, body := get(t, url+"?"+step.query); resp.StatusCode != step.status || body != step.body || asked != step.asked {
			t.Errorf("%q: %d %q, asked %d times, want %+v", step.query, resp.StatusCode, body, asked, step)
		}
	}
}
