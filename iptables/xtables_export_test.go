package iptables

import "context"

// startUnderLock starts a program as one of iptables' is started.
func startUnderLock(ctx context.Context, name string, args ...string) (wait func() (string, error)) {
	return start(ctx, nil, name, args...)
}

// planned is plan.
func planned(have, want ruleset) []byte { return plan(have, want) }
