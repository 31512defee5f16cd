package rollout

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// requests are a slot's, of what the kubelet can change in place. In JSON they are as a pod's spec has them. As a ResourceList they would be
// most of what is kept of a pod.
type requests struct {
	cpu, memory int64 // thousandths of a processor, bytes; 0: none
}

func requestsOf(l corev1.ResourceList) requests {
	return requests{l.Cpu().MilliValue(), l.Memory().Value()}
}

// lower reports whether one of some requests is less than the other's. One that is missing is not.
func (r requests) lower(than requests) bool {
	return r.cpu > 0 && r.cpu < than.cpu || r.memory > 0 && r.memory < than.memory
}

// MarshalJSON writes them as a ResourceList.
func (r requests) MarshalJSON() ([]byte, error) {
	l := corev1.ResourceList{}
	if r.cpu > 0 {
		l[corev1.ResourceCPU] = *resource.NewMilliQuantity(r.cpu, resource.DecimalSI)
	}
	if r.memory > 0 {
		l[corev1.ResourceMemory] = *resource.NewQuantity(r.memory, resource.BinarySI)
	}
	return json.Marshal(l)
}

// UnmarshalJSON reads them of a ResourceList.
func (r *requests) UnmarshalJSON(text []byte) error {
	var l corev1.ResourceList
	if err := json.Unmarshal(text, &l); err != nil {
		return err
	}
	*r = requestsOf(l)
	return nil
}
