package rollout

import (
	"strings"
	"testing"
	"time"

	"understudy.mesh/pkg/contract"
)

func answers(completed, errors uint64) contract.Answers {
	return contract.Answers{Completed: completed, Errors: errors}
}

// TestWorse: what counts as a clearly higher share of 5xx.
func TestWorse(t *testing.T) {
	for name, tc := range map[string]struct {
		now, old, before contract.Answers
		want             string
	}{
		"no errors":                            {answers(1000, 0), answers(1000, 0), answers(900, 0), ""},
		"every request fails":                  {answers(5, 5), answers(1000, 0), answers(900, 0), "5 of 5 requests were answered with 5xx by its new proxy, 100.0%; by the old one 0.0%"},
		"a few errors in little traffic":       {answers(4, 4), answers(1000, 0), answers(900, 0), ""},
		"a few errors in much traffic":         {answers(1000, 9), answers(1000, 0), answers(900, 0), ""},
		"one in fifty":                         {answers(1000, 20), answers(1000, 0), answers(900, 0), "20 of 1000 requests were answered with 5xx by its new proxy, 2.0%; by the old one 0.0%"},
		"as the old one":                       {answers(100, 50), answers(1000, 500), answers(900, 450), ""},
		"twice as many":                        {answers(1000, 100), answers(10000, 500), answers(9000, 450), ""},
		"three times as many":                  {answers(1000, 150), answers(10000, 500), answers(9000, 450), "150 of 1000 requests were answered with 5xx by its new proxy, 15.0%; by the old one 5.0%"},
		"it failed before the hand-over, late": {answers(100, 90), answers(100_100, 90), answers(100_000, 0), ""},
		"it failed long ago":                   {answers(100, 90), answers(1000, 500), answers(900, 500), ""},
		"too little before to say":             {answers(100, 90), answers(1000, 5), answers(990, 0), "90 of 100 requests were answered with 5xx by its new proxy, 90.0%; by the old one 0.5%"},
		"the old one had no traffic":           {answers(100, 90), answers(19, 0), answers(0, 0), ""},
		"the old one counts anew":              {answers(100, 90), answers(30, 0), answers(1000, 50), "90 of 100 requests were answered with 5xx by its new proxy, 90.0%; by the old one 0.0%"},
		"both counts of it have turned":        {answers(100, 90), answers(1050, 0), answers(1000, 50), "90 of 100 requests were answered with 5xx by its new proxy, 90.0%; by the old one 0.0%"},
	} {
		if got := worse(tc.now, tc.old, tc.before); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestErrorsTurnBack: a pod whose new proxy answers with more 5xx than the old one did goes back to that, whichever engine
// looks, and no further one is begun.
func TestErrorsTurnBack(t *testing.T) {
	for name, tc := range map[string]struct {
		requests func(f *node, p *fakePod, version int64) contract.Requests
		want     string
	}{
		"inbound, from the beginning": {func(_ *node, _ *fakePod, version int64) contract.Requests {
			if version == 1 {
				return contract.Requests{Inbound: answers(5000, 5)}
			}
			return contract.Requests{Inbound: answers(50, 5), Outbound: answers(100_000, 0)}
		}, "inbound: 5 of 50 requests"},
		"outbound, in the last second": {func(f *node, p *fakePod, version int64) contract.Requests {
			if version == 1 || f.served(p) < DefaultObserve {
				return contract.Requests{Outbound: answers(500, 0)}
			}
			return contract.Requests{Outbound: answers(600, 100)}
		}, "outbound: 100 of 600 requests"},
	} {
		for _, replaced := range []bool{false, true} {
			f := newNode(t, 3)
			f.requests = func(p *fakePod, version int64) contract.Requests { return tc.requests(f, p, version) }
			for began := f.now; f.upgrade.Status.Finished == nil; f.tick() {
				if f.now.Sub(began) > time.Hour {
					t.Fatalf("%s: not over: %+v", name, f.upgrade.Status)
				}
				if plan := f.step(); replaced && len(plan.Writes) > 0 {
					f.engine = New()
				}
			}
			f.images(oldImage, emptyImage)
			if s := f.upgrade.Status; s.Phase != Stopped || len(s.Failed) != 1 || !strings.Contains(s.Failed[0].Reason, tc.want) || f.unreadyEver > 0 {
				t.Errorf("%s: %+v, unready %d times", name, s, f.unreadyEver)
			}
		}
	}
}

// TestErrorsAsBefore: a pod that always answers with 5xx, or whose application has begun to before the hand-over, is upgraded.
func TestErrorsAsBefore(t *testing.T) {
	f := newNode(t, 3)
	f.requests = func(p *fakePod, version int64) contract.Requests {
		switch {
		case version > 1:
			return contract.Requests{Inbound: answers(1000, 800), Outbound: answers(100, 30)}
		case p.version == 1 && len(p.due) == 0: // it was not begun yet
			return contract.Requests{Inbound: answers(100_000, 0), Outbound: answers(100, 30)}
		}
		return contract.Requests{Inbound: answers(100_030, 24), Outbound: answers(100, 30)}
	}
	f.run(time.Hour)
	f.images(newImage, emptyImage)
}
