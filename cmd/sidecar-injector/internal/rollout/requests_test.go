package rollout

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// TestRequests: they are written as they were read, less what the kubelet cannot change in place.
func TestRequests(t *testing.T) {
	l := corev1.ResourceList{"cpu": resource.MustParse("1.5"), "memory": resource.MustParse("64Mi"), "ephemeral-storage": resource.MustParse("1Gi")}
	text, err := json.Marshal(requestsOf(l))
	if err != nil || string(text) != `{"cpu":"1500m","memory":"64Mi"}` {
		t.Errorf("%s, %v", text, err)
	}
	var r requests
	if err := json.Unmarshal(text, &r); err != nil || r != requestsOf(l) {
		t.Errorf("%v, %v", r, err)
	}
	if text, err := json.Marshal(requests{}); err != nil || string(text) != "{}" {
		t.Errorf("none: %s, %v", text, err)
	}
	if err := json.Unmarshal([]byte(`{"cpu": "much"}`), &r); err == nil {
		t.Error("no number, and no error")
	}
	for _, c := range []struct {
		a, b requests
		want bool
	}{
		{requests{cpu: 1, memory: 2}, requests{cpu: 1, memory: 2}, false}, {requests{cpu: 1, memory: 2}, requests{cpu: 2, memory: 1}, true},
		{requests{cpu: 1, memory: 2}, requests{memory: 3}, true}, {requests{memory: 2}, requests{cpu: 1, memory: 2}, false}, {requests{}, requests{cpu: 1}, false},
	} {
		if got := c.a.lower(c.b); got != c.want {
			t.Errorf("%+v is lower than %+v: %v", c.a, c.b, got)
		}
	}
}
