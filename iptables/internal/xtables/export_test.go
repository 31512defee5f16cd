package xtables

import (
	"context"

	"understudy.mesh/iptables/internal/saved"
)

// StartUnderLock starts a program as one of iptables' is started.
func StartUnderLock(ctx context.Context, name string, args ...string) (wait func() (string, error)) {
	return start(ctx, nil, name, args...)
}

// Planned is plan.
func Planned(have, want saved.Ruleset) []byte { return plan(have, want) }
