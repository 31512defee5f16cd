package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"understudy.mesh/iptables/internal/policyrouting"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// transition takes every back end and family from what was found to what is wanted,
// or leaves all of them as they were.
type transition struct {
	found    []backend
	wants    map[int]*saved.Wanted  // by index of found; nothing is wanted elsewhere
	ipv6     bool                   // ::6 on lo
	policies []policyrouting.Policy // of TPROXY
	log      *slog.Logger
}

func (t *transition) want(i int, d *saved.Wanted) {
	if t.wants == nil {
		t.wants = map[int]*saved.Wanted{}
	}
	t.wants[i] = d
}

// make first puts rules where they are wanted and then takes them away elsewhere, so
// that capture, once there, is never missing in between.
func (t transition) make(ctx context.Context) error {
	pipes := &policyrouting.Change{Passthrough: t.ipv6, Policies: t.policies, Marks: t.marks()}
	var tried []int
	err := func() error {
		if err := pipes.Add(); err != nil {
			return err
		}
		for _, i := range t.order() {
			h := t.found[i]
			changes, err := h.Make(ctx, t.wants[i])
			if changes > 0 || err != nil {
				tried = append(tried, i)
			}
			if err != nil {
				return fmt.Errorf("change %v rules: %w", h.Holding().Family, err)
			}
			if changes > 0 {
				t.log.Info("changed capture rules", "with", h.String(), "lines", changes)
			}
		}
		if err := pipes.Remove(); err != nil {
			return err
		}
		if len(tried) == 0 && !pipes.Changed() {
			t.log.Info("capture rules are as wanted already")
		}
		return nil
	}()
	if err != nil {
		return errors.Join(err, t.undo(ctx, tried, pipes))
	}
	return nil
}

// marks returns the marks of TPROXY mode that the rules found here set, and Istio's
// default where there is any trace of Istio or of us.
func (t transition) marks() (out []uint32) {
	for _, h := range t.found {
		if h.Holding().Used == rule.UsedByUs {
			out = append(append(out, DefaultMark), h.Marks()...)
		}
	}
	return out
}

// order returns the indexes of found, those with wanted rules first.
func (t transition) order() []int {
	var first, then []int
	for i := range t.found {
		if _, ok := t.wants[i]; ok {
			first = append(first, i)
		} else {
			then = append(then, i)
		}
	}
	return slices.Concat(first, then)
}

// undo puts back what was there before. It goes on after ctx was cancelled.
func (t transition) undo(ctx context.Context, tried []int, pipes *policyrouting.Change) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	for _, i := range slices.Backward(tried) {
		h := t.found[i]
		if err := h.PutBack(ctx); err != nil {
			errs = append(errs, fmt.Errorf("put the earlier %v rules back: %w", h.Holding().Family, err))
		}
	}
	if err := pipes.Undo(); err != nil {
		errs = append(errs, fmt.Errorf("put addresses and routes back: %w", err))
	}
	return errors.Join(errs...)
}
