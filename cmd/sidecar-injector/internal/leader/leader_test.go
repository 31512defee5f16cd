package leader

import (
	"context"
	"testing"
)

// TestTermEnds: no work goes on after its term, whichever begins first.
func TestTermEnds(t *testing.T) {
	for range 100 {
		began, working := make(chan struct{}), false
		term := term{work: func(ctx context.Context) { working = true; close(began); <-ctx.Done(); working = false }}
		ctx, cancel := context.WithCancel(t.Context())
		go term.begin(ctx)
		cancel()
		term.end()
		select {
		case <-began:
			if working {
				t.Fatal("it works after its term")
			}
		default:
		}
	}
}
