package files

import (
	"sync"
	"testing"

	"understudy.mesh/pkg/mesh"
)

// TestLatestNeverGoesBack: whoever wants the last registry again does not put it over a newer one.
func TestLatestNeverGoesBack(t *testing.T) {
	t.Parallel()
	for range 100_000 {
		l, older, newer := latest{changed: make(chan struct{}, 1)}, new(mesh.Registry), new(mesh.Registry)
		l.again()
		if len(l.changed) != 0 {
			t.Fatal("there is nothing to take")
		}
		l.put(older)
		var both sync.WaitGroup
		both.Go(l.again)
		both.Go(func() { l.put(newer) })
		both.Wait()
		<-l.changed
		if l.registry.Load() != newer {
			t.Fatal("an older registry replaced a newer one")
		}
	}
}
