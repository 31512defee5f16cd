package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/control"
)

// The agents that the tests below ask, as they answer one after the other.
var (
	starting = control.RoleStatus{Role: "starting", Reason: "Envoy has no listeners yet", UpgradeDrainSeconds: 100}
	failed   = control.RoleStatus{Role: "starting", Reason: "the take-over failed: Envoy exited with 1", UpgradeDrainSeconds: 100}
	serving  = control.RoleStatus{Role: "serving", Settled: true, Reason: "generation a drains: 3 connections", UpgradeDrainSeconds: 100}
	ended    = control.RoleStatus{Role: "starting", Failed: true, Reason: "Envoy cannot be executed", UpgradeDrainSeconds: 100}
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
		{name: "the agent ends", steps: []step{waiting, {from: 20, status: ended}, {from: 30, status: serving}}, after: 20,
			err: "this container's agent ends, and Envoy proxy does not become ready: Envoy cannot be executed"},
		{name: "the agent ends at once, without a reason", steps: []step{{status: control.RoleStatus{Failed: true}}},
			err: "this container's agent ends, and Envoy proxy does not become ready: it gives no reason"},
		{name: "drained: the agent ends", drained: true, steps: []step{{status: serving}, {from: 10, status: ended}}, after: 10,
			err: "this container's agent ends, and Envoy proxy does not become ready: Envoy cannot be executed"},
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

// TestNewWaiter checks what the flags make of it.
func TestNewWaiter(t *testing.T) {
	o := waitOptions{timeoutSeconds: 60, requestTimeoutMillis: 500, periodMillis: 250, event: forServing}
	if w := newWaiter(&cli.Env{}, o); w.drained || !w.extend || w.timeout != time.Minute || w.request != 500*time.Millisecond || w.period != 250*time.Millisecond {
		t.Errorf("defaults: %+v", w)
	}
	o.timeoutGiven, o.timeoutSeconds, o.event = true, 7, forDrained
	if w := newWaiter(&cli.Env{}, o); !w.drained || w.extend || w.timeout != 7*time.Second {
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
	if status != 1 || !strings.HasPrefix(stderr, `pilot-agent: timeout waiting for Envoy proxy to become ready. Last error: Get "http://127.0.0.1:1/ready"`) {
		t.Errorf("status %d, %q", status, stderr)
	}
}
