package agent

import (
	"sync"
	"testing"

	"understudy.mesh/pkg/mesh"
)

// TestMailboxNeverGoesBack: whoever wants the last registry again does not put it over a newer one.
func TestMailboxNeverGoesBack(t *testing.T) {
	t.Parallel()
	for range 100_000 {
		m, older, newer := newMailbox(), new(mesh.Registry), new(mesh.Registry)
		m.put(older)
		var both sync.WaitGroup
		both.Go(m.again)
		both.Go(func() { m.put(newer) })
		both.Wait()
		if got := <-m.ch; got != newer {
			t.Fatal("an older registry replaced a newer one")
		}
	}
}
