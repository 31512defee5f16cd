package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy.mesh/pkg/control"
)

// The agents that the tests below ask, as they answer one after the other.
var (
	starting = control.RoleStatus{Role: "starting", Reason: "Envoy has no listeners yet", UpgradeDrainSeconds: 100}
	failed   = control.RoleStatus{Role: "starting", Reason: "the take-over failed: Envoy exited with 1", UpgradeDrainSeconds: 100}
	serving  = control.RoleStatus{Role: "serving", Settled: true, Reason: "generation a drains: 3 connections", UpgradeDrainSeconds: 100}
	alone    = control.RoleStatus{Role: "serving", Settled: true, Drained: true, UpgradeDrainSeconds: 100}
	standby  = control.RoleStatus{Role: "standby", Settled: true, UpgradeDrainSeconds: 100}
)

// step is what is answered from a second of the wait on: a status, or an error, or
// nothing until the question is given up.
type step struct {
	from   int
	status control.RoleStatus
	err    error
	silent bool
}

func TestWait(t *testing.T) {
	waiting := step{status: starting}
	for _, tc := range []struct {
		name    string
		steps   []step
		drained bool
		given   int // --timeoutSeconds
		stop    int // second at which the command is interrupted
		err     string
		warning string
		after   int // seconds that it took
	}{
		{name: "serving", steps: []step{{status: serving}}},
		{name: "standby", steps: []step{{status: standby}}},
		{name: "serving after a while", steps: []step{waiting, {from: 90, status: serving}}, after: 90},
		{name: "never: 60 s and the drain", steps: []step{waiting, {from: 20, status: failed}}, after: 160,
			err: "timeout waiting for Envoy proxy to become ready. Last error: the agent is starting: the take-over failed: Envoy exited with 1"},
		{name: "never: a time-out that was given", steps: []step{waiting}, given: 5, after: 5,
			err: "timeout waiting for Envoy proxy to become ready. Last error: the agent is starting: Envoy has no listeners yet"},
		{name: "no agent", steps: []step{{err: control.ErrNoAgent}}, after: 60,
			err: "timeout waiting for Envoy proxy to become ready. Last error: no agent runs in this container"},
		{name: "no agent at first", steps: []step{{err: control.ErrNoAgent}, {from: 59, status: starting}, {from: 150, status: serving}}, after: 150},
		{name: "an agent that says nothing", steps: []step{{silent: true}}, given: 3, after: 3,
			err: "timeout waiting for Envoy proxy to become ready. Last error: context deadline exceeded"},
		{name: "the last reason, not the time-out", steps: []step{waiting, {from: 3, silent: true}}, given: 3, after: 3,
			err: "timeout waiting for Envoy proxy to become ready. Last error: the agent is starting: Envoy has no listeners yet"},
		{name: "no role, no reason", steps: []step{{}}, given: 1, after: 1,
			err: "timeout waiting for Envoy proxy to become ready. Last error: the agent is in no role: it gives no reason"},
		{name: "interrupted", steps: []step{waiting}, stop: 7, after: 7,
			err: "interrupted while waiting for Envoy proxy to become ready. Last error: the agent is starting: Envoy has no listeners yet"},

		{name: "drained", drained: true, steps: []step{waiting, {from: 10, status: serving}, {from: 30, status: alone}}, after: 30},
		{name: "drained: standby", drained: true, steps: []step{{status: standby}, {from: 12, status: control.RoleStatus{Settled: true, Drained: true}}}, after: 12},
		{name: "drained: late is no failure", drained: true, steps: []step{{status: serving}}, after: 160,
			warning: "timeout waiting for the generation before to end, while this one serves: the agent is serving: generation a drains: 3 connections"},
		{name: "drained: not even serving", drained: true, steps: []step{waiting}, after: 160,
			err: "timeout waiting for Envoy proxy to become ready. Last error: the agent is starting: Envoy has no listeners yet"},
		{name: "drained: silent since", drained: true, given: 20, steps: []step{{status: serving}, {from: 10, silent: true}}, after: 20,
			warning: "timeout waiting for the generation before to end, while this one serves: context deadline exceeded"},
		{name: "drained: gone since", drained: true, given: 20, steps: []step{{status: serving}, {from: 10, err: control.ErrNoAgent}}, after: 20,
			err: "timeout waiting for Envoy proxy to become ready. Last error: no agent runs in this container"},
		{name: "drained: started again since", drained: true, given: 20, steps: []step{{status: serving}, {from: 10, status: failed}}, after: 20,
			err: "timeout waiting for Envoy proxy to become ready. Last error: the agent is starting: the take-over failed: Envoy exited with 1"},
		{name: "drained: interrupted", drained: true, steps: []step{{status: serving}}, stop: 3, after: 3,
			warning: "interrupted while waiting for the generation before to end, while this one serves: the agent is serving: generation a drains: 3 connections"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tc.stop > 0 {
					defer time.AfterFunc(time.Duration(tc.stop)*time.Second, cancel).Stop()
				}
				var warning string
				w := waiter{
					ask: script(tc.steps), drained: tc.drained,
					warn:    func(format string, args ...any) { warning += fmt.Sprintf(format, args...) },
					timeout: startAllowance, extend: tc.given == 0, request: 500 * time.Millisecond, period: 500 * time.Millisecond,
				}
				if tc.given > 0 {
					w.timeout = time.Duration(tc.given) * time.Second
				}
				start := time.Now()
				err := w.wait(ctx)
				if tc.err == "" && err != nil || tc.err != "" && (err == nil || err.Error() != tc.err) {
					t.Errorf("error %v\n want %s", err, tc.err)
				}
				if warning != tc.warning {
					t.Errorf("warning %s\n   want %s", warning, tc.warning)
				}
				if took := time.Since(start); took != time.Duration(tc.after)*time.Second {
					t.Errorf("it took %s, want %d s", took, tc.after)
				}
			})
		})
	}
}

