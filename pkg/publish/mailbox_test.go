package publish

import (
	"sync"
	"testing"

	"understudy.mesh/pkg/mesh"
)

// TestMailboxNeverGoesBack: whoever wants the last registry again does not put it over a newer one.
func TestMailboxNeverGoesBack(t *testing.T) {
	t.Parallel()
	for range 100_000 {
		m, older, newer := NewMailbox(), new(mesh.Registry), new(mesh.Registry)
		m.Put(older)
		var both sync.WaitGroup
		both.Go(m.Again)
		both.Go(func() { m.Put(newer) })
		both.Wait()
		if got := <-m.C; got != newer {
			t.Fatal("an older registry replaced a newer one")
		}
	}
}
