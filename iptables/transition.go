package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// transition takes every back end and family from what was found to what is wanted,
// or leaves all of them as they were.
type transition struct {
	holders  []holder
	wants    map[int]*desired // by index of holders; nothing is wanted elsewhere
	ipv6     bool             // ::6 on lo
	policies []policy         // of TPROXY
	log      *slog.Logger
}

func (t *transition) want(i int, d *desired) {
	if t.wants == nil {
		t.wants = map[int]*desired{}
	}
	t.wants[i] = d
}

// make first puts rules where they are wanted and then takes them away elsewhere, so
// that capture, once there, is never missing in between.
func (t transition) make(ctx context.Context) error {
	pipes := &plumbing{passthrough: t.ipv6, policies: t.policies, marks: t.marks()}
	var tried []int
	err := func() error {
		if err := pipes.supply(); err != nil {
			return err
		}
		for _, i := range t.order() {
			h := t.holders[i]
			changes, err := h.make(ctx, t.wants[i])
			if changes > 0 || err != nil {
				tried = append(tried, i)
			}
			if err != nil {
				_, family := h.place()
				return fmt.Errorf("change %v rules: %w", family, err)
			}
			if changes > 0 {
				t.log.Info("changed capture rules", "with", h.String(), "lines", changes)
			}
		}
		if err := pipes.withdraw(); err != nil {
			return err
		}
		if len(tried) == 0 && !pipes.changed() {
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
	for _, h := range t.holders {
		if h.usage() == usedByUs {
			out = append(append(out, DefaultMark), h.marks()...)
		}
	}
	return out
}

// order returns the indexes of holders, those with wanted rules first.
func (t transition) order() []int {
	var first, then []int
	for i := range t.holders {
		if _, ok := t.wants[i]; ok {
			first = append(first, i)
		} else {
			then = append(then, i)
		}
	}
	return slices.Concat(first, then)
}

// undo puts back what was there before. It goes on after ctx was cancelled.
func (t transition) undo(ctx context.Context, tried []int, pipes *plumbing) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	for _, i := range slices.Backward(tried) {
		h := t.holders[i]
		if err := h.putBack(ctx); err != nil {
			_, family := h.place()
			errs = append(errs, fmt.Errorf("put the earlier %v rules back: %w", family, err))
		}
	}
	if err := pipes.restore(); err != nil {
		errs = append(errs, fmt.Errorf("put addresses and routes back: %w", err))
	}
	return errors.Join(errs...)
}

func (s state) place() (Backend, Family) { return s.backend, s.family }

func (s state) usage() usage {
	switch {
	case len(s.ours) > 0:
		return usedByUs
	case s.before.hasRules():
		return usedByOthers
	}
	return unused
}

// String names the program that changes the rules, for logs.
func (s state) String() string { return s.name("restore") }

func (s state) marks() (out []uint32) {
	for _, tab := range s.ours {
		for _, r := range tab.rules {
			if m, ok := r.tproxyMark(); ok {
				out = append(out, m)
			}
		}
	}
	return out
}

func (s state) make(ctx context.Context, d *desired) (changes int, err error) {
	input := plan(s.ours, d.saved(s.family))
	if len(input) == 0 {
		return 0, nil
	}
	return bytes.Count(input, []byte("\n")), s.change(ctx, input)
}

// putBack replaces the tables that differ from what they were by their earlier text,
// so that our rules have their earlier places among those of others, too.
func (s state) putBack(ctx context.Context) error {
	text, err := s.save(ctx)
	if err != nil {
		return err
	}
	var input bytes.Buffer
	for _, now := range parseRuleset(text) {
		before := s.before.find(now.name)
		if before == nil { // made by us: the built-in chains alone
			before = now.emptied()
		}
		if !before.identical(now) {
			before.write(&input)
		}
	}
	if input.Len() == 0 {
		return nil
	}
	return s.replace(ctx, input.Bytes())
}

// emptied returns t with its built-in chains only, without rules.
func (t *table) emptied() *table {
	builtin := slices.DeleteFunc(slices.Clone(t.heads), func(head string) bool {
		return slices.ContainsFunc(t.chains, func(c string) bool { return headChain(head) == c })
	})
	return &table{name: t.name, heads: builtin}
}

// identical compares verbatim, but for the packet counters of chains.
func (t *table) identical(o *table) bool {
	return slices.EqualFunc(t.heads, o.heads, func(a, b string) bool { return headPolicy(a) == headPolicy(b) }) &&
		slices.EqualFunc(t.rules, o.rules, func(a, b savedRule) bool { return a.chain == b.chain && a.spec == b.spec })
}

func (t *table) write(out *bytes.Buffer) {
	fmt.Fprintf(out, "*%s\n", t.name)
	for _, h := range t.heads {
		fmt.Fprintln(out, h)
	}
	for _, r := range t.rules {
		fmt.Fprintf(out, "-A %s %s\n", r.chain, r.spec)
	}
	out.WriteString("COMMIT\n")
}

// headChain returns CHAIN of ":CHAIN POLICY [packets:bytes]".
func headChain(head string) string {
	chain, _, _ := strings.Cut(head[1:], " ")
	return chain
}

// headPolicy returns ":CHAIN POLICY".
func headPolicy(head string) string {
	without, _, _ := strings.Cut(head, " [")
	return without
}