// script answers by the clock.
func script(steps []step) func(context.Context) (control.RoleStatus, error) {
	start := time.Now()
	return func(ctx context.Context) (control.RoleStatus, error) {
		current := steps[0]
		for _, s := range steps {
			if time.Since(start) >= time.Duration(s.from)*time.Second {
				current = s
			}
		}
		if current.silent {
			<-ctx.Done()
			return control.RoleStatus{}, ctx.Err()
		}
		return current.status, current.err
	}
}

// TestAskRole checks whom `wait` asks, and what the answer means: all is what it settles.
func TestAskRole(t *testing.T) {
	const url = "http://localhost:15021/healthz/ready"
	role := func(s control.RoleStatus) map[string]reply { return map[string]reply{control.RolePath: asJSON(t, s)} }
	atPorts := func(code int, body string) fakeAgent {
		return fakeAgent{replies: map[string]reply{"/healthz/ready": {code: code, body: body}}}
	}
	noAgent := fakeAgent{absent: control.ErrNoAgent}
	for _, tc := range []struct {
		name  string
		pod   fakePod
		want  control.RoleStatus
		err   string
		gone  bool // the error is ErrNoAgent
		ports int  // questions to the ports
	}{
		{name: "its own agent, although the ports are ready", pod: fakePod{own: fakeAgent{replies: role(starting)}, ports: atPorts(200, "")}, want: starting},
		{name: "its own agent in standby", pod: fakePod{own: fakeAgent{replies: role(standby)}, ports: atPorts(503, "")}, want: standby},
		{name: "an old agent that is ready", pod: fakePod{own: fakeAgent{replies: map[string]reply{control.StatusPrefix + "/healthz/ready": {code: 200}}}},
			want: control.RoleStatus{Settled: true, Drained: true}},
		{name: "an old agent that is not ready", pod: fakePod{own: fakeAgent{replies: map[string]reply{control.StatusPrefix + "/healthz/ready": {code: 503, body: "no Envoy\n"}}}, ports: atPorts(200, "")},
			err: "HTTP status code 503: no Envoy"},
		{name: "an agent that is wrong inside", pod: fakePod{own: fakeAgent{replies: map[string]reply{control.RolePath: {code: 500, body: "oops"}}}, ports: atPorts(200, "")},
			err: "ask the agent for /role: HTTP status code 500: oops"},
		{name: "an answer that is no JSON", pod: fakePod{own: fakeAgent{replies: map[string]reply{control.RolePath: {code: 200, body: "<html>"}}}},
			err: "read the agent's answer to /role: invalid character '<' looking for beginning of value"},
		{name: "an impostor", pod: fakePod{own: fakeAgent{absent: errors.New("held by uid 1000")}, ports: atPorts(200, "")},
			err: `ask the agent for /role: Get "http://agent/role": held by uid 1000`},
		{name: "one container, no agent, ready", pod: fakePod{own: noAgent, ports: atPorts(200, "")}, want: control.RoleStatus{Settled: true, Drained: true}, ports: 1},
		{name: "one container, no agent, not ready", pod: fakePod{own: noAgent, ports: atPorts(503, "starting")}, ports: 1, gone: true,
			err: "no agent runs in this container; HTTP status code 503: starting"},
		{name: "one container, nobody", pod: fakePod{own: noAgent, ports: fakeAgent{absent: refused}}, ports: 1, gone: true,
			err: `no agent runs in this container; Get "http://localhost:15021/healthz/ready": dial: connect: connection refused`},
		{name: "two containers, the other one serves", pod: fakePod{own: noAgent, ports: atPorts(200, ""), foreign: errForeign}, ports: 1, gone: true,
			err: errForeign.Error()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.pod.container().role(t.Context(), url)
			if tc.err == "" && (err != nil || got != tc.want) {
				t.Errorf("%+v, %v; want %+v", got, err, tc.want)
			}
			if tc.err != "" && (err == nil || err.Error() != tc.err) {
				t.Errorf("error %v\n want %s", err, tc.err)
			}
			if errors.Is(err, control.ErrNoAgent) != tc.gone {
				t.Errorf("%v is ErrNoAgent: %v, want %v", err, !tc.gone, tc.gone)
			}
			if len(tc.pod.ports.asked) != tc.ports {
				t.Errorf("asked the ports %q, want %d questions", tc.pod.ports.asked, tc.ports)
			}
		})
	}
}

