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
	states   []state
	wants    map[int]ruleset // by index of states; nothing is wanted elsewhere
	ipv6     bool            // ::6 on lo
	policies []policy        // of TPROXY
	log      *slog.Logger
}

func (t *transition) want(i int, rules ruleset) {
	if t.wants == nil {
		t.wants = map[int]ruleset{}
	}
	t.wants[i] = rules
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
			s := t.states[i]
			input := plan(s.ours, t.wants[i])
			if len(input) == 0 {
				continue
			}
			tried = append(tried, i)
			if err := s.change(ctx, input); err != nil {
				return fmt.Errorf("change %v rules: %w", s.family, err)
			}
			t.log.Info("changed capture rules", "with", s.name("restore"), "lines", bytes.Count(input, []byte("\n")))
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
	for _, s := range t.states {
		for _, tab := range s.ours {
			out = append(out, DefaultMark)
			for _, r := range tab.rules {
				if m, ok := r.tproxyMark(); ok {
					out = append(out, m)
				}
			}
		}
	}
	return out
}

// order returns the indexes of states, those with wanted rules first.
func (t transition) order() []int {
	var first, then []int
	for i := range t.states {
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
		s := t.states[i]
		if err := s.putBack(ctx); err != nil {
			errs = append(errs, fmt.Errorf("put the earlier %v rules back: %w", s.family, err))
		}
	}
	if err := pipes.restore(); err != nil {
		errs = append(errs, fmt.Errorf("put addresses and routes back: %w", err))
	}
	return errors.Join(errs...)
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
