package iptables

import (
	"context"
	"fmt"
	"log/slog"

	"understudy.mesh/iptables/internal/access"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// Apply puts the rules of c into force in the network namespace of the calling thread,
// in place of whatever of ours is there. On an error the state is what it was before.
// It needs NET_ADMIN and, for the legacy back end, NET_RAW. Several at once take turns.
func Apply(ctx context.Context, c Config, log *slog.Logger) error {
	if err := c.Validate(); err != nil {
		return err
	}
	ctx, release, err := access.Acquire(ctx, log)
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	defer release()
	looked := look(ctx, log)
	want := prepare(c) // meanwhile
	found, err := looked()
	if err == nil {
		err = transition{found, kernelRouting, log}.apply(ctx, c, want)
	}
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	return nil
}

// prepare returns the rules of c, ready for the back end where they will go.
func prepare(c Config) *saved.Wanted {
	want := saved.Want(Rules(c))
	if c.Backend != rule.Native {
		want.Ruleset(rule.IPv4)
		want.Ruleset(rule.IPv6)
	}
	return want
}

// Clean removes everything of ours and of Istio's from every back end.
func Clean(ctx context.Context, log *slog.Logger) error {
	ctx, release, err := access.Acquire(ctx, log)
	if err != nil {
		return fmt.Errorf("remove capture rules: %w", err)
	}
	defer release()
	found, err := look(ctx, log)()
	if err == nil {
		err = transition{found, kernelRouting, log}.clean(ctx)
	}
	if err != nil {
		return fmt.Errorf("remove capture rules: %w", err)
	}
	return nil
}