// TestNewWaiter checks what the flags make of it.
func TestNewWaiter(t *testing.T) {
	o := waitOptions{timeoutSeconds: 60, requestTimeoutMillis: 500, periodMillis: 250, event: forServing}
	if w := newWaiter(&env{}, o); w.drained || !w.extend || w.timeout != time.Minute || w.request != 500*time.Millisecond || w.period != 250*time.Millisecond {
		t.Errorf("defaults: %+v", w)
	}
	o.timeoutGiven, o.timeoutSeconds, o.event = true, 7, forDrained
	if w := newWaiter(&env{}, o); !w.drained || w.extend || w.timeout != 7*time.Second {
		t.Errorf("given: %+v", w)
	}
}

func TestDrainTimeIsBounded(t *testing.T) {
	for seconds, want := range map[float64]time.Duration{-1: 0, 0: 0, 0.5: 500 * time.Millisecond, 1e300: longestDrain} {
		if got := drainTime(control.RoleStatus{UpgradeDrainSeconds: seconds}); got != want {
			t.Errorf("%g: %s, want %s", seconds, got, want)
		}
	}
}

// TestWaitURL polls the URL that was given, with whatever answers there.
func TestWaitURL(t *testing.T) {
	status, _, stderr := runArgs("wait", "--timeoutSeconds=1", "--periodMillis=100", "--url=http://127.0.0.1:1/ready")
	if status != exitError || !strings.HasPrefix(stderr, `pilot-agent: timeout waiting for Envoy proxy to become ready. Last error: Get "http://127.0.0.1:1/ready"`) {
		t.Errorf("status %d, %q", status, stderr)
	}
}
