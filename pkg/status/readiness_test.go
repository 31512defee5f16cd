package status

import (
	"errors"
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
			if p.Failed {
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
