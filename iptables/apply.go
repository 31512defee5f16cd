package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"understudy.mesh/iptables/internal/access"
)

// undoTimeout bounds putting things back after a failure: at most one wait for the
// lock (see lockWait) for each family, and some time to work.
const undoTimeout = 90 * time.Second

// Apply makes the rules of c the rules of the network namespace of the calling
// thread, whatever of ours is there now, and returns once they are in force. When
// they are already, it changes nothing. On an error the state is what it was before.
// It needs NET_ADMIN and, for the legacy back end, NET_RAW. Of several at once in one
// namespace, the others wait.
func Apply(ctx context.Context, c Config, log *slog.Logger) error {
	if err := c.Validate(); err != nil {
		return err
	}
	locked, release, err := access.Acquire(ctx, log)
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	defer release()
	ctx = locked
	looked := look(ctx, log)
	d := desire(c) // meanwhile
	found, err := looked()
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	candidates, err := Choose(c, holdings(found))
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	var errs []error
	for i, b := range candidates {
		change := transition{found: found, ipv6: c.IPv6, policies: policies(c), log: log}
		for i, at := range holdings(found) {
			if at.Backend == b {
				change.want(i, d)
			}
		}
		if err = change.make(ctx); err == nil {
			return nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || i == len(candidates)-1 {
			break
		}
		log.Warn("capture rules could not be applied, another back end is next", "failed", b, "next", candidates[i+1], "error", err)
	}
	return fmt.Errorf("apply capture rules: %w", errors.Join(errs...))
}

// Clean removes everything of ours and of Istio's from every back end, whatever
// configuration made it. What is not there is not missed.
func Clean(ctx context.Context, log *slog.Logger) error {
	ctx, release, err := access.Acquire(ctx, log)
	if err != nil {
		return fmt.Errorf("remove capture rules: %w", err)
	}
	defer release()
	found, err := look(ctx, log)()
	if err == nil {
		err = transition{found: found, log: log}.make(ctx)
	}
	if err != nil {
		return fmt.Errorf("remove capture rules: %w", err)
	}
	return nil
}
