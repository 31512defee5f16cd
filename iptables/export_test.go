package iptables

import (
	"context"
	"log/slog"

	"understudy.mesh/iptables/internal/policyrouting"
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
	t := transition{found, kernelRouting, slog.New(slog.DiscardHandler)}
	return t.make(ctx, name, saved.Want(rules), policyrouting.Change{Passthrough: true})
}
