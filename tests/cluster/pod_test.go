package cluster

import (
	"encoding/json"
	"testing"
	"time"
)

// samplePod is what kubectl prints of a pod in mid-upgrade, cut to what is read.
const samplePod = `{"metadata":{"name":"nginx","uid":"u1","labels":{"app":"nginx"},"annotations":{"a":"b"},"deletionTimestamp":"2026-01-02T03:04:05Z"},
"status":{"phase":"Running","podIP":"10.78.0.5","conditions":[{"type":"Ready","status":"False"},{"type":"PodScheduled","status":"True"}],
"initContainerStatuses":[{"name":"istio-init","state":{"terminated":{"reason":"Completed","exitCode":0}}}],
"containerStatuses":[
 {"name":"istio-proxy-1","image":"understudy/proxy:v1","containerID":"containerd://c1","ready":true,"started":true,"restartCount":0,"state":{"running":{"startedAt":"2026-01-02T03:00:00Z"}}},
 {"name":"istio-proxy-2","image":"understudy/none:v9","ready":false,"started":false,"restartCount":2,
  "state":{"waiting":{"reason":"ImagePullBackOff","message":"not found"}},
  "lastState":{"terminated":{"reason":"Error","exitCode":1,"message":"Envoy cannot run"}}}],
"ephemeralContainerStatuses":[{"name":"debugger","containerID":"containerd://c9","state":{"running":{}}}]}}`

func TestPodIsRead(t *testing.T) {
	var object podObject
	if err := json.Unmarshal([]byte(samplePod), &object); err != nil {
		t.Fatal(err)
	}
	p := object.pod()
	if p.Name != "nginx" || p.IP != "10.78.0.5" || p.Ready || !p.Deleting || p.Labels["app"] != "nginx" || p.Annotations["a"] != "b" || len(p.Containers) != 4 {
		t.Errorf("%+v", p)
	}
	if c := p.Containers["istio-proxy-1"]; c.ID != "c1" || !c.Ready || !c.Started || c.State.String() != "Running" || c.State.Started.IsZero() {
		t.Errorf("%+v", c)
	}
	c := p.Containers["istio-proxy-2"]
	if c.ID != "" || c.Ready || c.Started || c.Restarts != 2 || c.State.Waiting != "ImagePullBackOff" || c.State.Message != "not found" {
		t.Errorf("%+v", c)
	}
	if c.Last.String() != "Error (exit 1)" || c.Last.Message != "Envoy cannot run" {
		t.Errorf("%+v", c.Last)
	}
	if p.Containers["istio-init"].State.String() != "Completed (exit 0)" || p.Containers["debugger"].ID != "c9" {
		t.Errorf("%+v", p.Containers)
	}
}

func TestUnready(t *testing.T) {
	begin := time.Now()
	w := &Watch{}
	see := func(second int, ready, gone bool) {
		w.pods = append(w.pods, PodAt{At: begin.Add(time.Duration(second) * time.Second), Gone: gone, Pod: Pod{Name: "p", Ready: ready}},
			PodAt{At: begin, Pod: Pod{Name: "another"}})
	}
	see(0, false, false) // not for the first time yet
	see(1, true, false)
	see(2, true, false)
	if spans := w.Unready("p"); len(spans) != 0 {
		t.Errorf("never unready: %v", spans)
	}
	see(3, false, false)
	see(4, false, false)
	see(5, true, false)
	see(6, true, true)
	spans := w.Unready("p")
	if len(spans) != 2 || spans[0][0] != begin.Add(3*time.Second) || spans[0][1] != begin.Add(5*time.Second) || spans[1][0] != begin.Add(6*time.Second) || !spans[1][1].IsZero() {
		t.Errorf("%v", spans)
	}
}

func TestEndpointsAreRead(t *testing.T) {
	w := &Watch{}
	for _, e := range []watchEvent{
		{Type: "ADDED", Object: json.RawMessage(`{"metadata":{"labels":{"kubernetes.io/service-name":"nginx"}},"endpoints":[{"addresses":["1"],"conditions":{"ready":true}},{"addresses":["2"],"conditions":{"ready":false}},{"addresses":["3"]}]}`)},
		{Type: "ADDED", Object: json.RawMessage(`{"metadata":{"labels":{"kubernetes.io/service-name":"other"}}}`)},
		{Type: "DELETED", Object: json.RawMessage(`{"metadata":{"labels":{"kubernetes.io/service-name":"nginx"}},"endpoints":[{"addresses":["1"],"conditions":{"ready":true}}]}`)},
	} {
		if err := w.noteEndpoints(e); err != nil {
			t.Fatal(err)
		}
	}
	got := w.Endpoints("nginx")
	if len(got) != 2 || len(got[0].Ready) != 2 || got[0].Ready[1] != "3" || len(got[0].Unready) != 1 || len(got[1].Ready) != 0 || len(got[1].Unready) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestOpenWithoutCluster(t *testing.T) {
	if c, err := Open(t.TempDir()); err == nil {
		t.Errorf("%v", c)
	}
	if err := Down(t.Context(), Config{Dir: t.TempDir()}); err != nil {
		t.Errorf("the end of none: %v", err)
	}
}
