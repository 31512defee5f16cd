package files

import (
	"sync/atomic"

	"understudy.mesh/pkg/mesh"
)

// latest holds the newest registry; what was not taken yet is replaced.
type latest struct {
	registry atomic.Pointer[mesh.Registry]
	changed  chan struct{} // holds a token when the registry is to be taken
}

func (l *latest) put(r *mesh.Registry) {
	l.registry.Store(r)
	l.again()
}

// again has the registry taken once more, if there is one.
func (l *latest) again() {
	if l.registry.Load() == nil {
		return
	}
	select {
	case l.changed <- struct{}{}:
	default:
	}
}
