// Package xtables owns the back ends that are programs: iptables-save and
// iptables-restore, for nf_tables and legacy.
package xtables

import (
	"bytes"
	"context"

	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// State is what one tool of iptables found.
type State struct {
	Tool
	before saved.Ruleset
	ours   saved.Ruleset
}

// String names the program that changes the rules, for logs.
func (s State) String() string { return s.Name("restore") }

// Marks returns the marks that TPROXY rules of ours give.
func (s State) Marks() (out []uint32) {
	for _, tab := range s.ours {
		for _, r := range tab.Rules {
			if m, ok := r.TproxyMark(); ok {
				out = append(out, m)
			}
		}
	}
	return out
}

// Make makes d all that there is of ours, and returns how many changes that took.
func (s State) Make(ctx context.Context, d *saved.Wanted) (changes int, err error) {
	input := plan(s.ours, d.Ruleset(s.family))
	if len(input) == 0 {
		return 0, nil
	}
	return bytes.Count(input, []byte("\n")), s.restore(ctx, input, "--noflush")
}

// PutBack replaces tables by their earlier text, so that our rules have their earlier
// places among those of others.
func (s State) PutBack(ctx context.Context) error {
	text, err := s.save(ctx)()
	if err != nil {
		return err
	}
	var input bytes.Buffer
	for _, now := range saved.Parse(text) {
		before := s.before.Find(now.Name)
		if before == nil { // made by us: the built-in chains alone
			before = now.Emptied()
		}
		if !before.Identical(now) {
			before.Write(&input)
		}
	}
	if input.Len() == 0 {
		return nil
	}
	return s.restore(ctx, input.Bytes())
}

// Tools returns those in PATH, best first, or plain iptables where there are none.
func Tools() []Tool {
	var out []Tool
	for _, b := range []rule.Backend{rule.NFT, rule.Legacy} {
		if (Tool{b, rule.IPv4}).installed() {
			out = append(out, Tool{b, rule.IPv4}, Tool{b, rule.IPv6})
		}
	}
	if len(out) == 0 {
		out = append(out, Tool{rule.Plain, rule.IPv4}, Tool{rule.Plain, rule.IPv6})
	}
	return out
}

// Holding says who has rules there.
func (s State) Holding() rule.Holding {
	h := rule.Holding{Backend: s.backend, Family: s.family}
	switch {
	case len(s.ours) > 0:
		h.Used = rule.UsedByUs
	case s.before.HasRules():
		h.Used = rule.UsedByOthers
	}
	return h
}

// Saved returns what was found.
func (s State) Saved() []saved.State {
	return []saved.State{{Holding: s.Holding(), All: s.before, Ours: s.ours}}
}

// Look starts to read what there is, and returns what waits for it.
func (t Tool) Look(ctx context.Context) func() (State, error) {
	wait := t.save(ctx)
	return func() (State, error) {
		text, err := wait()
		before := saved.Parse(text)
		return State{Tool: t, before: before, ours: before.Ours()}, err
	}
}
