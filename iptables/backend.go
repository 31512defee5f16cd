package iptables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"understudy.mesh/iptables/internal/nftables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/internal/xtables"
	"understudy.mesh/iptables/rule"
)

// backend is one place where rules are held, as it was found before anything was changed:
// one IP version's tables of iptables-legacy or iptables-nft, or our tables of nf_tables.
type backend interface {
	fmt.Stringer // its name in logs
	Holding() rule.Holding
	Saved() []saved.State
	Marks() []uint32 // of TPROXY rules that were found
	// Make makes want all that there is of ours, nothing where it is nil, and returns how
	// many changes that took.
	Make(ctx context.Context, want *saved.Wanted) (changes int, err error)
	// PutBack makes everything of ours as it was found.
	PutBack(ctx context.Context) error
}

// look starts to read the state of every back end and family, side by side, and
// returns what waits for it.
func look(ctx context.Context, log *slog.Logger) func() ([]backend, error) {
	all := xtables.Tools()
	reading := make([]func() (xtables.State, error), len(all))
	for i, t := range all {
		reading[i] = t.Look(ctx)
	}
	return func() ([]backend, error) {
		var out []backend
		var absent, failed []error
		note := func(b backend, what string, err error) {
			switch {
			case err == nil:
				out = append(out, b)
			case errors.Is(err, rule.ErrAbsent):
				log.Debug("skipped a back end", "what", what, "reason", err)
				absent = append(absent, err)
			default:
				failed = append(failed, fmt.Errorf("read the rules of %s: %w", what, err))
			}
		}
		n, nativeErr := nftables.Look(log)
		for i, t := range all {
			s, err := reading[i]()
			note(s, t.Name("save"), err)
		}
		note(n, n.String(), nativeErr)
		if len(out) == 0 {
			failed = append(failed, absent...)
		}
		return out, errors.Join(append(failed, ctx.Err())...)
	}
}

// holdings says who has rules in each of some back ends.
func holdings(found []backend) (out []rule.Holding) {
	for _, b := range found {
		out = append(out, b.Holding())
	}
	return out
}

// Choose returns the back ends that can do what c asks for, best first: where rules of
// ours are already, then where anybody's are (people look into one), then iptables-nft,
// which has transactions and no lock, and at last netlink, which needs nothing installed.
// Istio's way, legacy if it has any rule, makes a second run go elsewhere than the first.
func Choose(c Config, held []rule.Holding) ([]rule.Backend, error) {
	used := map[rule.Backend]rule.Usage{}
	families := map[rule.Backend]rule.Family{}
	var order []rule.Backend
	for _, h := range held {
		if families[h.Backend] == 0 {
			order = append(order, h.Backend)
		}
		families[h.Backend] |= h.Family
		used[h.Backend] = max(used[h.Backend], h.Used)
	}
	needed := rule.IPv4
	if c.IPv6 {
		needed = rule.Both
	}
	order = slices.DeleteFunc(order, func(b rule.Backend) bool {
		return families[b]&needed != needed || c.Backend != rule.Auto && b != c.Backend
	})
	switch {
	case len(order) > 0:
		slices.SortStableFunc(order, func(a, b rule.Backend) int { return int(used[b] - used[a]) })
		return order, nil
	case c.Backend == rule.Native:
		return nil, fmt.Errorf("back end %s wanted: %s", rule.Native, nftables.Missing)
	}
	return nil, fmt.Errorf("no iptables back end for %v, %s wanted: "+
		"install iptables and ip6tables of that kind in this container's image, and load their modules on the node", needed, cmp.Or(c.Backend, "legacy or nft"))
}

// Saved returns the rules of every back end and IP version, whoever made them.
func Saved(ctx context.Context, log *slog.Logger) ([]saved.State, error) {
	found, err := look(ctx, log)()
	var out []saved.State
	for _, b := range found {
		out = append(out, b.Saved()...)
	}
	return out, err
}
