package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"understudy.mesh/iptables/internal/policyrouting"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// routing is what capture needs of a network namespace besides rules: policyrouting.Change.
type routing interface {
	Add() error
	Remove() error
	Changed() bool
	Undo() error
}

// transition takes every back end and family from what was found to what is wanted,
// or leaves all of them as they were.
type transition struct {
	found   []backend
	routing func(policyrouting.Change) routing
	log     *slog.Logger
}

func kernelRouting(c policyrouting.Change) routing { return &c }

// apply tries one back end after the other until one takes the rules of c.
func (t transition) apply(ctx context.Context, c Config, want *saved.Wanted) error {
	candidates, err := Choose(c, holdings(t.found))
	if err != nil {
		return err
	}
	var errs []error
	for i, b := range candidates {
		err := t.make(ctx, b, want, policyrouting.Change{Passthrough: c.IPv6, Policies: policies(c)})
		if err == nil {
			return nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || i == len(candidates)-1 {
			break
		}
		t.log.Warn("capture rules could not be applied, another back end is next", "failed", b, "next", candidates[i+1], "error", err)
	}
	return errors.Join(errs...)
}

// clean takes everything away.
func (t transition) clean(ctx context.Context) error {
	return t.make(ctx, rule.Auto, nil, policyrouting.Change{})
}

// make puts rules where they are wanted before it removes them elsewhere, so that
// capture is never missing in between.
func (t transition) make(ctx context.Context, to rule.Backend, want *saved.Wanted, change policyrouting.Change) error {
	change.Marks = t.marks()
	routes := t.routing(change)
	tried, err := t.change(ctx, to, want, routes)
	if err != nil {
		return errors.Join(err, undo(ctx, tried, routes))
	}
	if len(tried) == 0 && !routes.Changed() {
		t.log.Info("capture rules are as wanted already")
	}
	return nil
}

// change returns the back ends that it has changed, or of which it cannot know.
func (t transition) change(ctx context.Context, to rule.Backend, want *saved.Wanted, routes routing) (tried []backend, err error) {
	if err := routes.Add(); err != nil {
		return nil, err
	}
	for _, b := range t.order(to) {
		if b.Holding().Backend != to {
			want = nil
		}
		changes, err := b.Make(ctx, want)
		if changes > 0 || err != nil {
			tried = append(tried, b)
		}
		if err != nil {
			return tried, fmt.Errorf("change %v rules: %w", b.Holding().Family, err)
		}
		if changes > 0 {
			t.log.Info("changed capture rules", "with", b.String(), "lines", changes)
		}
	}
	return tried, routes.Remove()
}

// marks returns the marks of TPROXY mode that were found, and Istio's default.
func (t transition) marks() (out []uint32) {
	for _, b := range t.found {
		if b.Holding().Used == rule.UsedByUs {
			out = append(append(out, DefaultMark), b.Marks()...)
		}
	}
	return out
}

// order returns what was found, one back end first.
func (t transition) order(first rule.Backend) (out []backend) {
	for _, isFirst := range []bool{true, false} {
		for _, b := range t.found {
			if (b.Holding().Backend == first) == isFirst {
				out = append(out, b)
			}
		}
	}
	return out
}

// undoTimeout has room for a wait for the xtables lock in each family, and the work.
const undoTimeout = 90 * time.Second

// undo puts back what was there before. It goes on after ctx was cancelled.
func undo(ctx context.Context, tried []backend, routes routing) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	for _, b := range slices.Backward(tried) {
		if err := b.PutBack(ctx); err != nil {
			errs = append(errs, fmt.Errorf("put the earlier %v rules back: %w", b.Holding().Family, err))
		}
	}
	if err := routes.Undo(); err != nil {
		errs = append(errs, fmt.Errorf("put addresses and routes back: %w", err))
	}
	return errors.Join(errs...)
}
