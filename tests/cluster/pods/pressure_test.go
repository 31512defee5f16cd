package pods

import (
	"fmt"
	"testing"
	"time"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

// youngest is how old a container must be that a kubelet finds when it starts, or it counts as new and not yet ready
// (kubeletRestartGracePeriod, 10 s).
const youngest = 12 * time.Second

// drain is how long a proxy lets requests in after SIGTERM (terminationDrainDuration).
const drain = 5 * time.Second

// TestNodePressure has the kubelet evict a pod for want of memory, softly, as it does before it must: no request through its
// Service fails as long as the pod drains. Those that fail do so afterwards, since the kubelet tells nobody before that.
func TestNodePressure(t *testing.T) {
	ns := shared.Namespace(t, "pressure")
	ns.Apply(t, join(mesh, client, webService, webPod(t, ns, "victim"),
		webPod(t, ns, "survivor", "spec: {priorityClassName: system-node-critical}"))) // which is not evicted
	ns.Wait(t, podLimit, "condition=Ready", "pod/client", "pod/victim", "pod/survivor")
	lab.Eventually(t, podLimit, "no container is young", func() error {
		for _, pod := range ns.Pods(t, webLabel) {
			if age := time.Since(pod.Containers[app].State.Started); age < youngest {
				return fmt.Errorf("that of %s is %v old", pod.Name, age)
			}
		}
		return nil
	})
	watch, began := ns.Watch(t), time.Now()
	shared.ConfigureKubelet(t, object{
		"evictionSoft":                     object{"memory.available": "1Pi"}, // no machine has so much
		"evictionSoftGracePeriod":          object{"memory.available": "20s"},
		"evictionMaxPodGracePeriod":        30,
		"evictionPressureTransitionPeriod": "1s",
	})
	l := webLoad(t, ns)
	awaitRequests(t, l, enough)
	lab.Eventually(t, podLimit, "the pod ends", func() error {
		if pod := ns.Pod(t, "victim"); pod.Phase == "Running" {
			return fmt.Errorf("%v, %v", pod.Containers[proxy].State, pod.Containers[app].State)
		}
		return nil
	})
	awaitRequests(t, l, enough)
	report := l.Stop(t)
	if len(eventTimes(t, ns, "victim", "Evicted")) == 0 {
		t.Error("no event says that the pod was evicted")
	}
	// The status of an evicted pod's containers is lost at times.
	killing := eventTimes(t, ns, "victim", "Killing")
	if len(killing) == 0 {
		t.Fatal("no event says that the pod's containers were stopped")
	}
	drained := killing[0].Add(drain)
	t.Logf("node pressure, the pod drained until %v at least:\n%v", drained.Local().Format(time.TimeOnly), report)
	for _, flow := range report.Flows {
		if len(flow.Failures) > 0 && flow.Failures[0].Time.Before(drained) {
			t.Errorf("failed while the pod drained: %v", flow.Failures[0])
		}
	}
	mustHaveEndpoints(t, watch, began, 1)
}

// eventTimes is when there were events of a kind of a pod, in whole seconds, rounded down.
func eventTimes(t *testing.T, ns *cluster.Namespace, pod, reason string) (times []time.Time) {
	t.Helper()
	var events struct {
		Items []struct{ FirstTimestamp time.Time }
	}
	ns.Get(t, &events, "events", "--field-selector", "involvedObject.name="+pod+",reason="+reason)
	for _, event := range events.Items {
		times = append(times, event.FirstTimestamp)
	}
	return times
}
