package main

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"understudy.mesh/pkg/control"
)

// TestRequest checks whom a request reaches, and whom it does not.
func TestRequest(t *testing.T) {
	role := func(name string) reply { return asJSON(t, control.RoleStatus{Role: name, Settled: true}) }
	drain := portRequest{port: 15020, method: "POST", path: "/drain", body: "x"}
	stats := portRequest{port: 15000, method: "get", path: "/stats"}
	for _, tc := range []struct {
		name       string
		pod        fakePod
		request    portRequest
		own, ports []string // requests besides those for the role
		out, notes string
		err        string
		after      time.Duration
	}{
		{name: "its own agent", request: drain, own: []string{"POST /status/drain x"}, out: "ok\n",
			pod: fakePod{own: fakeAgent{replies: map[string]reply{control.RolePath: role("serving"), "/status/drain": {code: 200, body: "ok\n"}}}}},
		{name: "its own Envoy, draining", request: stats, own: []string{"GET /admin/stats"}, out: "a: 1\n",
			pod: fakePod{own: fakeAgent{replies: map[string]reply{control.RolePath: role("draining"), "/admin/stats": {code: 200, body: "a: 1\n"}}}}},
		{name: "not found is no error", request: stats, own: []string{"GET /admin/stats"}, out: "404 page not found",
			pod: fakePod{own: fakeAgent{replies: map[string]reply{control.RolePath: role("serving")}}}},
		{name: "an error of the agent's", request: drain, own: []string{"POST /status/drain x"}, out: "no", err: "POST /drain: HTTP status code 500",
			pod: fakePod{own: fakeAgent{replies: map[string]reply{control.RolePath: role("serving"), "/status/drain": {code: 500, body: "no"}}}}},
		{name: "a standby", request: drain, notes: "pilot-agent: POST /drain was not sent: this container's agent stands by, the pod's other container serves\n",
			pod: fakePod{own: fakeAgent{replies: map[string]reply{control.RolePath: role("standby"), "/status/drain": {code: 200}}}}},
		{name: "an old agent", request: drain, own: []string{"POST /status/drain x"},
			pod: fakePod{own: fakeAgent{replies: map[string]reply{"/status/drain": {code: 200}}}}},
		{name: "a role that cannot be learnt", request: drain, err: "send POST /drain: ask the agent for /role: HTTP status code 500: oops",
			pod: fakePod{own: fakeAgent{replies: map[string]reply{control.RolePath: {code: 500, body: "oops"}, "/status/drain": {code: 200}}}}},
		{name: "one container without an agent", request: drain, ports: []string{"POST /drain x"}, out: "ok",
			pod: fakePod{own: fakeAgent{absent: control.ErrNoAgent}, ports: fakeAgent{replies: map[string]reply{"/drain": {code: 200, body: "ok"}}}}},
		{name: "an idle container without an agent", request: drain, err: "send POST /drain: " + errForeign.Error(), after: agentPatience,
			pod: fakePod{own: fakeAgent{absent: control.ErrNoAgent}, foreign: errForeign, ports: fakeAgent{replies: map[string]reply{"/drain": {code: 200}}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out, notes bytes.Buffer
				start := time.Now()
				err := tc.pod.container().request(t.Context(), tc.request, &out, &notes)
				if tc.err == "" && err != nil || tc.err != "" && (err == nil || err.Error() != tc.err) {
					t.Errorf("error %v\n want %s", err, tc.err)
				}
				if out.String() != tc.out || notes.String() != tc.notes {
					t.Errorf("out %q, notes %q; want %q and %q", &out, &notes, tc.out, tc.notes)
				}
				own := slices.DeleteFunc(tc.pod.own.asked, func(s string) bool { return s == "GET "+control.RolePath })
				if !slices.Equal(own, tc.own) || !slices.Equal(tc.pod.ports.asked, tc.ports) {
					t.Errorf("its own agent got %q, the ports %q; want %q and %q", own, tc.pod.ports.asked, tc.own, tc.ports)
				}
				if took := time.Since(start); took != tc.after {
					t.Errorf("it took %s, want %s", took, tc.after)
				}
			})
		})
	}
}

// TestRequestWaitsForTheAgent starts the agent after the command: one request arrives.
func TestRequestWaitsForTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := fakePod{foreign: errForeign}
		pod.own = fakeAgent{absent: control.ErrNoAgent, started: time.Now().Add(time.Second), replies: map[string]reply{
			control.RolePath: asJSON(t, control.RoleStatus{Role: "starting"}), "/status/drain": {code: 200, body: "ok"},
		}}
		var out, notes bytes.Buffer
		err := pod.container().request(t.Context(), portRequest{port: 15021, method: "POST", path: "/drain"}, &out, &notes)
		if err != nil || out.String() != "ok" || notes.Len() != 0 {
			t.Errorf("%v, %q, %q", err, &out, &notes)
		}
		if last := pod.own.asked[len(pod.own.asked)-1]; last != "POST /status/drain" {
			t.Errorf("the last request was %q", last)
		}
	})
}

// TestRequestIsNotRepeated breaks the answer of a request that was sent: whether it had
// an effect is not known.
func TestRequestIsNotRepeated(t *testing.T) {
	broken := errors.New("connection reset")
	pod := fakePod{own: fakeAgent{replies: map[string]reply{
		control.RolePath: asJSON(t, control.RoleStatus{Role: "serving"}), "/status/quitquitquit": {err: broken},
	}}}
	var out, notes bytes.Buffer
	err := pod.container().request(t.Context(), portRequest{port: 15020, method: "POST", path: "/quitquitquit"}, &out, &notes)
	if !errors.Is(err, broken) || len(pod.own.asked) != 2 {
		t.Errorf("%v, asked %q", err, pod.own.asked)
	}
}
