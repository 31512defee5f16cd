package iptables

import (
	"context"
	"log/slog"
)

// lookNow is look, without a log.
func lookNow(ctx context.Context) ([]backend, error) {
	return look(ctx, slog.New(slog.DiscardHandler))()
}

// applyRules is what Apply does, with rules that no configuration has.
func applyRules(ctx context.Context, name Backend, rules []Rule) error {
	found, err := lookNow(ctx)
	if err != nil {
		return err
	}
	change := transition{found: found, ipv6: true, log: slog.New(slog.DiscardHandler)}
	for i, at := range holdings(found) {
		if at.Backend == name {
			change.want(i, desireRules(rules))
		}
	}
	return change.make(ctx)
}
