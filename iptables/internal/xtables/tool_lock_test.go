package xtables_test

import (
	"testing"
	"time"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/access"
	"understudy.mesh/iptables/internal/xtables"
	"understudy.mesh/tests/capture"
)

// A child that outlives its parent still holds the lock.
func TestBinariesInheritTheLock(t *testing.T) {
	capture.NewPod(t)
	ctx, release, err := access.Acquire(t.Context(), capture.Quiet())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out := xtables.StartUnderLock(ctx, "sh", "-c", "echo still here; exec sleep 0.2")
	release()
	if err := iptables.Apply(t.Context(), capture.Full(), capture.Quiet()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("applied after %v, while a binary was at work under the lock", took)
	}
	if text, err := out(); err != nil || text != "still here\n" {
		t.Error(text, err)
	}
}
