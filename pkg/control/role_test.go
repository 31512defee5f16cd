package control

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestRole checks whom it asks, and what the answer means.
func TestRole(t *testing.T) {
	const url = "http://localhost:15021/healthz/ready"
	role := func(s RoleStatus) map[string]reply { return map[string]reply{RolePath: asJSON(t, s)} }
	atPorts := func(code int, body string) fakeAgent {
		return fakeAgent{replies: map[string]reply{"/healthz/ready": {code: code, body: body}}}
	}
	starting := RoleStatus{Role: "starting", Reason: "Envoy has no listeners yet", UpgradeDrainSeconds: 100}
	standby := RoleStatus{Role: "standby", Settled: true, UpgradeDrainSeconds: 100}
	noAgent := fakeAgent{absent: ErrNoAgent}
	for _, tc := range []struct {
		name  string
		pod   fakePod
		want  RoleStatus
		err   string
		gone  bool // the error is ErrNoAgent
		ports int  // questions to the ports
	}{
		{name: "its own agent, although the ports are ready", pod: fakePod{own: fakeAgent{replies: role(starting)}, ports: atPorts(200, "")}, want: starting},
		{name: "its own agent in standby", pod: fakePod{own: fakeAgent{replies: role(standby)}, ports: atPorts(503, "")}, want: standby},
		{name: "an old agent that is ready", pod: fakePod{own: fakeAgent{replies: map[string]reply{StatusPrefix + "/healthz/ready": {code: 200}}}},
			want: RoleStatus{Settled: true, Drained: true}},
		{name: "an old agent that is not ready", pod: fakePod{own: fakeAgent{replies: map[string]reply{StatusPrefix + "/healthz/ready": {code: 503, body: "no Envoy\n"}}}, ports: atPorts(200, "")},
			err: "HTTP status code 503: no Envoy"},
		{name: "an agent that is wrong inside", pod: fakePod{own: fakeAgent{replies: map[string]reply{RolePath: {code: 500, body: "oops"}}}, ports: atPorts(200, "")},
			err: "ask the agent for /role: HTTP status code 500: oops"},
		{name: "an answer that is no JSON", pod: fakePod{own: fakeAgent{replies: map[string]reply{RolePath: {code: 200, body: "<html>"}}}},
			err: "read the agent's answer to /role: invalid character '<' looking for beginning of value"},
		{name: "an impostor", pod: fakePod{own: fakeAgent{absent: errors.New("held by uid 1000")}, ports: atPorts(200, "")},
			err: `ask the agent for /role: Get "http://agent/role": held by uid 1000`},
		{name: "one container, no agent, ready", pod: fakePod{own: noAgent, ports: atPorts(200, "")}, want: RoleStatus{Settled: true, Drained: true}, ports: 1},
		{name: "one container, no agent, not ready", pod: fakePod{own: noAgent, ports: atPorts(503, "starting")}, ports: 1, gone: true,
			err: "no agent runs in this container; HTTP status code 503: starting"},
		{name: "one container, nobody", pod: fakePod{own: noAgent, ports: fakeAgent{absent: refused}}, ports: 1, gone: true,
			err: `no agent runs in this container; Get "http://localhost:15021/healthz/ready": dial: connect: connection refused`},
		{name: "two containers, the other one serves", pod: fakePod{own: noAgent, ports: atPorts(200, ""), foreign: errForeign}, ports: 1, gone: true,
			err: errForeign.Error()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.pod.client().Role(t.Context(), url)
			if tc.err == "" && (err != nil || got != tc.want) {
				t.Errorf("%+v, %v; want %+v", got, err, tc.want)
			}
			if tc.err != "" && (err == nil || err.Error() != tc.err) {
				t.Errorf("error %v\n want %s", err, tc.err)
			}
			if errors.Is(err, ErrNoAgent) != tc.gone {
				t.Errorf("%v is ErrNoAgent: %v, want %v", err, !tc.gone, tc.gone)
			}
			if len(tc.pod.ports.asked) != tc.ports {
				t.Errorf("asked the ports %q, want %d questions", tc.pod.ports.asked, tc.ports)
			}
		})
	}
}

func TestUpgradeStatus(t *testing.T) {
	const answer = `{"handoffDir":"/d","generations":[{"id":"a","later":1}]}` + "\n"
	pod := fakePod{own: fakeAgent{replies: map[string]reply{UpgradePath: {code: 200, body: answer}}}}
	status, raw, err := pod.client().UpgradeStatus(t.Context())
	if err != nil || status.HandoffDir != "/d" || len(status.Generations) != 1 || status.Generations[0].ID != "a" || string(raw) != answer {
		t.Fatalf("%+v, %v, %s", status, err, raw)
	}
}

func TestUpgradeStatusErrors(t *testing.T) {
	for _, tc := range []struct {
		name  string
		own   fakeAgent
		want  string
		after time.Duration
	}{
		{"no agent", fakeAgent{absent: ErrNoAgent}, ErrNoAgent.Error(), patience},
		{"an old agent", fakeAgent{}, "the agent is of a release that does not know this question: it has no hot upgrade", 0},
		{"no connection", fakeAgent{absent: errors.New("held by uid 1000")}, `ask the agent for /upgrade: Get "http://agent/upgrade": held by uid 1000`, 0},
		{"no JSON", fakeAgent{replies: map[string]reply{UpgradePath: {code: 200, body: "{"}}}, "read the agent's answer to /upgrade: unexpected end of JSON input", 0},
		{"too much", fakeAgent{replies: map[string]reply{UpgradePath: {code: 200, body: `"` + strings.Repeat("x", maxAnswer) + `"`}}}, "read the agent's answer to /upgrade: unexpected end of JSON input", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				pod := fakePod{own: tc.own}
				if _, _, err := pod.client().UpgradeStatus(t.Context()); err == nil || err.Error() != tc.want {
					t.Errorf("error %v\n want %s", err, tc.want)
				}
				if took := time.Since(start); took != tc.after {
					t.Errorf("it took %s, want %s", took, tc.after)
				}
			})
		})
	}
}

func TestAsk(t *testing.T) {
	pod := fakePod{own: fakeAgent{replies: map[string]reply{"/page": {code: 200, body: `{"a":1}`}, "/half": {code: 200, body: `{"a":`}}}}
	for path, want := range map[string]string{"/page": "", "/half": "unexpected end of JSON input", "/unknown": "of a release that does not know this question"} {
		raw, err := pod.client().Ask(t.Context(), path)
		if want == "" && (err != nil || string(raw) != `{"a":1}`) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %s, %v", path, raw, err)
		}
	}
}
