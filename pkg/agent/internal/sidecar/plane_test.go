package sidecar

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestNothingIsPublishedWhileSuspended: what a change takes to come into force is waited for; it would change what
// the successor was told.
func TestNothingIsPublishedWhileSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lastChange = 3 * time.Second
		began, running := 0, 0
		p := publisher{publish: func(ctx context.Context) {
			began++
			running++
			<-ctx.Done()
			time.Sleep(lastChange)
			running--
		}}
		p.suspend() // there is nothing yet
		for i := range 2 {
			p.begin(t.Context())
			synctest.Wait()
			if began != i+1 || running != 1 {
				t.Errorf("%d begun, %d run; want %d and 1", began, running, i+1)
			}
			suspended := time.Now()
			p.suspend()
			if took := time.Since(suspended); running != 0 || took != lastChange {
				t.Errorf("%d run after a suspend of %v, want none after %v", running, took, lastChange)
			}
		}
		p.suspend() // a second time
	})
}
