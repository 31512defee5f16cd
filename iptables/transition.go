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
	holders []holder
	wants   map[int][]Rule // by index of holders; nothing is wanted elsewhere
	ipv6    bool           // ::6 on lo
	log     *slog.Logger
}

func (t *transition) want(i int, rules []Rule) {
	if t.wants == nil {
		t.wants = map[int][]Rule{}
	}
	t.wants[i] = rules
}

// make first puts rules where they are wanted and then takes them away elsewhere, so
// that capture, once there, is never missing in between.
func (t transition) make(ctx context.Context) error {
	added := false
	var tried []int
	err := func() (err error) {
		if t.ipv6 { // before a rule names it
			if added, err = setPassthrough(true); err != nil {
				return err
			}
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
		if len(tried) == 0 {
			t.log.Info("capture rules are as wanted already")
		}
		if !t.ipv6 { // no rule names it any more
			_, err = setPassthrough(false)
		}
		return err
	}()
	if err != nil {
		return errors.Join(err, t.undo(ctx, tried, added))
	}
	return nil
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
func (t transition) undo(ctx context.Context, tried []int, addressAdded bool) error {
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
	if addressAdded {
		if _, err := setPassthrough(false); err != nil {
			errs = append(errs, err)
		}
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

func (s state) make(ctx context.Context, rules []Rule) (changes int, err error) {
	input := plan(s.ours, wanted(rules, s.family))
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
