package agent

import (
	"runtime"
	"sync/atomic"
	"testing"
	"weak"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/sidecar"
)

// TestStandbyGivesMemoryBack: what a generation has served with can be given back when it has drained, or a pod would pay for it
// twice. Nothing refers to it any more at the moment at which that is done.
func TestStandbyGivesMemoryBack(t *testing.T) {
	p := newPod(t)
	var served weak.Pointer[sidecar.Sidecar]
	var serves, gone atomic.Bool
	p.settled = func() {
		if serves.Load() {
			runtime.GC()
			gone.Store(served.Value() == nil)
		}
	}
	one := p.start("one")
	one.becomes(handoff.RoleServing)
	served = weak.Make(one.current())
	serves.Store(true)
	two := p.start("two")
	two.becomes(handoff.RoleServing)
	one.becomes(handoff.RoleStandby)
	waitFor(t, "the sidecar of the standby to be given back", gone.Load)
}
