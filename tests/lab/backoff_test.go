package lab

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestBackOff follows the kubelet's count of starts by a clock that jumps.
func TestBackOff(t *testing.T) {
	const key, other = "istio-proxy-2 proxy:v2", "istio-proxy-2 proxy:v3"
	for _, tc := range []struct {
		name string
		max  time.Duration
		// A container that runs for so long ends, and is to be started again: after how long is it?
		runs, waits []time.Duration
	}{
		{"that ends at once", maxRestartPeriod, make([]time.Duration, 8), seconds(0, 10, 20, 40, 80, 160, 300, 300)},
		{"that runs for a while", maxRestartPeriod, seconds(60, 60, 60, 60), seconds(0, 10, 20, 40)},
		{"that runs for ten minutes", maxRestartPeriod, seconds(0, 0, 600, 601, 0), seconds(0, 10, 20, 0, 10)},
		{"with a lower maximum", 25 * time.Second, make([]time.Duration, 5), seconds(0, 10, 20, 25, 25)},
		{"with quick restarts", QuickRestarts, make([]time.Duration, 4), seconds(0, 1, 1, 1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBackOff(tc.max)
				for i, runs := range tc.runs {
					<-time.After(runs)
					ended := time.Now()
					if waited := awaitStart(b, key, ended); waited != tc.waits[i] {
						t.Errorf("restart %d, after %v, waited %v, want %v", i+1, runs, waited, tc.waits[i])
					}
				}
				if waited := awaitStart(b, other, time.Now()); waited != 0 {
					t.Errorf("another image waited %v", waited)
				}
			})
		})
	}
}

// awaitStart tries until the container may be started, as often as the kubelet does.
func awaitStart(b *backOff, key string, ended time.Time) (waited time.Duration) {
	for {
		wait, ok := b.start(key, ended)
		if ok {
			return time.Since(ended)
		}
		<-time.After(wait)
	}
}

func seconds(all ...time.Duration) []time.Duration {
	for i := range all {
		all[i] *= time.Second
	}
	return all
}
