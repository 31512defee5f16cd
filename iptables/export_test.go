package iptables

import (
	"context"
	"log/slog"

	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// LookNow is look, without a log.
func LookNow(ctx context.Context) ([]backend, error) {
	return look(ctx, slog.New(slog.DiscardHandler))()
}

// ApplyRules is what Apply does, with rules that no configuration has.
func ApplyRules(ctx context.Context, name rule.Backend, rules []rule.Rule) error {
	found, err := LookNow(ctx)
	if err != nil {
		return err
	}
	change := transition{found: found, ipv6: true, log: slog.New(slog.DiscardHandler)}
	for i, at := range holdings(found) {
		if at.Backend == name {
			change.want(i, saved.Want(rules))
		}
	}
	return change.make(ctx)
}
