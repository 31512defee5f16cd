package webhook

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/tests/lab"
)

const (
	// manyPods is how many there are, and manyAtOnce the part of them in the middle of a hand-over: as many as 2 % of 20,000.
	manyPods, manyAtOnce, atOnce = 2000, "20%", 400
	// scaleLimit is how long they may take on a machine that does something else besides.
	scaleLimit = 40 * time.Minute
	// bucket is how many requests a second the upgrader sends at most in the long run.
	bucket = 50
	// mostPods is how many an upgrade may have, and mostDone how many of them are upgraded to see what that costs.
	mostPods, mostDone = 20000, 1000
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
	t.Logf("requests: %v", f.gate.kinds)
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

// TestLongUpgraderMemory measures the memory of the upgrader with twenty thousand pods on a real API server, each of which has been upgraded before, so
// that all is known of it that ever is.
func TestLongUpgraderMemory(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	f := newFleet(t, mostPods, time.Second, time.Second, upgradedBefore)
	e := f.start()
	f.ask(secondImage, `"observe": "1s", "maxUnavailable": "2%", "canary": []`)
	lab.Eventually(t, scaleLimit, "some pods are upgraded", func() error {
		if s := f.status(); s.Pods.Done < mostDone || s.Pods.Total != mostPods || s.Pods.Held > 0 || s.Pods.Failed > 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	mib := peakMiB(t, e.Process.Pid)
	t.Logf("%d pods: at most %d MiB", mostPods, mib)
	if mib > upgraderMiB {
		t.Errorf("%d MiB of memory, more than %d", mib, upgraderMiB)
	}
}

// upgradedBefore gives a pod what an upgrade an hour ago has left.
func upgradedBefore(pod *corev1.Pod) {
	at := time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
	type object = map[string]any
	text, err := json.Marshal(object{
		"step": "resetting", "run": 0, "slot": "istio-proxy", "version": 1, "new": firstImage, "old": "proxy:v0", "empty": idleImage, "at": at, "restarts": -1,
		"before": object{"inbound": object{"completed": 100, "errors": 1}}, "idle": object{"cpu": "10m", "memory": "16Mi"}, "injected": "proxy:v0",
		"starts": []object{{"slot": "istio-proxy", "image": firstImage, "at": at}, {"slot": "istio-proxy-2", "image": idleImage, "at": at}},
	})
	if err != nil {
		panic(err) // numbers, texts and times can always be written
	}
	pod.Annotations["upgrade.understudy.mesh/state"] = string(text)
}
