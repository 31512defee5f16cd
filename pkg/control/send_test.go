package control

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestSend checks whom a request reaches, and whom it does not.
func TestSend(t *testing.T) {
	role := func(name string) reply { return asJSON(t, RoleStatus{Role: name, Settled: true}) }
	drain := Request{Port: 15020, Method: "POST", Path: "/drain", Body: "x"}
	stats := Request{Port: 15000, Method: "get", Path: "/stats"}
	for _, tc := range []struct {
		name       string
		pod        fakePod
		request    Request
		own, ports []string // requests besides those for the role
		out        string
		code       int // 0 is 200
		err        string
		after      time.Duration
	}{
		{name: "its own agent", request: drain, own: []string{"POST /status/drain x"}, out: "ok\n",
			pod: fakePod{own: fakeAgent{replies: map[string]reply{RolePath: role("serving"), "/status/drain": {code: 200, body: "ok\n"}}}}},
		{name: "its own Envoy, draining", request: stats, own: []string{"GET /admin/stats"}, out: "a: 1\n",
			pod: fakePod{own: fakeAgent{replies: map[string]reply{RolePath: role("draining"), "/admin/stats": {code: 200, body: "a: 1\n"}}}}},
		{name: "what is not found", request: stats, code: 404, own: []string{"GET /admin/stats"}, out: "404 page not found",
			pod: fakePod{own: fakeAgent{replies: map[string]reply{RolePath: role("serving")}}}},
		{name: "an error of the agent's", request: drain, own: []string{"POST /status/drain x"}, out: "no", code: 500,
			pod: fakePod{own: fakeAgent{replies: map[string]reply{RolePath: role("serving"), "/status/drain": {code: 500, body: "no"}}}}},
		{name: "a standby", request: drain, err: ErrStandby.Error(),
			pod: fakePod{own: fakeAgent{replies: map[string]reply{RolePath: role("standby"), "/status/drain": {code: 200}}}}},
		{name: "an old agent", request: drain, own: []string{"POST /status/drain x"},
			pod: fakePod{own: fakeAgent{replies: map[string]reply{"/status/drain": {code: 200}}}}},
		{name: "a role that cannot be learnt", request: drain, err: "ask the agent for /role: HTTP status code 500: oops",
			pod: fakePod{own: fakeAgent{replies: map[string]reply{RolePath: {code: 500, body: "oops"}, "/status/drain": {code: 200}}}}},
		{name: "one container without an agent", request: drain, ports: []string{"POST /drain x"}, out: "ok",
			pod: fakePod{own: fakeAgent{absent: ErrNoAgent}, ports: fakeAgent{replies: map[string]reply{"/drain": {code: 200, body: "ok"}}}}},
		{name: "an idle container without an agent", request: drain, err: errForeign.Error(), after: patience,
			pod: fakePod{own: fakeAgent{absent: ErrNoAgent}, foreign: errForeign, ports: fakeAgent{replies: map[string]reply{"/drain": {code: 200}}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				resp, err := tc.pod.client().Send(t.Context(), tc.request)
				if tc.err != "" && (err == nil || err.Error() != tc.err) {
					t.Errorf("error %v\n want %s", err, tc.err)
				}
				if tc.err == "" {
					if err != nil {
						t.Fatal(err)
					}
					if out, _ := io.ReadAll(resp.Body); string(out) != tc.out || resp.StatusCode != cmp.Or(tc.code, 200) {
						t.Errorf("status %d, %q; want %d, %q", resp.StatusCode, out, tc.code, tc.out)
					}
				}
				own := slices.DeleteFunc(tc.pod.own.asked, func(s string) bool { return s == "GET "+RolePath })
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

// TestSendWaitsForTheAgent starts the agent after the command: one request arrives.
func TestSendWaitsForTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := fakePod{foreign: errForeign}
		pod.own = fakeAgent{absent: ErrNoAgent, started: time.Now().Add(time.Second), replies: map[string]reply{
			RolePath: asJSON(t, RoleStatus{Role: "starting"}), "/status/drain": {code: 200, body: "ok"},
		}}
		resp, err := pod.client().Send(t.Context(), Request{Port: 15021, Method: "POST", Path: "/drain"})
		if err != nil {
			t.Fatal(err)
		}
		if out, _ := io.ReadAll(resp.Body); string(out) != "ok" {
			t.Errorf("%q", out)
		}
		if last := pod.own.asked[len(pod.own.asked)-1]; last != "POST /status/drain" {
			t.Errorf("the last request was %q", last)
		}
	})
}

// TestSendIsNotRepeated breaks the answer of a request that was sent: whether it had
// an effect is not known.
func TestSendIsNotRepeated(t *testing.T) {
	broken := errors.New("connection reset")
	pod := fakePod{own: fakeAgent{replies: map[string]reply{
		RolePath: asJSON(t, RoleStatus{Role: "serving"}), "/status/quitquitquit": {err: broken},
	}}}
	_, err := pod.client().Send(t.Context(), Request{Port: 15020, Method: "POST", Path: "/quitquitquit"})
	if !errors.Is(err, broken) || len(pod.own.asked) != 2 {
		t.Errorf("%v, asked %q", err, pod.own.asked)
	}
}

// TestOpenStatusAsksItsOwnAgent has whatever there is at the ports left alone.
func TestOpenStatusAsksItsOwnAgent(t *testing.T) {
	const page = DNSTablePath + "?name=a+b"
	pod := fakePod{own: fakeAgent{replies: map[string]reply{
		RolePath: asJSON(t, RoleStatus{Role: "serving", Settled: true}), StatusPrefix + DNSTablePath: {code: 200, body: "[]"},
	}}}
	answer, err := pod.client().OpenStatus(t.Context(), http.MethodGet, page)
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := io.ReadAll(answer); string(out) != "[]" {
		t.Errorf("%q", out)
	}
	if asked := "GET " + StatusPrefix + page; !slices.Contains(pod.own.asked, asked) || len(pod.ports.asked) > 0 {
		t.Errorf("its own agent got %q, the ports %q; want %q and none", pod.own.asked, pod.ports.asked, asked)
	}
}

// TestOpenStatus checks what is asked where, and what is said when there is no page.
func TestOpenStatus(t *testing.T) {
	const page, path = DNSTablePath, StatusPrefix + DNSTablePath
	const off = "DNS capture is off: set ISTIO_META_DNS_CAPTURE=true"
	serving := asJSON(t, RoleStatus{Role: "serving"})
	answers := func(r reply) fakeAgent {
		return fakeAgent{replies: map[string]reply{RolePath: serving, path: r}}
	}
	absent, nobody := fakeAgent{absent: ErrNoAgent}, fakeAgent{absent: refused}
	for _, tc := range []struct {
		name  string
		pod   fakePod
		ports []string // requests
		want  string   // "" is none
		after time.Duration
	}{
		{name: "no agent", pod: fakePod{own: absent, ports: nobody}, after: patience,
			want: `ask the agent (is it running?): Get "http://localhost:15021/debug/dns/table": dial: connect: connection refused`},
		{name: "no agent here, one in another container", pod: fakePod{own: absent, foreign: errForeign}, after: patience,
			want: "ask the agent (is it running?): " + errForeign.Error()},
		{name: "an agent that only the ports know", pod: fakePod{own: absent, ports: fakeAgent{replies: map[string]reply{page: {code: 200, body: "[]"}}}},
			ports: []string{"GET " + page}},
		{name: "an agent without DNS", pod: fakePod{own: answers(reply{code: 404, body: off + "\n"})}, want: off},
		{name: "an agent that has no such page", pod: fakePod{own: answers(reply{code: 404, body: "404 page not found\n"})}, want: errUnknownPath.Error()},
		{name: "a standby", pod: fakePod{own: fakeAgent{replies: map[string]reply{RolePath: asJSON(t, RoleStatus{Role: "standby"})}}},
			want: "ask the agent (is it running?): " + ErrStandby.Error()},
		{name: "an agent that fails", pod: fakePod{own: answers(reply{code: 500})}, want: "ask the agent for /debug/dns/table: HTTP status code 500"},
		{name: "no connection", pod: fakePod{own: fakeAgent{absent: errors.New("held by uid 1000")}},
			want: `ask the agent (is it running?): ask the agent for /role: Get "http://agent/role": held by uid 1000`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				answer, err := tc.pod.client().OpenStatus(t.Context(), http.MethodGet, page)
				if err == nil {
					answer.Close()
				}
				if tc.want == "" && err != nil || tc.want != "" && (err == nil || err.Error() != tc.want) {
					t.Errorf("error %v\n want %s", err, tc.want)
				}
				if took := time.Since(start); took != tc.after {
					t.Errorf("it took %s, want %s", took, tc.after)
				}
				if tc.ports != nil && !slices.Equal(tc.pod.ports.asked, tc.ports) {
					t.Errorf("the ports got %q, want %q", tc.pod.ports.asked, tc.ports)
				}
			})
		})
	}
}

