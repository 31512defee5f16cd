package webhook

import (
	"testing"
	"time"
)

const (
	// manyPods is how many there are, and manyAtOnce the part of them in the middle of a hand-over: as many as 2 % of 20,000.
	manyPods, manyAtOnce, atOnce = 2000, "20%", 400
	// scaleLimit is how long they may take on a machine that does something else besides.
	scaleLimit = 40 * time.Minute
	// bucket is how many requests a second the upgrader sends at most in the long run.
	bucket = 40
	// mostRequests is what the upgrader may ask of the API server in a second, on average, and upgraderMiB how much memory it may have.
	mostRequests, upgraderMiB = 60, 150
)

// TestLongUpgraderAtScale measures the upgrader with a real API server and so many pods that what it may ask in a second is what takes the time.
func TestLongUpgraderAtScale(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	f := newFleet(t, manyPods, 5*time.Second, 5*time.Second)
	e := f.start()
	began := time.Now()
	f.ask(secondImage, `"maxUnavailable": "`+manyAtOnce+`", "canary": []`)
	f.await(scaleLimit, secondImage)
	took := time.Since(began)
	f.mustRun(secondImage)
	requests, most := f.gate.count()
	rate, mib := float64(requests)/took.Seconds(), peakMiB(t, e.Process.Pid)
	each := float64(requests) / manyPods
	t.Logf("%d pods, at most %d in the middle of a hand-over, in %s: %d requests, %.1f a pod and %.1f a second (%d in the second of most), %d MiB of memory at most",
		manyPods, f.mostFlying, took.Round(time.Second), requests, each, rate, most, mib)
	t.Logf("20,000 pods at 2%% would take %s as fast as here, and %s at the %d requests a second that it may send",
		(took * 20000 / manyPods).Round(time.Minute), time.Duration(each*20000/bucket*float64(time.Second)).Round(time.Minute), bucket)
	if rate > mostRequests {
		t.Errorf("%.1f requests a second, more than %d", rate, mostRequests)
	}
	if mib > upgraderMiB {
		t.Errorf("%d MiB of memory, more than %d", mib, upgraderMiB)
	}
	if f.mostFlying > atOnce {
		t.Errorf("%d pods were in the middle of a hand-over at once, more than %d", f.mostFlying, atOnce)
	}
}
