package envoy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPulse(t *testing.T) {
	idle := func(int) time.Duration { return 0 }
	works := func(second int) time.Duration { return time.Duration(second) * clock }
	never := func(int) bool { return false }
	for name, tc := range map[string]struct {
		answers, starved func(second int) bool
		cpu              func(second int) time.Duration
		unknown, runs    bool // nothing is known of the thread; it would run
		late             int  // seconds, of each tick, beyond the one
		want             int  // the second at which it hangs; 0: never, in five minutes
	}{
		"healthy":               {answers: func(int) bool { return true }, cpu: idle},
		"stopped":               {cpu: idle, want: 30},
		"busy":                  {cpu: works, want: 120},
		"busy for 20 s":         {cpu: works, answers: func(s int) bool { return s >= 20 }},
		"busy, then stopped":    {cpu: func(s int) time.Duration { return works(min(s, 50)) }, want: 80},
		"works now and then":    {cpu: func(s int) time.Duration { return works(s / 20) }, want: 120},
		"answers now and then":  {cpu: idle, answers: func(s int) bool { return s%29 == 0 }},
		"nothing is known":      {cpu: idle, unknown: true, want: 120},
		"waits for a processor": {cpu: idle, runs: true},
		"spins":                 {cpu: works, runs: true, want: 120},
		"starved":               {cpu: idle, starved: func(int) bool { return true }},
		"starved in between":    {cpu: idle, starved: func(s int) bool { return s > 10 && s <= 50 }, want: 70},
		"a late timer":          {cpu: idle, late: 2},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.answers == nil {
				tc.answers = never
			}
			if tc.starved == nil {
				tc.starved = never
			}
			now := time.Now()
			p := pulse{last: now}
			for second := 1; second <= 300; second++ {
				now = now.Add(time.Duration(1+tc.late) * time.Second)
				b := beat{now: now, answered: tc.answers(second), thread: thread{time: tc.cpu(second), runnable: tc.runs}, known: !tc.unknown, starved: tc.starved(second)}
				hung := p.tick(b)
				if want := tc.want > 0 && second >= tc.want; (hung != "") != want {
					t.Fatalf("after %d s: %q, want it to hang: %v", second, hung, want)
				}
			}
		})
	}
}

// clock is the unit in which a thread's time grows in these tests.
const clock = 10 * time.Millisecond

// TestWatch: one question at a time, and who is told when.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		after := func() time.Duration { return time.Since(began) }
		open, asked := 0, 0
		var hung, well []time.Duration
		w := watch{
			ask: func(ctx context.Context) error {
				open++
				asked++
				defer func() { open-- }()
				if open > 1 {
					t.Error("two questions at a time")
				}
				switch {
				case after() < 10*time.Second:
					return nil
				case after() < 20*time.Second:
					return errors.New("no admin") // and no answer
				case after() < 90*time.Second: // none of the questions from now on, until it goes on
					select {
					case <-time.After(90*time.Second - after()):
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				<-ctx.Done()
				return ctx.Err()
			},
			thread: func() (thread, error) { return thread{}, nil }, starved: func() bool { return false },
			hung: func(string) { hung = append(hung, after()) }, well: func() { well = append(well, after()) },
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		w.run(ctx)
		if len(hung) == 0 || hung[0] < 39*time.Second || hung[0] > 42*time.Second {
			t.Errorf("it hung at %v, want 30 s after 10 s", hung)
		}
		if len(well) != 1 || well[0] != 90*time.Second {
			t.Errorf("it was well again at %v, want 90 s", well)
		}
		if asked < 20 || asked > 25 || open != 0 {
			t.Errorf("%d questions, %d of them open", asked, open)
		}
	})
}

func TestPressure(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "memory")
	p := pressure{files: []string{filepath.Join(dir, "missing"), file}}
	now := time.Now()
	for i, step := range []struct {
		after time.Duration
		full  string
		want  bool
	}{
		{0, "900000000", false}, // the first look compares with nothing
		{time.Second, "900500000", true},
		{time.Second, "900900000", false},
		{time.Second, "901900000", true},
		{time.Minute, "999900000", false}, // of which nobody knows when it was
		{time.Second, "garbage", false},
	} {
		now = now.Add(step.after)
		text := "some avg10=99.00 avg60=99.00 avg300=99.00 total=99999999999\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=" + step.full + "\n"
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := p.starved(now); got != step.want {
			t.Errorf("step %d: starved %v, want %v", i, got, step.want)
		}
	}
}

// TestHungEnvoy: an Envoy of which nobody hears anything, and what is done about it.
func TestHungEnvoy(t *testing.T) {
	for name, restart := range map[string]bool{"report": false, "restart": true} {
		t.Run(name, func(t *testing.T) {
			s := crashing(t, "/bin/sleep", "1000") // its admin is not there
			s.cfg.RestartHung = restart
			i, err := s.launcher.start()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { i.kill(); <-i.cleared }()
			s.process = i
			// Time flies in the bubble: it must not still be on its way to sleep.
			asleep := 0
			waitFor(t, "it to sleep", func() bool {
				if thread, err := i.mainThread(); err != nil || thread.runnable {
					asleep = 0
				}
				asleep++
				return asleep == 50
			})
			ctx, cancel := context.WithCancel(t.Context())
			synctest.Test(t, func(t *testing.T) {
				go s.takePulse(ctx, i)
				<-time.After(29 * time.Second)
				synctest.Wait()
				if ready, _ := readiness(s).Check(); !ready {
					t.Error("unready too soon")
				}
				<-time.After(5 * time.Second)
				synctest.Wait()
				if reason := pendingReason(readiness(s), taskEnvoy); !strings.Contains(reason, "hangs") {
					t.Errorf("readiness says %q", reason)
				}
				cancel()
				synctest.Wait()
			})
			if restart {
				<-i.Done()
				if !strings.Contains(s.ended, "hangs") { // not for want of memory, as after another SIGKILL
					t.Errorf("it was ended because of %q", s.ended)
				}
			} else if i.ended() {
				t.Error("it was ended")
			}
		})
	}
}
