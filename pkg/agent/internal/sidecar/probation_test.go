package sidecar

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestWhoIsAskedInAProbation: a newcomer whose Envoy has died sends those who ask it to the generation that serves,
// and has them wait until it is known who that is.
func TestWhoIsAskedInAProbation(t *testing.T) {
	const end = 1500 * time.Millisecond
	for name, tc := range map[string]struct {
		cold      bool           // there is no generation before
		begun     bool           // it answers for the pod
		ends      func(*Sidecar) // after a while; nil: never
		ctx       time.Duration  // how long the one who asks has time; 0: for ever
		elsewhere bool           // the generation before serves
		waits     time.Duration
	}{
		"a cold start":                 {cold: true, begun: true, ends: (*Sidecar).PassProbation},
		"it does not answer yet":       {ends: func(s *Sidecar) { s.probation.fail() }},
		"it passes":                    {begun: true, ends: (*Sidecar).PassProbation, waits: end},
		"it fails":                     {begun: true, ends: func(s *Sidecar) { s.probation.fail() }, waits: end, elsewhere: true},
		"it fails after it has passed": {begun: true, ends: func(s *Sidecar) { s.PassProbation(); s.probation.fail() }, waits: end},
		"whoever asks goes away":       {begun: true, ctx: time.Second, waits: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Sidecar{}
				if !tc.cold {
					s.probation = newProbation()
				}
				if tc.begun {
					s.probation.begin()
				}
				if tc.ends != nil {
					time.AfterFunc(end, func() { tc.ends(s) })
				}
				ctx := t.Context()
				if tc.ctx > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.ctx)
					defer cancel()
				}
				asked := time.Now()
				if got := s.probation.servedElsewhere(ctx); got != tc.elsewhere || time.Since(asked) != tc.waits {
					t.Errorf("served elsewhere: %v, known after %v; want %v after %v", got, time.Since(asked), tc.elsewhere, tc.waits)
				}
			})
		})
	}
}
