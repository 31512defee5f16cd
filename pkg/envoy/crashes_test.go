package envoy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"understudy.mesh/pkg/status"
)

func TestCrashesBackOff(t *testing.T) {
	const ms = time.Millisecond
	for name, tc := range map[string]struct{ served, want []time.Duration }{
		"one that served long":      {[]time.Duration{steadyLife, time.Hour}, []time.Duration{0, 0}},
		"one that never served":     {make([]time.Duration, 7), []time.Duration{200 * ms, 400 * ms, 800 * ms, 1600 * ms, lastBackOff, lastBackOff, lastBackOff}},
		"one that serves a moment":  {[]time.Duration{steadyLife - 1, time.Second}, []time.Duration{200 * ms, 400 * ms}},
		"one that recovers between": {[]time.Duration{0, 0, steadyLife, 0}, []time.Duration{200 * ms, 400 * ms, 0, 200 * ms}},
	} {
		var c crashes
		var got []time.Duration
		for _, served := range tc.served {
			got = append(got, c.died(time.Now(), served))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: pauses %v, want %v", name, got, tc.want)
		}
	}
}

// TestCrashesLoop: when Envoy ends too often, from when on it does not, and when that is hopeless.
func TestCrashesLoop(t *testing.T) {
	start := time.Now()
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	var c crashes
	for i, step := range []struct {
		death int // at that second
		calm  int // the loop is over so many later; 0: there is none
		since int // when it began
	}{
		{0, 0, 0}, {30, 0, 0}, {60, 0, 0}, // a minute apart is not within a minute
		{61, 29, 61}, {85, 35, 61}, // once begun, it goes on while the last ones are near
		{500, 0, 0}, {501, 0, 0}, {502, 58, 502}, // another one
	} {
		c.died(at(step.death), 0)
		if got := c.calmIn(at(step.death)); got != time.Duration(step.calm)*time.Second {
			t.Errorf("death %d: calm in %v, want %d s", i, got, step.calm)
		}
		if step.calm > 0 && !c.since.Equal(at(step.since)) {
			t.Errorf("death %d: in a loop since %v, want %d s", i, c.since.Sub(start), step.since)
		}
	}
	c = crashes{}
	for s := 0; s <= 700; s += 19 { // four a minute, for ever
		c.died(at(s), 15*time.Second)
		if want := s >= 2*19+600; c.hopeless(at(s)) != want {
			t.Errorf("after %d s: hopeless %v, want %v", s, c.hopeless(at(s)), want)
		}
	}
}

// crashing is a supervisor of an Envoy that served once and since ends at once with status.
func crashing(t *testing.T, path string, args ...string) *Supervisor {
	s := newSupervisor(&statsAdmin{path: t.TempDir() + "/none"}, path, args...)
	s.served.Add(1)
	readiness(s).Done(taskEnvoy)
	return s
}

func pendingReason(r *status.Readiness, task string) string {
	_, pending := r.Check()
	for _, p := range pending {
		if p.Task == task {
			return p.Reason
		}
	}
	return ""
}

func TestCrashLoopEndsTheAgent(t *testing.T) {
	for name, tc := range map[string]struct {
		path   string
		args   []string
		status int
	}{
		"that fails":            {"/bin/sh", []string{"-c", "exit 127"}, 127},
		"that is content":       {"/bin/true", nil, 1}, // a stop that nobody asked for is no success
		"that cannot be forked": {"/nonexistent/envoy", nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := crashing(t, tc.path, tc.args...)
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				done := make(chan error, 1)
				go func() { done <- s.Run(t.Context()) }()
				<-time.After(2 * time.Second)
				if n := s.restarts.Load(); n < loopDeaths || n > 5 {
					t.Errorf("%d Envoys were started in 2 s", n)
				}
				if reason := pendingReason(readiness(s), taskCrashes); !strings.Contains(reason, "3 times within 1m0s") {
					t.Errorf("%d deaths, and readiness says %q", s.restarts.Load(), reason)
				}
				err := <-done
				if exit := new(ExitError); !errors.As(err, &exit) || exit.Status != tc.status {
					t.Errorf("got %v, want an ExitError with %d", err, tc.status)
				}
				if took := time.Since(began); took < loopPatience || took > loopPatience+2*lastBackOff {
					t.Errorf("the agent ended after %v, want %v", took, loopPatience)
				}
			})
		})
	}
}

func TestStopInACrashLoop(t *testing.T) {
	s := crashing(t, "/bin/false")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		<-time.After(time.Minute)
		s.Release()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("a stop that was asked for: %v", err)
		}
	})
}

// TestCrashLoopTurnsUnready: also while Envoy serves between two deaths.
func TestCrashLoopTurnsUnready(t *testing.T) {
	t.Parallel()
	s := newSupervisor(newStatsAdmin(t, liveStats), "/bin/sleep", "1000")
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	for life := int64(1); life <= loopDeaths; life++ {
		waitFor(t, "Envoy to serve and the agent to be ready", func() bool {
			ready, _ := readiness(s).Check()
			return s.served.Load() == life && ready
		})
		if err := syscall.Kill(s.Current().pid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the last one to serve", func() bool { return s.served.Load() == loopDeaths+1 && pendingReason(readiness(s), taskEnvoy) == "" })
	if ready, _ := readiness(s).Check(); ready || pendingReason(readiness(s), taskCrashes) == "" {
		t.Errorf("ready %v after %d deaths, because of %q", ready, loopDeaths, pendingReason(readiness(s), taskCrashes))
	}
	s.Stop()
	if err := <-done; err != nil {
		t.Fatalf("run: %v", err)
	}
}

func TestCalmDown(t *testing.T) {
	s := crashing(t, "/bin/false")
	told := 0
	s.cfg.Serves = func() { told++ }
	synctest.Test(t, func(t *testing.T) {
		var lives crashes
		for range loopDeaths {
			if _, err := s.mourn(t.Context(), &lives, death{how: "exit status 3"}); err != nil {
				t.Fatal(err)
			}
		}
		readiness(s).Done(taskEnvoy)
		began := time.Now()
		s.calmDown(t.Context(), &lives)
		if ready, _ := readiness(s).Check(); !ready || told != 1 || time.Since(began) != loopTime {
			t.Errorf("after %v: ready %v, told %d times", time.Since(began), ready, told)
		}
	})
}