// TestOpenStatusAtTheOtherPort asks an agent whose status server is where ASM's manifests have it.
func TestOpenStatusAtTheOtherPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := fakePod{own: fakeAgent{absent: ErrNoAgent}}
		c := pod.client()
		c.ports.Transport = byPort{"localhost:15020": &fakeAgent{absent: refused}, "localhost:15021": &fakeAgent{
			replies: map[string]reply{DNSTablePath: {code: 200, body: "[]"}},
		}}
		answer, err := c.OpenStatus(t.Context(), http.MethodGet, DNSTablePath)
		if err != nil {
			t.Fatal(err)
		}
		if out, _ := io.ReadAll(answer); string(out) != "[]" {
			t.Errorf("%q", out)
		}
	})
}

// TestWaitFailed tells the container's own agent, and nobody else.
func TestWaitFailed(t *testing.T) {
	for name, tc := range map[string]struct {
		own  fakeAgent
		told []string
		err  string
	}{
		"its agent":           {fakeAgent{replies: map[string]reply{WaitFailedPath: {code: 200}}}, []string{"POST /wait-failed why"}, ""},
		"one that hears none": {fakeAgent{}, []string{"POST /wait-failed why"}, "tell the agent: HTTP status code 404"},
		"no agent":            {fakeAgent{absent: ErrNoAgent}, []string{"POST /wait-failed why"}, `tell the agent: Post "http://agent/wait-failed": no agent runs in this container`},
	} {
		pod := fakePod{own: tc.own, ports: fakeAgent{replies: map[string]reply{WaitFailedPath: {code: 200}}}}
		err := pod.client().WaitFailed(t.Context(), "why")
		if (err == nil) != (tc.err == "") || err != nil && err.Error() != tc.err {
			t.Errorf("%s: error %v, want %s", name, err, tc.err)
		}
		if !slices.Equal(pod.own.asked, tc.told) || len(pod.ports.asked) > 0 {
			t.Errorf("%s: its own agent got %q, the ports %q", name, pod.own.asked, pod.ports.asked)
		}
	}
}
